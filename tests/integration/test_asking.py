"""What people ask of a running agent, over a real broker and through its socket."""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import paho.mqtt.client as paho
import pytest
from mosquitto import PATIENCE_S, Listener, Mosquitto, until
from msgspec import structs
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from small_bundle import CHANNELS, build, normal
from test_agent import RATE_HZ, agent, configure, events, wait_for

from deploy.machine import SerialPort, play
from edge.bundle import verify, write_bundle
from edge.operating.control import ask
from edge.sensing.recordings import Recording


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("bundle") / "small.amiss")


class Sensor:
    """A machine that runs until the test is over: ordinary noise, and what the test puts on top of it."""

    def __init__(self, name: Path, speed: float = 5.0) -> None:
        self.port = SerialPort(name)
        self.offset = np.zeros((2, 1), np.float32)
        self._speed, self._stop = speed, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        part = 0
        while not self._stop.is_set():
            x = self.ordinary(part) + self.offset
            time_ns = 10**18 + (np.arange(100, dtype=np.int64) + 100 * part) * 10_000_000
            played = Recording("r", CHANNELS, time_ns, x)
            play(self.port, played, rate_hz=RATE_HZ, speed=self._speed, stop=self._stop.is_set)
            part += 1

    def ordinary(self, part: int) -> Any:
        """(2, 100) of it running normally."""
        return normal(100, seed=part)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def stop(self) -> None:
        """It stands still; the port stays open."""
        self._stop.set()
        self._thread.join(5)

    def __exit__(self, *exc: object) -> None:
        self.stop()
        self.port.close()


class Person:
    """Asks over MQTT and waits for the answer."""

    def __init__(self, port: int, listener: Listener) -> None:
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._listener, self._count = listener, 0

    def say(self, verb: str, payload: bytes, node: str = "n") -> None:
        self._client.publish(f"amiss/{node}/request/{verb}", payload, 1).wait_for_publish(5)

    def ask(self, verb: str, **body: Any) -> dict[str, Any]:
        self._count += 1
        body = {"transaction": f"t{self._count}"} | body
        self.say(verb, json.dumps(body).encode())
        return self.answer(verb, body["transaction"])

    def answer(self, verb: str, transaction: str, number: int = 1) -> dict[str, Any]:
        """The so many-th answer to it."""

        def found() -> list[dict[str, Any]]:
            answers = [json.loads(payload) for payload in self._listener.payloads(f"amiss/n/response/{verb}")]
            return [answer for answer in answers if answer.get("transaction") == transaction]

        until(lambda: len(found()) >= number)
        return found()[number - 1]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@contextmanager
def running(
    tmp_path: Path, bundle: Path, mosquitto: Mosquitto, extra: str = ""
) -> Iterator[tuple[Listener, Person, Sensor, Any]]:
    """An agent on a machine that runs, and a person who talks to it."""
    config = configure(tmp_path, bundle, mosquitto.port, f"health_every_s = 0.2\n{extra}")
    with Listener(mosquitto.port, "amiss/#") as listener, Sensor(tmp_path / "tty") as sensor, agent(config) as process:
        wait_for(listener, "amiss/n/s/availability", b"online", PATIENCE_S)
        person = Person(mosquitto.port, listener)
        try:
            yield listener, person, sensor, process
        finally:
            person.close()


def back(listener: Listener) -> None:
    """The agent was gone and is there again, its sensor too."""
    until(lambda: listener.payloads("amiss/n/availability")[-2:] == [b"offline", b"online"])
    until(lambda: listener.payloads("amiss/n/s/availability")[-1:] == [b"online"])


def go_on(listener: Listener, windows: int = 125) -> None:
    """Until the agent has judged so many more, those of a second unless this computer is busy. One that is strange is told of
    after the first few."""
    before = max(0, len(listener.payloads("amiss/n/health")) - 1)

    def judged() -> int:
        counts = [json.loads(payload)["streams"]["s"]["windows"] for payload in listener.payloads("amiss/n/health")[before:]]
        return sum(new - old if new >= old else new for old, new in pairwise(counts))  # less than before: it was restarted

    until(lambda: judged() >= windows)


def told(listener: Listener, wanted: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """The newest state, when it is as wanted."""

    def newest() -> dict[str, Any]:
        return json.loads((listener.payloads("amiss/n/s/state") or [b"{}"])[-1])

    until(lambda: wanted(newest()))
    return newest()


def types(listener: Listener) -> list[str]:
    """Of distinct records: one that was under way when the agent was killed comes twice."""
    return list({event["record"]: event["type"] for event in events(listener)}.values())


def test_maintenance_keeps_still_and_ends(tmp_path: Path, bundle: Path, mosquitto: Mosquitto) -> None:
    with running(tmp_path, bundle, mosquitto) as (listener, person, sensor, _):
        answer = person.ask("maintenance", minutes=60)
        assert answer["status"] == "ok", answer
        assert answer["data"]["streams"] == ["s"]
        until(lambda: json.loads(listener.payloads("amiss/n/s/state")[-1]).get("maintenance"))
        sensor.offset = np.array([[0], [6]], np.float32)
        go_on(listener)
        assert types(listener) == []
        assert person.ask("maintenance", off=True)["status"] == "ok"
        listener.wait(lambda _: types(listener) == ["anomaly_started"])  # the control: it was worth an alert all the time


def test_maintenance_outlives_a_restart(tmp_path: Path, bundle: Path, mosquitto: Mosquitto) -> None:
    with running(tmp_path, bundle, mosquitto) as (listener, person, sensor, process):
        assert person.ask("maintenance", stream="s", minutes=60)["status"] == "ok"
        process.kill()
        process.wait(10)
        with agent(tmp_path / "device.toml"):
            back(listener)
            sensor.offset = np.array([[0], [6]], np.float32)
            until(lambda: json.loads(listener.payloads("amiss/n/s/state")[-1]).get("maintenance"))
            go_on(listener)
            assert types(listener) == []


def test_a_false_alarm_is_silent_at_once_and_for_good_and_can_be_taken_back(
    tmp_path: Path, bundle: Path, mosquitto: Mosquitto
) -> None:
    with running(tmp_path, bundle, mosquitto, "[alarm]\ncool_down_s = 0") as (listener, person, sensor, process):
        sensor.offset = np.array([[0], [6]], np.float32)
        listener.wait(lambda _: types(listener) == ["anomaly_started"])
        episode = events(listener)[0]["id"]
        go_on(listener, 60)
        answer = person.ask("feedback", id=episode, verdict="false_alarm")
        assert answer["status"] == "ok", answer
        listener.wait(lambda _: types(listener) == ["anomaly_started", "anomaly_ended"])
        assert events(listener)[1]["reason"] == "false alarm"
        go_on(listener)
        assert len(events(listener)) == 2, "the same thing goes on, and nobody is told again"
        process.terminate()
        process.wait(15)
        with agent(tmp_path / "device.toml"):
            back(listener)
            go_on(listener)
            assert len(events(listener)) == 2, "nor after a restart"
            assert person.ask("feedback", id=episode, verdict="undo")["status"] == "ok"
            listener.wait(lambda _: types(listener)[2:] == ["anomaly_started"])  # the control


def test_commissioning_fits_to_what_comes_and_the_way_back(tmp_path: Path, bundle: Path, mosquitto: Mosquitto) -> None:
    """The machine is another one than the bundle knows: it runs at another level."""
    with running(tmp_path, bundle, mosquitto) as (listener, person, sensor, process):
        sensor.offset = np.array([[3], [6]], np.float32)
        listener.wait(lambda _: types(listener) == ["anomaly_started"])
        answer = person.ask("commission", stream="s", minutes=0.4, transaction="learn")
        assert answer["data"]["state"] == "collecting"
        assert "already" in person.ask("commission", stream="s", minutes=1)["error"]
        done = person.answer("commission", "learn", 2)
        assert done["status"] == "ok", done
        assert done["data"]["state"] == "done"
        listener.wait(lambda _: types(listener)[:2] == ["anomaly_started", "anomaly_ended"])
        assert events(listener)[1]["reason"] == "commissioned"
        go_on(listener)
        assert len(events(listener)) == 2, "this is ordinary now"
        process.terminate()
        process.wait(15)
        with agent(tmp_path / "device.toml"):
            back(listener)
            go_on(listener)
            assert len(events(listener)) == 2, "and after a restart"
            assert person.ask("commission", stream="s", rollback=True)["status"] == "ok"
            listener.wait(lambda _: types(listener)[2:3] == ["anomaly_started"])  # the control: for the bundle it is strange
            assert "nothing to go back to" in person.ask("commission", stream="s", rollback=True)["error"]


def test_a_starter_raises_nothing_until_it_knows_the_machine(tmp_path: Path, bundle: Path, mosquitto: Mosquitto) -> None:
    """The machine runs at a level that the bundle calls an anomaly (the test above), and fails when it is known."""
    manifest, members = verify(bundle.read_bytes())
    starter = tmp_path / "starter.amiss"
    write_bundle(starter, structs.replace(manifest, learn_minutes=0.4), members)
    with running(tmp_path, starter, mosquitto) as (listener, person, sensor, _):
        sensor.offset = np.array([[3], [6]], np.float32)
        state = told(listener, lambda payload: payload.get("learning"))
        assert state["p_value"] is None
        assert state["score"] is not None, "there is something to look at from the first window on"
        assert person.ask("commission", stream="s", cancel=True)["error"].endswith("begin anew")
        # Somebody who works on the machine meanwhile: the end of that is no end of learning.
        assert person.ask("maintenance", minutes=1)["status"] == "ok"
        assert person.ask("maintenance", off=True)["status"] == "ok"
        # What ran before the level changed may spoil the first attempt; then it learns once more, without being asked.
        listener.wait(lambda _: b'"state":"done"' in b"".join(listener.payloads("amiss/n/response/commission")))
        assert types(listener) == [], "it does not know what is ordinary, so nothing is strange"
        told(listener, lambda payload: not payload.get("learning") and payload["p_value"] is not None)
        go_on(listener)
        assert types(listener) == []
        sensor.offset = np.array([[0], [0]], np.float32)
        listener.wait(lambda _: types(listener) == ["anomaly_started"])
        # Back to the bundle's head, which knows no machine: it learns again, and the episode is over.
        assert person.ask("commission", stream="s", rollback=True)["status"] == "ok"
        listener.wait(lambda _: types(listener)[1:] == ["anomaly_ended"])
        told(listener, lambda payload: payload.get("learning"))
        # By itself it takes the 0.4 min; whoever asks for another time gets it.
        assert person.ask("commission", stream="s", minutes=0.3)["status"] == "ok"


def test_commissioning_refuses_a_machine_that_is_not_itself(tmp_path: Path, bundle: Path, mosquitto: Mosquitto) -> None:
    with running(tmp_path, bundle, mosquitto) as (_, person, sensor, _):
        assert person.ask("commission", stream="s", minutes=0.4, transaction="learn")["status"] == "ok"
        stop = threading.Event()

        def rattle() -> None:
            while not stop.is_set():
                sensor.offset = np.array([[0], [40]], np.float32)
                stop.wait(0.4)
                sensor.offset = np.zeros((2, 1), np.float32)
                stop.wait(1.2)

        rattling = threading.Thread(target=rattle)
        rattling.start()
        try:
            done = person.answer("commission", "learn", 2)
        finally:
            stop.set()
            rattling.join()
        assert done["status"] == "error"
        assert "contaminated" in done["error"]
        assert "trusted" in done["error"]
        assert not list((tmp_path / "state/streams/s").glob("heads/*.npz"))


def test_settings_change_at_once_and_stay(tmp_path: Path, bundle: Path, mosquitto: Mosquitto) -> None:
    with running(tmp_path, bundle, mosquitto) as (listener, person, _, process):
        answer = person.ask("config", set={"alarm.p_value": 0.02})
        assert answer["data"]["alarm"]["p_value"] == 0.02
        until(lambda: json.loads(listener.payloads("amiss/n/s/state")[-1])["threshold"] == 0.02)
        for wrong in ({"alarm.p_value": 1e-9}, {"alarm.p_valu": 0.1}, {"mqtt.host": "x"}, {"alarm.p_value": "x"}):
            refused = person.ask("config", set=wrong)
            assert refused["status"] == "error"
            assert "\n" not in refused["error"]
        assert person.ask("config")["data"]["alarm"]["p_value"] == 0.02
        process.terminate()
        process.wait(15)
        with agent(tmp_path / "device.toml"):
            back(listener)
            assert person.ask("config")["data"]["alarm"]["p_value"] == 0.02
            assert person.ask("config", set={"alarm.p_value": None})["data"]["alarm"]["p_value"] is None


def test_an_episode_that_was_open_when_the_agent_was_killed_is_ended_at_its_next_start(
    tmp_path: Path, bundle: Path, mosquitto: Mosquitto
) -> None:
    with running(tmp_path, bundle, mosquitto) as (listener, _, sensor, process):
        sensor.offset = np.array([[0], [6]], np.float32)
        listener.wait(lambda _: types(listener) == ["anomaly_started"])
        sensor.offset = np.zeros((2, 1), np.float32)
        process.kill()
        process.wait(10)
        with agent(tmp_path / "device.toml"):
            listener.wait(lambda _: types(listener)[:2] == ["anomaly_started", "anomaly_ended"])
            started, ended = {event["record"]: event for event in events(listener)}.values()
            assert ended["id"] == started["id"]
            assert ended["record"] != started["record"]
            assert ended["reason"] == "restart"


def test_hangup_reads_the_configuration_again_if_it_is_right(tmp_path: Path, bundle: Path, mosquitto: Mosquitto) -> None:
    with running(tmp_path, bundle, mosquitto) as (listener, person, _, process):
        config = tmp_path / "device.toml"
        text = config.read_text()
        config.write_text(text.replace("silence_s", "silence"))
        process.send_signal(signal.SIGHUP)
        until(lambda: "not reloaded" in (tmp_path / "agent.log").read_text())
        assert "did you mean `silence_s`" in (tmp_path / "agent.log").read_text()
        assert person.ask("ping")["status"] == "ok"
        config.write_text(text + "[alarm]\np_value = 0.05\n")
        process.send_signal(signal.SIGHUP)
        until(lambda: json.loads(listener.payloads("amiss/n/info")[-1])["config"]["alarm"]["p_value"] == 0.05)
        assert person.ask("config")["data"]["alarm"]["p_value"] == 0.05
        assert process.poll() is None


def test_snapshots_and_pings_and_nonsense(tmp_path: Path, bundle: Path, mosquitto: Mosquitto) -> None:
    with running(tmp_path, bundle, mosquitto) as (listener, person, _, process):
        until(lambda: listener.payloads("amiss/n/s/state"))
        until(lambda: len(person.ask("snapshot", stream="s", seconds=0.5)["data"]["time_ns"]) == 50)
        shot = person.ask("snapshot", stream="s", seconds=0.5)["data"]
        assert len(shot["time_ns"]) == 50
        assert set(shot["values"]) == set(CHANNELS)
        assert len(shot["values"]["current"]) == 50
        assert "at most" in person.ask("snapshot", stream="s", seconds=3600)["error"]
        assert "there are: s" in person.ask("snapshot", stream="other")["error"]
        assert person.ask("ping")["data"]["node"] == "n"
        for payload in (b"", b"{", b"\xff" * 100, b"[" * 5000, b"{}" * 60000):
            person.say("nonsense", payload)
            person.say("feedback", payload)
        listener.wait(lambda _: len(listener.payloads("amiss/n/response/error")) >= 5)
        assert all(json.loads(p)["status"] == "error" for p in listener.payloads("amiss/n/response/error"))
        assert person.ask("ping")["status"] == "ok"
        assert process.poll() is None


def test_who_is_on_the_device_asks_without_a_broker(tmp_path: Path, bundle: Path) -> None:
    absent = Mosquitto(tmp_path / "broker")  # never started
    with Sensor(tmp_path / "tty"), agent(configure(tmp_path, bundle, absent.port, '[requests]\ntoken = "secret"')):
        until(lambda: (tmp_path / "state/control.sock").exists())
        assert ask(tmp_path / "state", "ping", b"{}").data["node"] == "n"
        assert ask(tmp_path / "state", "maintenance", b'{"minutes": 5}').status == "ok"
        assert "token" not in json.dumps(ask(tmp_path / "state", "config", b"{}").data["requests"]) or (
            ask(tmp_path / "state", "config", b"{}").data["requests"]["token"] == "***"
        )


def test_without_the_token_nothing_changes(tmp_path: Path, bundle: Path, mosquitto: Mosquitto) -> None:
    with running(tmp_path, bundle, mosquitto, '[requests]\ntoken = "secret"\nallow = ["ping", "maintenance"]') as (
        _,
        person,
        *_,
    ):
        assert "token" in person.ask("maintenance", minutes=5)["error"]
        assert person.ask("maintenance", minutes=5, token="secret")["status"] == "ok"
        assert "requests.allow" in person.ask("snapshot", stream="s")["error"]
