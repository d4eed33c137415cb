"""Through every restart of broker, Home Assistant and device. Home Assistant is a stand-in that holds its rules
(`tests/homeassistant.py`); broker, delivery and announcements are real, and killed."""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest
from homeassistant import UNAVAILABLE, HomeAssistant
from homeassistant_device import NODE
from mosquitto import PATIENCE_S, Listener, Mosquitto, until

CONFIG = f"homeassistant/device/amiss_{NODE}/config"


class Device:
    def __init__(self, folder: Path, broker: Mosquitto, **options: Any) -> None:
        self._folder, self._port, self.options = folder, broker.port, options
        folder.mkdir(exist_ok=True)

    def start(self) -> Self:
        script = Path(__file__).parent.parent / "homeassistant_device.py"
        command = [sys.executable, str(script), str(self._folder), str(self._port), json.dumps(self.options)]
        # Beside the script lies a folder `edge`, of tests; ours has to be found before it.
        environment = os.environ | {"PYTHONPATH": str(script.parents[1])}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=environment)
        return self

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=10)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.kill()


EXPECTED = {
    "sensor.pump_7_waiting_records": "0",
    "update.pump_7_model": "off",
    "number.pump_7_false_alarms_per_week": "2.0",
} | {
    f"{platform}.pump_7_{stream}_{what}": state
    for stream in ("pump", "fan")
    for platform, what, state in (
        ("binary_sensor", "anomaly", "off"),
        ("binary_sensor", "link", "on"),
        ("sensor", "score", "1.5"),
        ("sensor", "p_value", "0.25"),
        ("sensor", "latency", "12.5"),
        ("event", "event", "unknown"),
        ("button", "false_alarm", "unknown"),
        ("button", "recalibrate", "unknown"),
        ("button", "roll_back", "unknown"),
        ("switch", "maintenance", "off"),
    )
}


def settle(assistant: HomeAssistant, expected: dict[str, str], timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while assistant.states() != expected:
        assert time.monotonic() < deadline, {
            name: (assistant.states().get(name), expected.get(name))
            for name in expected.keys() | assistant.states().keys()
            if assistant.states().get(name) != expected.get(name)
        }
        time.sleep(0.02)


def holds(condition: Callable[[], bool], for_s: float) -> bool:
    """Also a while later."""
    deadline = time.monotonic() + for_s
    while time.monotonic() < deadline:
        if not condition():
            return False
        time.sleep(0.02)
    return True


def all_unavailable(assistant: HomeAssistant) -> bool:
    return bool(states := assistant.states()) and set(states.values()) == {UNAVAILABLE}


@pytest.mark.parametrize("order", list(itertools.permutations(("broker", "assistant", "device"))), ids="-".join)
def test_every_order_of_starting_and_each_killed_alone(order: tuple[str, ...], tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path / "broker")
    assistant = HomeAssistant(broker.port)
    device = Device(tmp_path / "device", broker)
    parts: dict[str, Any] = {"broker": broker, "assistant": assistant, "device": device}
    started = []
    try:
        for name in order:
            parts[name].start()
            started.append(name)
            time.sleep(0.3)
        settle(assistant, EXPECTED)
        victim = order[0]  # over the six orders each is killed twice
        parts[victim].kill()
        if victim != "assistant":
            until(lambda: all_unavailable(assistant))
        time.sleep(0.3)
        parts[victim].start()
        settle(assistant, EXPECTED)
        device.tell("anomaly on")
        on = {name: "on" if name.endswith("_anomaly") else state for name, state in EXPECTED.items()}
        settle(assistant, on)
        assert assistant.complaints == []
        assert assistant.live() == set(EXPECTED)
    finally:
        for name in reversed(started):
            parts[name].kill()


def test_a_dead_device_is_unavailable_and_never_normal(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """Also for a Home Assistant that starts afterwards, and finds nothing but what is retained."""
    device = Device(tmp_path / "device", mosquitto).start()
    with HomeAssistant(mosquitto.port) as assistant:
        settle(assistant, EXPECTED)
        device.kill()
        until(lambda: all_unavailable(assistant))
        assistant.kill()
        assistant.start()
        until(lambda: assistant.live() == set(EXPECTED))
        assert holds(lambda: all_unavailable(assistant), 1.0)
        # The control: without its availability topics the same device looks well.
        announced = retained(mosquitto, CONFIG)
        del announced["availability"]
        for component in announced["components"].values():
            component.pop("availability", None)
        publish(mosquitto, CONFIG, json.dumps(announced))
        until(lambda: assistant.states()["binary_sensor.pump_7_pump_anomaly"] == "off")


def test_a_stream_that_falls_silent_is_unavailable_though_the_connection_holds(tmp_path: Path, mosquitto: Mosquitto) -> None:
    late_s = 0.0
    with (
        Device(tmp_path / "device", mosquitto) as device,
        HomeAssistant(mosquitto.port, clock=lambda: time.monotonic() + late_s) as assistant,
    ):
        settle(assistant, EXPECTED)
        device.tell("mute pump")
        time.sleep(0.3)
        late_s = 60.0
        stale = {f"{kind}.pump_7_pump_{what}" for kind, what in (("binary_sensor", "anomaly"), ("sensor", "score"))}
        stale |= {"sensor.pump_7_pump_p_value", "sensor.pump_7_pump_latency"}
        settle(assistant, {name: UNAVAILABLE if name in stale else state for name, state in EXPECTED.items()})
        # The control: what does not expire shows its last value for ever.
        announced = retained(mosquitto, CONFIG)
        del announced["components"]["pump.anomaly"]["expire_after"]
        publish(mosquitto, CONFIG, json.dumps(announced))
        until(lambda: assistant.states()["binary_sensor.pump_7_pump_anomaly"] == "off")


def test_a_stream_without_its_sensor_is_unavailable_and_still_tells_why(tmp_path: Path, mosquitto: Mosquitto) -> None:
    with Device(tmp_path / "device", mosquitto) as device, HomeAssistant(mosquitto.port) as assistant:
        settle(assistant, EXPECTED)
        device.tell("offline pump")
        dark = {"binary_sensor.pump_7_pump_anomaly", "button.pump_7_pump_recalibrate"}
        dark |= {f"sensor.pump_7_pump_{what}" for what in ("score", "p_value", "latency")}
        expected = {name: UNAVAILABLE if name in dark else state for name, state in EXPECTED.items()}
        settle(assistant, expected | {"binary_sensor.pump_7_pump_link": "off"})
        device.tell("event pump")
        until(lambda: assistant.events)
        ((name, kind, attributes),) = assistant.events
        assert (name, kind) == ("event.pump_7_pump_event", "anomaly_started")
        assert attributes["channels"][0] == {"channel": "current", "share": 0.75}
        assert attributes["id"] == "e-1"
        assert "excerpt" not in attributes
        assert assistant.complaints == []


def test_an_anomaly_says_since_when_and_where(tmp_path: Path, mosquitto: Mosquitto) -> None:
    with Device(tmp_path / "device", mosquitto) as device, HomeAssistant(mosquitto.port) as assistant:
        settle(assistant, EXPECTED)
        anomaly = assistant.entity("binary_sensor.pump_7_pump_anomaly")
        assert anomaly.attributes == {}
        device.tell("anomaly on")
        until(lambda: anomaly.value == "on")
        assert anomaly.attributes["top_channels"] == ["current", "vibration"]
        assert anomaly.attributes["since"].startswith("20")


def test_what_a_person_does_arrives_as_a_request(tmp_path: Path, mosquitto: Mosquitto) -> None:
    with (
        Device(tmp_path / "device", mosquitto) as device,
        HomeAssistant(mosquitto.port) as assistant,
        Listener(mosquitto.port, f"amiss/{NODE}/request/+") as listener,
    ):
        settle(assistant, EXPECTED)
        assistant.press("button.pump_7_pump_false_alarm")
        assistant.press("button.pump_7_fan_recalibrate")
        assistant.press("button.pump_7_fan_roll_back")
        assistant.turn("switch.pump_7_pump_maintenance", True)
        assistant.turn("switch.pump_7_pump_maintenance", False)
        assistant.set("number.pump_7_false_alarms_per_week", 4)
        assistant.set("number.pump_7_false_alarms_per_week", 0.5)
        listener.wait(lambda heard: len(heard) == 7)
        assert [(one.topic.rpartition("/")[2], json.loads(one.payload)) for one in listener.heard] == [
            ("feedback", {"stream": "pump", "verdict": "false_alarm"}),
            ("commission", {"stream": "fan", "minutes": 60}),
            ("commission", {"stream": "fan", "rollback": True}),
            ("maintenance", {"stream": "pump", "minutes": 480}),
            ("maintenance", {"stream": "pump", "off": True}),
            ("config", {"set": {"alarm.false_alarms": "4/week"}}),
            ("config", {"set": {"alarm.false_alarms": "0.5/week"}}),
        ]
        assert not any(one.retained for one in listener.heard)
        device.tell("maintenance on")
        until(lambda: assistant.states()["switch.pump_7_pump_maintenance"] == "on")


def test_another_model_is_seen(tmp_path: Path, mosquitto: Mosquitto) -> None:
    with Device(tmp_path / "device", mosquitto) as device, HomeAssistant(mosquitto.port) as assistant:
        settle(assistant, EXPECTED)
        device.tell("model 4")
        until(lambda: assistant.entity("update.pump_7_model").attributes.get("installed_version") == "4")
        assert assistant.states()["update.pump_7_model"] == "off"
        assert assistant.devices[CONFIG]["sw_version"] == "0.1.0"


WITHOUT_FAN = {name: state for name, state in EXPECTED.items() if "_fan_" not in name}


@pytest.mark.parametrize("assistant_runs", [True, False], ids=["while it runs", "while it is down"])
def test_the_entities_of_a_stream_that_is_gone_vanish(assistant_runs: bool, tmp_path: Path, mosquitto: Mosquitto) -> None:
    device = Device(tmp_path / "device", mosquitto)
    with HomeAssistant(mosquitto.port) as assistant:
        with device:
            settle(assistant, EXPECTED)
        if not assistant_runs:
            assistant.kill()
        device.options["streams"] = ["pump"]
        with device:
            until(lambda: "fan.score" in retained(mosquitto, CONFIG)["components"])
            if not assistant_runs:
                assistant.start()
            settle(assistant, WITHOUT_FAN)
            assert assistant.complaints == []
            # Once Home Assistant has started and been told, there is nothing left to take back.
            births = assistant.births
            assistant.kill()
            assistant.start()
            until(lambda: assistant.births > births)
            until(lambda: "fan.score" not in json.loads((tmp_path / "device" / "homeassistant.json").read_text())["components"])
            settle(assistant, WITHOUT_FAN)
            device.options["streams"] = ["pump", "fan"]
        with device:
            settle(assistant, EXPECTED)


def test_without_taking_them_back_they_stay_for_ever(tmp_path: Path, mosquitto: Mosquitto) -> None:
    """The control of the test above: a device that has forgotten what it announced."""
    device = Device(tmp_path / "device", mosquitto)
    with HomeAssistant(mosquitto.port) as assistant:
        with device:
            settle(assistant, EXPECTED)
        device.options["streams"] = ["pump"]
        (tmp_path / "device" / "homeassistant.json").unlink()
        with device:
            until(lambda: "fan.score" not in retained(mosquitto, CONFIG)["components"])
            births = assistant.births
            assistant.kill()
            assistant.start()
            until(lambda: assistant.births > births)
            time.sleep(1.0)
            assert set(assistant.states()) == set(EXPECTED)


def test_a_device_that_no_longer_wants_to_be_there_is_gone(tmp_path: Path, mosquitto: Mosquitto) -> None:
    device = Device(tmp_path / "device", mosquitto)
    with HomeAssistant(mosquitto.port) as assistant:
        with device:
            settle(assistant, EXPECTED)
        device.options["prefix"] = False
        with device:
            until(lambda: assistant.states() == {})
            assert retained(mosquitto, CONFIG) == {}


@pytest.mark.parametrize("deaf", [False, True])
def test_what_was_lost_from_the_broker_comes_back_when_home_assistant_starts(
    deaf: bool, tmp_path: Path, mosquitto: Mosquitto
) -> None:
    """Somebody has cleared the retained messages. The control: a device that does not hear Home Assistant start."""
    assistant = HomeAssistant(mosquitto.port)
    with Device(tmp_path / "device", mosquitto, deaf=deaf):
        with assistant:
            settle(assistant, EXPECTED)
        publish(mosquitto, CONFIG, "")
        births = assistant.births
        with assistant:
            if deaf:
                until(lambda: assistant.births > births)
                assert holds(lambda: assistant.live() == set(), 2.0)
                assert all_unavailable(assistant)
            else:
                settle(assistant, EXPECTED)


def test_controls_that_a_token_guards_are_left_out_and_the_token_is_nowhere(tmp_path: Path, mosquitto: Mosquitto) -> None:
    device = Device(tmp_path / "device", mosquitto)
    with HomeAssistant(mosquitto.port) as assistant:
        with device:
            settle(assistant, EXPECTED)
        device.options["requests"] = {"token": "geheim"}
        readable = {n: s for n, s in EXPECTED.items() if n.split(".")[0] in ("binary_sensor", "sensor", "event", "update")}
        with device, Listener(mosquitto.port) as listener:
            settle(assistant, readable)
            assert not any(b"geheim" in one.payload for one in listener.heard)
        device.options["requests"] = {"allow": ["feedback", "ping"]}
        with device:
            settle(assistant, readable | {n: s for n, s in EXPECTED.items() if n.endswith("_false_alarm")})


def retained(broker: Mosquitto, topic: str) -> Any:
    with Listener(broker.port, topic) as late:
        time.sleep(0.1)
        return json.loads(late.heard[0].payload) if late.heard and late.heard[0].payload else {}


def publish(broker: Mosquitto, topic: str, payload: str) -> None:
    with Listener(broker.port, topic) as sender:
        sender._client.publish(topic, payload, 1, True).wait_for_publish(5.0)
