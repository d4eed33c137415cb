"""The agent as its own process: a serial port on one side, a real broker on the other."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from modbus_slave import Slave
from mosquitto import Listener, Mosquitto, until
from small_bundle import CHANNELS, build, normal

from deploy.machine import SerialPort, play
from edge.sensing.recordings import Recording, write_recording

RATE_HZ = 100.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("bundle") / "small.amiss")


def recording(rows: int = 1500, fault_at: int | None = 1000, seed: int = 7, start_s: float = 1e9) -> Recording:
    x = normal(rows, seed=seed)
    if fault_at is not None:
        x[1, fault_at:] += 4
    time_ns = round(start_s * 1e9) + np.arange(rows, dtype=np.int64) * 10_000_000
    return Recording("played", CHANNELS, time_ns, x)


def configure(folder: Path, bundle: Path, broker_port: int, extra: str = "") -> Path:
    path = folder / "device.toml"
    path.write_text(
        f"""\
node = "n"
bundle = "{bundle}"
state_dir = "{folder}/state"
[streams.s]
port = "{folder}/tty"
clock = "sensor"
silence_s = 1.0
[mqtt]
host = "127.0.0.1"
port = {broker_port}
{extra}
"""
    )
    return path


@contextmanager
def agent(config: Path, *options: str) -> Iterator["subprocess.Popen[bytes]"]:
    with (config.parent / "agent.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "amiss", "run", "--config", str(config), *options], stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def events(listener: Listener) -> list[dict[str, Any]]:
    return [json.loads(payload) for payload in listener.payloads("amiss/n/s/event")]


def wait_for(listener: Listener, topic: str, payload: bytes, timeout_s: float = 10.0) -> None:
    listener.wait(lambda _: payload in [h.payload for h in listener.heard if h.topic == topic], timeout_s)


def send(port: SerialPort, played: Recording, speed: float = 5.0) -> None:
    play(port, played, rate_hz=RATE_HZ, speed=speed)


def test_from_the_wire_to_the_alert_and_a_clean_end(tmp_path: Path, bundle: Path, mosquitto: Mosquitto) -> None:
    played = recording()
    port = SerialPort(tmp_path / "tty")
    with Listener(mosquitto.port, "amiss/#") as listener, agent(configure(tmp_path, bundle, mosquitto.port)) as process:
        wait_for(listener, "amiss/n/availability", b"online")
        send(port, played)
        listener.wait(lambda _: events(listener))
        (event,) = events(listener)
        assert event["type"] == "anomaly_started"
        onset_ns = int(played.time_ns[1000])
        assert onset_ns <= event["stream_ns"] <= onset_ns + 500_000_000
        assert abs(event["since_stream_ns"] - onset_ns) <= 160_000_000
        assert event["channels"][0]["channel"] == "current"
        assert event["historical"] is False
        wait_for(listener, "amiss/n/s/availability", b"online")
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        wait_for(listener, "amiss/n/availability", b"offline")
    with Listener(mosquitto.port, "amiss/#") as late:
        late.wait(lambda heard: len({h.topic for h in heard}) >= 5)
        retained = {h.topic: h.payload for h in late.heard if h.retained}
    assert retained["amiss/n/availability"] == retained["amiss/n/s/availability"] == b"offline"
    assert json.loads(retained["amiss/n/s/state"])["anomaly"] is True
    assert json.loads(retained["amiss/n/info"])["model"]["digest"] == event["model"]
    assert json.loads(retained["amiss/n/health"])["streams"]["s"]["rejected"] == 0
    assert "amiss/n/s/event" not in retained
    port.close()


def test_a_killed_agent_is_offline_by_its_last_will(tmp_path: Path, bundle: Path, mosquitto: Mosquitto) -> None:
    with Listener(mosquitto.port, "amiss/#") as listener, agent(configure(tmp_path, bundle, mosquitto.port)) as process:
        wait_for(listener, "amiss/n/availability", b"online")
        process.kill()
        wait_for(listener, "amiss/n/availability", b"offline")


def test_what_happened_while_the_broker_was_away_is_told_once_it_is_back(tmp_path: Path, bundle: Path) -> None:
    broker = Mosquitto(tmp_path / "broker")
    port = SerialPort(tmp_path / "tty")
    with agent(configure(tmp_path, bundle, broker.port)) as process:
        send(port, recording(), speed=3.0)
        process.kill()  # and as though that were not enough, the power fails
        process.wait(10)
        with broker, Listener(broker.port, "amiss/#") as listener, agent(tmp_path / "device.toml"):
            listener.wait(lambda _: events(listener))
            told = events(listener)  # its end, too, if that is here already
            assert told[0]["type"] == "anomaly_started"
            assert {event["id"] for event in told} == {told[0]["id"]}
    port.close()


def test_a_sensor_that_is_unplugged_is_a_gap_and_not_an_anomaly(tmp_path: Path, bundle: Path, mosquitto: Mosquitto) -> None:
    config = configure(tmp_path, bundle, mosquitto.port)
    with Listener(mosquitto.port, "amiss/#") as listener, agent(config):
        for start_s in (1000.0, 1060.0):
            port = SerialPort(tmp_path / "tty")
            if start_s == 1000.0:
                wait_for(listener, "amiss/n/availability", b"online")
            sender = threading.Thread(target=send, args=(port, recording(800, None, start_s=start_s), 3.0))
            sender.start()
            until(lambda: [p for p in listener.payloads("amiss/n/s/availability")[-1:] if p == b"online"], 15)
            sender.join()
            port.close()
            until(lambda: listener.payloads("amiss/n/s/availability")[-1:] == [b"offline"], 15)
        listener.wait(lambda _: events(listener))
        assert [(event["type"], event["reason"]) for event in events(listener)] == [("gap", "silence")]


def test_replay_once_is_told_as_history_and_ends_by_itself(tmp_path: Path, bundle: Path, mosquitto: Mosquitto) -> None:
    write_recording(tmp_path / "r.csv", recording())
    config = configure(tmp_path, bundle, mosquitto.port)
    with Listener(mosquitto.port, "amiss/#") as listener:
        with agent(config, "--replay", str(tmp_path / "r.csv"), "--once") as process:
            assert process.wait(20) == 0
        listener.wait(lambda _: events(listener))
        (event,) = events(listener)
    assert event["historical"] is True
    assert event["time_ns"] == event["stream_ns"], "a recording's time is wall-clock time"
    assert event["time"].startswith("2001-09-09T01:46:5")


def test_replay_once_without_a_broker_keeps_the_event_and_says_so(tmp_path: Path, bundle: Path) -> None:
    broker = Mosquitto(tmp_path / "broker")
    write_recording(tmp_path / "r.csv", recording())
    config = configure(tmp_path, bundle, broker.port)
    with agent(config, "--replay", str(tmp_path / "r.csv"), "--once") as process:
        assert process.wait(40) == 75
    assert "1 record waits in" in (tmp_path / "agent.log").read_text()
    with broker, Listener(broker.port, "amiss/#") as listener, agent(config):
        listener.wait(lambda _: events(listener))


def test_once_on_a_live_sensor_ends_after_the_first_score(tmp_path: Path, bundle: Path, mosquitto: Mosquitto) -> None:
    port = SerialPort(tmp_path / "tty")
    sender = threading.Thread(target=send, args=(port, recording(800, None), 1.0), daemon=True)
    with agent(configure(tmp_path, bundle, mosquitto.port), "--once") as process:
        sender.start()
        assert process.wait(15) == 0
    sender.join()
    port.close()


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (("p_value = 0.01", "p_value = 0.0001"), 78, "cannot be told"),
        (('clock = "sensor"', 'clock = "sensor"\ncolumns = ["vibration"]'), 78, "current"),
        (("small.amiss", "none.amiss"), 66, "no such bundle"),
    ],
)
def test_what_is_wrong_from_the_start_is_said_before_anything_is_opened(
    change: tuple[str, str], code: int, says: str, tmp_path: Path, bundle: Path
) -> None:
    config = configure(tmp_path, bundle, 1, "[alarm]\np_value = 0.01")
    config.write_text(config.read_text().replace(*change))
    with agent(config) as process:
        assert process.wait(20) == code
    last = (tmp_path / "agent.log").read_text().splitlines()[-1]
    assert last.startswith("amiss: ")
    assert says in last
    assert not (tmp_path / "state").exists()


def test_a_full_disk_ends_the_agent_with_one_line_and_loses_no_earlier_event(
    tmp_path: Path, bundle: Path, mosquitto: Mosquitto
) -> None:
    """The service manager starts it again; until there is room there is no point in pretending."""
    if os.geteuid() != 0:
        pytest.skip("mounts a file system of 128 kB, which only root may")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(small)], check=True)
    try:
        config = configure(tmp_path, bundle, mosquitto.port)
        config.write_text(config.read_text().replace(f"{tmp_path}/state", str(small / "state")))
        write_recording(tmp_path / "r.csv", recording())
        with agent(config, "--replay", str(tmp_path / "r.csv"), "--once") as process:
            assert process.wait(20) == 0  # the control: there is room
        (small / "filler").write_bytes(b"")
        with (small / "filler").open("wb", buffering=0) as filler:
            try:
                while filler.write(bytes(4096)):
                    pass
            except OSError:
                pass
        with agent(config, "--replay", str(tmp_path / "r.csv"), "--once") as process:
            assert process.wait(20) == 74
        assert "full" in (tmp_path / "agent.log").read_text().splitlines()[-1]
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


@pytest.mark.parametrize("wire", ["csv", "json"])
def test_text_lines_in_fits_and_starts_are_one_unbroken_stream(
    wire: str, tmp_path: Path, bundle: Path, mosquitto: Mosquitto
) -> None:
    """What most microcontrollers send, stamped on arrival, by a host that is late now and then."""
    config = configure(tmp_path, bundle, mosquitto.port)
    config.write_text(
        config.read_text().replace('clock = "sensor"', f'format = "{wire}"\ncolumns = ["extra", "current", "vibration"]')
    )
    port = SerialPort(tmp_path / "tty")
    x = normal(600, seed=5)
    x[1, 400:] += 4
    rng = np.random.default_rng(0)
    with Listener(mosquitto.port, "amiss/#") as listener, agent(config):
        wait_for(listener, "amiss/n/availability", b"online")
        started, sent = time.monotonic(), 0
        while sent < x.shape[1]:
            time.sleep(rng.uniform(0.0, 0.12))
            due = min(x.shape[1], round((time.monotonic() - started) * RATE_HZ))
            for vibration, current in x[:, sent:due].T.tolist():
                row = {"extra": 1, "current": current, "vibration": vibration}
                line = json.dumps(row) if wire == "json" else ",".join(map(str, row.values()))
                port.write(line.encode() + b"\r\n")
            sent = due
        listener.wait(lambda _: events(listener))
        first = events(listener)[0]  # a stream with a hole would have told of a gap before; what ends this comes later
        assert (first["type"], first["channels"][0]["channel"]) == ("anomaly_started", "current")
    port.close()


def test_a_device_that_has_to_be_asked_from_the_register_to_the_alert(
    tmp_path: Path, bundle: Path, mosquitto: Mosquitto
) -> None:
    """Modbus RTU, with a line that loses an answer now and then."""
    x, start = normal(4000, seed=5), time.monotonic()
    faulty = threading.Event()

    def measure(device: Slave) -> None:
        now = min(round((time.monotonic() - start) * RATE_HZ), x.shape[1] - 1)
        for address, value in enumerate((x[0, now], x[1, now] + 4 * faulty.is_set())):
            device.registers["input", address] = round(float(value) * 1000) & 0xFFFF

    config = configure(tmp_path, bundle, mosquitto.port)
    modbus = """format = "modbus"
[streams.s.modbus]
unit = 9
parity = "none"
timeout_s = 0.01
registers = [
  {channel = "current", kind = "input", address = 1, scale = 0.001},
  {channel = "vibration", kind = "input", address = 0, scale = 0.001},
]
"""
    config.write_text(config.read_text().replace('clock = "sensor"\nsilence_s = 1.0', modbus))
    device = Slave(tmp_path / "tty", unit=9, tick=measure)
    device.spoil = lambda answer: [answer[:5]] if len(device.requests) % 50 == 0 else [answer]
    with device, Listener(mosquitto.port, "amiss/#") as listener, agent(config):
        wait_for(listener, "amiss/n/s/availability", b"online", 20)
        time.sleep(2.0)
        before = [event["type"] for event in events(listener)]
        faulty.set()
        listener.wait(lambda _: "anomaly_started" in [event["type"] for event in events(listener)][len(before) :])
        assert "anomaly_started" not in before
        started = next(event for event in events(listener) if event["type"] == "anomaly_started")
        assert started["channels"][0]["channel"] == "current"
