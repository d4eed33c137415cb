"""Who is there, by a real broker that also goes away."""

from pathlib import Path

import msgspec
import pytest
from mosquitto import Mosquitto, until
from test_push import Device, at

from deploy.plant import Plant
from edge.delivery.topics import HealthPayload, MqttHealth
from edge.errors import NoInputError

HEALTH = HealthPayload(
    time="2026-01-30T09:00:00.000Z",
    time_ns=0,
    uptime_s=60.0,
    mqtt=MqttHealth(connected=True, queued=0, published=0, dropped=0, parked=0),
    streams={},
)


def test_who_is_there_is_known_at_once_and_what_they_say_as_it_comes(mosquitto: Mosquitto) -> None:
    with Device(mosquitto.port, "pump-1", "pumps", at("checking")) as pump, Plant(mosquitto.config(), watch=True) as plant:
        assert plant.devices["pump-1"].progress.step == "idle"
        plant.ask("pump-1", "update", number=7)
        until(lambda: plant.turn(0.1) and plant.devices["pump-1"].progress.step == "checking")
        until(lambda: plant.answers or plant.turn(0.1) is None)
        assert [(answer.node, answer.verb, answer.response.status) for answer in plant.answers] == [("pump-1", "update", "ok")]
        assert pump.asked[0]["number"] == 7
        pump.tell("health", msgspec.json.encode(HEALTH))
        until(lambda: plant.turn(0.1) == {"pump-1"})
        assert plant.devices["pump-1"].health == HEALTH


def test_health_that_is_heard_before_the_device_is_known_is_its_all_the_same(mosquitto: Mosquitto) -> None:
    with Device(mosquitto.port, "pump-1"), Device(mosquitto.port, "pump-2") as late:
        late.tell("update", b"")  # so that health alone is retained
        late.tell("health", msgspec.json.encode(HEALTH))
        with Plant(mosquitto.config(), watch=True) as plant:
            plant.turn(0.2)
            assert list(plant.devices) == ["pump-1"]
            late.tell("update", msgspec.json.encode(at("idle")))
            until(lambda: "pump-2" in plant.turn(0.1))
            assert plant.devices["pump-2"].health == HEALTH


def test_one_that_came_later_is_there_too(mosquitto: Mosquitto) -> None:
    with Device(mosquitto.port, "pump-1"), Plant(mosquitto.config()) as plant, Device(mosquitto.port, "pump-2"):
        until(lambda: plant.turn(0.1) == {"pump-2"})
        assert sorted(plant.devices) == ["pump-1", "pump-2"]


def test_what_is_no_news_of_a_device_is_left_alone(mosquitto: Mosquitto) -> None:
    with Device(mosquitto.port, "pump-1") as pump, Plant(mosquitto.config(), watch=True) as plant:
        for topic, payload in (("update", b""), ("update", b"{"), ("health", b"[]"), ("response/update", b'{"status":"ok"}')):
            pump.tell(topic, payload)
        pump.tell("response/update", msgspec.json.encode({"status": "ok", "transaction": f"{plant.name}-1"}))
        until(lambda: plant.turn(0.1) == {"pump-1"})
        assert len(plant.answers) == 1
        assert (plant.devices["pump-1"].progress.step, plant.devices["pump-1"].health) == ("idle", None)


def test_a_broker_that_goes_away_and_comes_back_is_heard_again(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path / "broker")
    with broker, Device(broker.port, "pump-1"), Plant(broker.config()) as plant:
        broker.kill()
        for _ in range(3):
            assert plant.turn(0.2) == set()
        assert plant.room == 0
        broker.start()
        with Device(broker.port, "pump-2"):
            until(lambda: "pump-2" in plant.turn(0.2), 20)
            assert plant.room


def test_nobody_there(mosquitto: Mosquitto) -> None:
    with pytest.raises(NoInputError, match=r"\[update\]"), Plant(mosquitto.config()):
        pass
