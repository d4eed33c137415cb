"""Garbage on a port: `amiss doctor` finds the rate at which it makes sense.

A pseudo-terminal carries bytes and no bits, so the bits are reckoned: what a receiver at the rate that the port has been set to
makes of the line's level, sampled in the middle of each of its own bits.
"""

import contextlib
import fcntl
import json
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from mosquitto import until
from small_bundle import build
from test_doctor import Sandbox, by_what, device, doctor

from deploy.machine import SerialPort
from edge.config import StreamConfig
from edge.operating.doctor import examine
from edge.sensing import sources
from edge.sensing.decoders.frames import encode_frame
from edge.sensing.sources import SerialSource, what_decodes

CHANNELS = ("vibration", "current")


def received(sent: bytes, line_baud: int, baud: int) -> bytes:
    """What a UART at `baud` takes `sent` for, eight bits without parity; idle before and behind."""
    level = [1] * 20
    for byte in sent:
        level += [0, *(byte >> bit & 1 for bit in range(8)), 1]
    step, at, found = line_baud / baud, 0.0, bytearray()
    while True:
        while at < len(level) and level[int(at)]:  # until a start bit begins
            at = int(at) + 1.0
        if at >= len(level):
            return bytes(found)
        places = [int(at + (bit + 1.5) * step) for bit in range(8)]
        found.append(sum((level[place] if place < len(level) else 1) << bit for bit, place in enumerate(places)))
        at += 9.5 * step  # in the stop bit; where that is none, Linux hands the byte over all the same


def test_a_receiver_at_the_right_rate_gets_what_was_sent_and_others_do_not() -> None:
    text = b"0.25,-1.5\r\n0.5,2.25\r\n" + bytes(range(256))
    for baud in sources.USUAL_BAUD:
        assert received(text, baud, baud) == text
        assert received(text, baud, round(baud * 1.01)) == text, "a per cent off does no harm on a real line either"
        assert received(text, baud, 2 * baud) != text
        assert received(text, baud, baud // 2) != text


def frame(at: int) -> bytes:
    return b"\0" + encode_frame(np.array([[0.25, 1.0], [4.0, 4.5]], np.float32) + at % 7, 2 * at, 20_000 * at)


SENDS: dict[str, Callable[[int], bytes]] = {
    "frames": frame,
    "csv": lambda at: b"".join(b"%.3f,4.%d\r\n" % ((at + i) % 9, (at + i) % 10) for i in range(2)),
    "json": lambda at: b"".join(json.dumps({"vibration": at % 9, "current": 4.5}).encode() + b"\n" for _ in range(2)),
    "noise": lambda at: os.urandom(40),
}
TCGETS2 = 0x802C542A  # also knows rates that have no constant, as 250000


class Line:
    """A sensor that sends at a rate of its own, whatever the port is set to."""

    def __init__(self, name: Path, kind: str, baud: int) -> None:
        self.port, self._kind, self._baud, self._ending = SerialPort(name), kind, baud, False
        self.heard_at: set[int] = set()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def set_to(self) -> int:
        return int(struct.unpack("4IB19s2I", fcntl.ioctl(self.port._master, TCGETS2, bytes(44)))[6])

    def _send(self) -> None:
        at = 0
        while not self._ending:
            baud = self.set_to()
            self.heard_at.add(baud)
            self.port.write(received(SENDS[self._kind](at), self._baud, baud))
            at += 1
            time.sleep(0.02)

    def close(self) -> None:
        self._ending = True
        self._thread.join()
        self.port.close()


@contextlib.contextmanager
def line(folder: Path, kind: str, baud: int) -> Iterator[Line]:
    sensor = Line(folder / "tty", kind, baud)
    try:
        yield sensor
    finally:
        sensor.close()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("bundle") / "small.amiss")


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "TRY_S", 0.25)
    monkeypatch.setattr("edge.operating.doctor.LISTEN_S", 0.5)


def config(path: Path, form: str = "frames", baud: int = 115200) -> StreamConfig:
    return StreamConfig(port=str(path), format=form, baud=baud)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("form", "baud", "set_to"),
    [
        ("frames", 921600, 115200),
        ("csv", 9600, 115200),
        ("json", 115200, 9600),
        ("csv", 57600, 38400),
        ("frames", 115200, 115200),
    ],
)
def test_the_right_rate_is_found_and_the_port_left_as_it_was(form: str, baud: int, set_to: int, tmp_path: Path) -> None:
    with line(tmp_path, form, baud) as sensor:
        assert what_decodes(config(tmp_path / "tty", form, set_to), CHANNELS, 100.0) == (baud, form)
        assert sensor.set_to() == set_to


def test_another_format_is_found_too(tmp_path: Path) -> None:
    with line(tmp_path, "csv", 9600):
        assert what_decodes(config(tmp_path / "tty", "json"), CHANNELS, 100.0) == (9600, "csv")


def test_noise_makes_sense_at_no_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "TRY_S", 0.1)
    with line(tmp_path, "noise", 115200) as sensor:
        assert what_decodes(config(tmp_path / "tty"), CHANNELS, 100.0) is None
        assert sensor.heard_at >= {9600, 115200, 921600}
        assert sensor.set_to() == 115200


def test_it_ends_where_samples_are_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LONGEST_TRY_S", 1.0)
    began = time.monotonic()
    with line(tmp_path, "noise", 115200):
        assert what_decodes(config(tmp_path / "tty"), CHANNELS, 10.0) is None
    assert time.monotonic() - began < 3


def test_a_sensor_that_starts_anew_when_it_is_opened_is_waited_for(tmp_path: Path) -> None:
    """As an Arduino does, for a second or two."""
    with line(tmp_path, "csv", 9600) as sensor:
        send, since = sensor.port.write, time.monotonic()
        sensor.port.write = lambda data: send(data) if time.monotonic() - since > 1.0 else None  # type: ignore[method-assign]
        assert what_decodes(config(tmp_path / "tty", "csv"), CHANNELS, 100.0) == (9600, "csv")


def toml(folder: Path, bundle: Path, more: str) -> Path:
    path = device(folder, bundle, folder / "tty")
    path.write_text(path.read_text().replace('columns = ["vibration", "y", "current", "t", "speed"]', more))
    return path


def test_the_doctor_names_it_and_the_check_only_looks(bundle: Path, tmp_path: Path) -> None:
    with line(tmp_path, "csv", 9600) as sensor:
        path = toml(tmp_path, bundle, 'format = "csv"')
        found = doctor(path)["port of s"]
        assert (found.severity, found.exit_code) == ("fault", 69)
        assert "no valid sample" in found.message
        assert found.repair == "baud = 9600 in device.toml: tried, and the sensor makes sense so"
        sensor.heard_at.clear()
        quick = by_what(examine(path, quick=True, host=Sandbox(), environ={}))["port of s"]
        assert quick.severity == "fault"
        assert "baud = 115200" in quick.repair
        assert sensor.heard_at == {115200}
        right = doctor(toml(tmp_path, bundle, 'format = "csv"\nbaud = 9600'))["port of s"]
        assert right.severity == "ok", "the control: with what it says, all is well"


def test_the_doctor_says_when_nothing_helps_and_what_is_wrong_with_the_format(bundle: Path, tmp_path: Path) -> None:
    with line(tmp_path, "csv", 115200):
        found = doctor(toml(tmp_path, bundle, 'format = "frames"'))["port of s"]
        assert found.repair.startswith('format = "csv" in device.toml')
    with line(tmp_path, "noise", 115200):
        found = doctor(toml(tmp_path, bundle, 'format = "csv"'))["port of s"]
        assert "nor does any usual rate" in found.repair


def test_silence_is_no_matter_of_rates(bundle: Path, tmp_path: Path) -> None:
    port = SerialPort(tmp_path / "tty")
    try:
        began = time.monotonic()
        found = doctor(toml(tmp_path, bundle, 'format = "csv"'))["port of s"]
        assert "nothing arrives" in found.repair
        assert time.monotonic() - began < 3
    finally:
        port.close()


def test_what_is_pulled_out_meanwhile_is_said(tmp_path: Path) -> None:
    from edge.errors import SourceLostError

    sensor = Line(tmp_path / "tty", "noise", 115200)
    source = SerialSource(config(tmp_path / "tty"), CHANNELS, 100.0)
    assert source.received == 0
    threading.Timer(0.5, sensor.close).start()
    with pytest.raises(SourceLostError):
        what_decodes(config(tmp_path / "tty"), CHANNELS, 100.0)
    until(lambda: not sensor._thread.is_alive())
