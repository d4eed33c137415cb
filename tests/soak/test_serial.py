"""Rows 14 and 15 of what is promised: noise and garbage give no wrong value; what is unplugged, silent or torn is a gap.

Each test runs in the suite with a small count and, marked `soak`, with the full one.
"""

import json
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from cobs import cobs
from mosquitto import Listener, Mosquitto, until
from small_bundle import members, normal

from deploy.machine import SerialPort
from edge.bundle import Bundle, write_bundle
from edge.config import AlarmConfig, StreamConfig
from edge.operating import system
from edge.profiles import ModbusConfig, RegisterConfig
from edge.sensing.decoders import open_decoder
from edge.sensing.decoders.frames import FrameDecoder, encode_frame
from edge.sensing.modbus import ModbusMaster
from edge.sensing.windows import MissingPolicy
from edge.signal import Float32, Samples
from edge.testing import _size, flip_bits


def counts(few: int, many: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.soak)])


# Noise.

BIT_ERRORS = 1e-3
PER_FRAME = 4
AT_ONCE = 2000
"""Frames whose bits are flipped at once."""


class Blind(FrameDecoder):
    """The control: it believes every checksum."""

    def _parse(self, piece: bytes) -> tuple[int, int, Float32] | str:
        try:
            body = cobs.decode(piece)[:-4]
        except cobs.DecodeError:
            return "no frame"
        return super()._parse(cobs.encode(body + zlib.crc32(body).to_bytes(4, "little")))


def noisy_frames(decoder: FrameDecoder, count: int) -> tuple[int, int, int]:
    """Samples that are wrong, undamaged frames that were missed, undamaged frames. Sample i holds (i, i + 0.25)."""
    rng = np.random.default_rng(1)
    wrong = missed = undamaged = 0
    for first in range(0, count, AT_ONCE):
        number = np.arange(first * PER_FRAME, (first + AT_ONCE) * PER_FRAME, dtype=np.float32).reshape(AT_ONCE, PER_FRAME)
        sent = [encode_frame([x, x + np.float32(0.25)], int(x[0]), int(x[0]) * 2500) for x in number]
        hit = flip_bits(b"".join(sent), rng, BIT_ERRORS)
        whole, at = [], 0
        for x, frame in zip(number, sent, strict=True):
            if hit[at : at + len(frame)] == frame:
                whole.append(x[0])
            at += len(frame)
        cuts = [0, *np.sort(rng.integers(0, len(hit), 20)).tolist(), len(hit)]
        got = np.concatenate([decoder.feed(hit[a:b], 0).x for a, b in pairwise(cuts)], axis=1)
        true = (got[0] >= 0) & (got[0] < count * PER_FRAME) & (got[0] % 1 == 0) & (got[1] == got[0] + np.float32(0.25))
        wrong += int((~true).sum())
        undamaged += len(whole)
        missed += len(np.setdiff1d(whole, got[0]))
    return wrong, missed, undamaged


@counts(20_000, 1_000_000)
def test_at_a_bit_error_rate_of_1e_3_no_value_is_wrong_and_99_percent_of_the_undamaged_frames_get_through(count: int) -> None:
    wrong, missed, undamaged = noisy_frames(FrameDecoder("ab", "ab", 2.5e6), count)
    print(f"{count} frames, {undamaged} undamaged, {1 - missed / undamaged:.2%} of them accepted, {wrong} wrong values")
    assert wrong == 0
    assert missed < 0.01 * undamaged
    assert undamaged > 0.5 * count


def test_without_the_checksum_wrong_values_would_get_through() -> None:
    """The control of the test above."""
    wrong, _, _ = noisy_frames(Blind("ab", "ab", 2.5e6), 2_000)
    assert wrong > 100


# Garbage.

CHUNK = 4096


def listener_for(format: str) -> tuple[Any, Callable[[bytes], int]]:
    """Somebody who listens to that format, and how many values he hears in some bytes."""
    if format == "modbus":
        registers = (RegisterConfig(channel="a", address=0), RegisterConfig(channel="b", address=1))
        master = ModbusMaster(ModbusConfig(registers=registers), "ab")

        def asked(data: bytes) -> int:
            master.begin()
            master.ask(0)
            master.feed(data)
            kept = len(master._pending)
            assert kept < master.groups[0].answer_size
            master.end()
            return int(np.isfinite(master.row()).sum())

        return master, asked
    decoder = open_decoder(StreamConfig(port="p", format=format), "ab", 400)  # type: ignore[arg-type]
    return decoder, lambda data: decoder.feed(data, 0).x.size


@pytest.mark.parametrize("format", ["frames", "modbus", "csv", "json"])
@counts(2_000_000, 100_000_000)
def test_garbage_gives_no_value_and_takes_no_memory(count: int, format: str) -> None:
    rng = np.random.default_rng(2)
    who, hear = listener_for(format)
    hear(rng.bytes(CHUNK))
    resident, started, values = system.resident_bytes() or 0, time.monotonic(), 0
    for _ in range(count // CHUNK):
        values += hear(rng.bytes(CHUNK))
    took_s, grown = time.monotonic() - started, (system.resident_bytes() or 0) - resident
    print(
        f"{format}: {count / 1e6:.0f} MB of garbage in {took_s:.1f} s, {values} values, {who.corrupt} damaged, {grown} B more"
    )
    assert who.corrupt > 0
    assert _size(who) < 32 * 1024
    assert grown < 8e6
    if format in ("frames", "modbus"):  # lines have nothing to tell garbage by but that it is none
        assert values == 0


# Unplugged, silent, torn. The real program on real pseudo-terminals, and a real broker.

RATE_HZ = 100.0
FRAME = 5


class Sensor:
    """Sends in real time; the stable name leads to another terminal whenever it is plugged in."""

    def __init__(self, name: Path) -> None:
        self.name, self._sequence = name, 0
        self._rng = np.random.default_rng(5)
        self.port: SerialPort | None = None

    def plug_in(self) -> None:
        self.port = SerialPort(self.name)

    def unplug(self) -> None:
        assert self.port is not None
        self.port.close()

    def frame(self) -> bytes:
        x = normal(FRAME, int(self._rng.integers(1 << 30)))
        frame = encode_frame(x, self._sequence, self._sequence * 10_000)
        self._sequence += FRAME
        return frame

    def send(self, seconds: float) -> None:
        assert self.port is not None
        for _ in range(round(seconds * RATE_HZ / FRAME)):
            self.port.write(self.frame())
            time.sleep(FRAME / RATE_HZ)

    def skip(self, seconds: float) -> None:
        """It goes on measuring while nobody hears it."""
        self._sequence += round(seconds * RATE_HZ)
        time.sleep(seconds)


@contextmanager
def agent(folder: Path, broker: Mosquitto) -> Iterator[Path]:
    manifest, files = members()
    write_bundle(folder / "small.amiss", manifest, files)
    config = folder / "device.toml"
    config.write_text(
        f"""\
node = "n"
bundle = "small.amiss"
state_dir = "state"
[streams.s]
port = "{folder}/by-id/*sensor*"
silence_s = 1.0
[alarm]
pending_windows = 8  # 3 in a row happen by chance in as much noise as 200 times need
[mqtt]
host = "127.0.0.1"
port = {broker.port}
"""
    )
    with (folder / "agent.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "amiss", "run", "--config", str(config)], stderr=log, cwd=folder)
    try:
        yield folder / "agent.log"
        assert process.poll() is None, (folder / "agent.log").read_text()[-2000:]
    finally:
        process.kill()
        process.wait(10)


KINDS = ("unplugged", "torn and unplugged", "silent", "torn", "noise", "long away")


def trouble(sensor: Sensor, kind: str, rng: np.random.Generator) -> None:
    """… and what was before it, all of it longer than what a window may fill."""
    port = sensor.port
    assert port is not None
    if kind == "torn":  # half a frame, the rest of it and the next one never come
        port.write(sensor.frame()[: int(rng.integers(1, 50))])
        sensor.frame()
    elif kind == "noise":
        port.write(rng.bytes(300) + b"\0")
        sensor.skip(0.2)
    elif kind == "silent":
        sensor.skip(1.7)
    else:
        if kind == "torn and unplugged":
            port.write(sensor.frame()[: int(rng.integers(1, 50))])
        sensor.unplug()
        sensor.skip(6.0 if kind == "long away" else float(rng.uniform(0.2, 1.0)))
        sensor.plug_in()


def suffer(folder: Path, broker: Mosquitto, count: int) -> tuple[list[str], list[float]]:
    """Types of the events of a machine that is well while its line is not, and how long after its return it was heard again."""
    rng = np.random.default_rng(3)
    sensor = Sensor(folder / "by-id/usb-sensor-if00")
    back_s: list[float] = []
    with Listener(broker.port, "amiss/#") as listener, agent(folder, broker):

        def online() -> bool:
            return listener.payloads("amiss/n/s/availability")[-1:] == [b"online"]

        def kinds() -> list[str]:
            return [json.loads(payload)["type"] for payload in listener.payloads("amiss/n/s/event")]

        def sends_until(condition: Callable[[], bool]) -> None:
            def heard() -> bool:
                sensor.send(0.1)
                return condition()

            until(heard)

        sensor.plug_in()
        sends_until(online)
        for i in range(count):
            kind = KINDS[i % len(KINDS)] if i % 30 < 29 else "long away"
            sensor.send(1.0)
            before = len(kinds())
            trouble(sensor, "unplugged" if kind == "long away" and i % 30 < 29 else kind, rng)
            started = time.monotonic()
            sends_until(online)
            back_s.append(time.monotonic() - started)
            sensor.send(0.5)
            sends_until(lambda before=before: len(kinds()) > before)  # type: ignore[misc]  # bound now, not at the next turn
        sensor.send(0.5)
        told = kinds()
    sensor.unplug()
    return told, back_s


@counts(6, 200)
def test_unplugged_silent_or_torn_it_is_heard_again_within_5_s_and_told_as_a_gap(
    tmp_path: Path, mosquitto: Mosquitto, count: int
) -> None:
    told, back_s = suffer(tmp_path, mosquitto, count)
    print(f"{count} times: back within {max(back_s):.2f} s, half of them within {np.median(back_s):.2f} s; {len(told)} gaps")
    assert set(told) == {"gap"}
    assert len(told) >= count
    assert max(back_s) < 5.0


def test_if_a_window_spanned_the_gap_it_would_be_told_as_an_anomaly(tmp_path: Path) -> None:
    """The control: holes of any length are filled. No bundle that opens says so."""
    manifest, files = members()
    write_bundle(tmp_path / "small.amiss", manifest, files)
    bundle = Bundle.open(tmp_path / "small.amiss")
    n = round(RATE_HZ)
    time_ns = np.concatenate([np.arange(n), np.arange(2 * n, 3 * n)]) * round(1e9 / RATE_HZ)
    sent = Samples(time_ns, np.concatenate([normal(n, 1), normal(n, 2)], axis=1))

    def told(policy: MissingPolicy) -> list[str]:
        bundle.manifest = msgspec.structs.replace(manifest, missing=policy)
        return [event.type for event in bundle.pipeline(AlarmConfig(pending_windows=8)).judge(sent).events]

    assert told(MissingPolicy()) == ["gap"]
    assert "anomaly_started" in told(MissingPolicy(max_fill=10**6))
