"""A sensor on a real pseudo-terminal: unplugged, plugged in again, silent, torn, busy, absent. And recordings in its place."""

import contextlib
import errno
import fcntl
import os
import termios
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import serial
from usb import Machine

from edge.config import ModbusConfig, RegisterConfig, StreamConfig
from edge.errors import AccessError, ConfigError, DataError, NoInputError, SourceLostError
from edge.sensing.decoders.frames import encode_frame
from edge.sensing.ports import Ports
from edge.sensing.recordings import Recording, write_recording
from edge.sensing.sources import IDLE_S, MAX_CHUNK, ReplaySource, SerialSource, Source, port_source
from edge.sensing.windows import Windower
from edge.signal import Float32, Gap, Samples

RATE_HZ = 400.0
PERIOD_NS = 1e9 / RATE_HZ
N = 8


class Sensor:
    """The far end of a serial line. Plugging it in makes a new pseudo-terminal and points the stable name at it."""

    def __init__(self, name: Path) -> None:
        self.name = name
        self.sequence = 0
        self.started_us = 1_000_000
        self._fd: int | None = None

    def plug_in(self) -> None:
        self._fd, slave = os.openpty()
        tty.setraw(slave)
        with contextlib.suppress(FileNotFoundError):
            self.name.unlink()
        self.name.symlink_to(os.ttyname(slave))
        os.close(slave)

    def unplug(self) -> None:
        if self._fd is not None:
            self.name.unlink()
            os.close(self._fd)
            self._fd = None

    def write(self, data: bytes) -> None:
        assert self._fd is not None
        os.write(self._fd, data)

    def frame(self, n: int = N) -> bytes:
        number = np.arange(self.sequence, self.sequence + n)
        frame = encode_frame(np.stack([number, -number]), self.sequence, self.started_us + round(self.sequence * 2500))
        self.sequence += n
        return frame


@pytest.fixture
def sensor(tmp_path: Path) -> Iterator[Sensor]:
    made = Sensor(tmp_path / "usb-sensor")
    made.plug_in()
    yield made
    made.unplug()


def source(sensor: Sensor, **settings: object) -> SerialSource:
    config = StreamConfig(port=str(sensor.name), **{"silence_s": 1.0, **settings})  # type: ignore[arg-type]
    return SerialSource(config, ("a", "b"), RATE_HZ)


def take(stream: Iterator[Samples], n: int) -> Samples:
    """At least `n` samples."""
    parts: list[Samples] = []
    while sum(map(len, parts)) < n:
        parts.append(next(stream))
    return Samples(np.concatenate([part.time_ns for part in parts]), np.concatenate([part.x for part in parts], axis=1))


def open_stream(made: SerialSource) -> Iterator[Samples]:
    """A stream whose port is open: opening empties the driver's buffer, so nobody may write before."""
    stream = made.samples()
    assert not len(next(stream))
    return stream


# A sensor.


def test_samples_arrive_with_the_hosts_time(sensor: Sensor) -> None:
    made = source(sensor)
    stream = open_stream(made)
    before_ns = time.monotonic_ns()
    sensor.write(sensor.frame() + sensor.frame())
    got = take(stream, 2 * N)
    assert got.x.tolist() == [list(range(16)), [-i for i in range(16)]]
    assert before_ns < got.time_ns[-1] < time.monotonic_ns()
    assert np.diff(got.time_ns).tolist() == [PERIOD_NS] * 15
    wall_ns = int(got.time_ns[-1]) + made.epoch_offset_ns()
    assert abs(wall_ns - time.time_ns()) < 0.5e9
    made.close()


def test_with_the_sensors_clock_stream_time_is_the_sensors_and_wall_time_is_now(sensor: Sensor) -> None:
    made = source(sensor, clock="sensor")
    assert abs(made.epoch_offset_ns() + time.monotonic_ns() - time.time_ns()) < 0.5e9, "before the first sample"
    stream = open_stream(made)
    sensor.write(sensor.frame())
    got = take(stream, N)
    assert got.time_ns[0] == 1_000_000_000
    assert abs(int(got.time_ns[-1]) + made.epoch_offset_ns() - time.time_ns()) < 0.5e9
    made.close()


def test_a_silent_sensor_lets_the_caller_live_and_is_lost_after_a_while(sensor: Sensor) -> None:
    made = source(sensor, silence_s=1.2)
    moments = [time.monotonic()]
    with pytest.raises(SourceLostError, match=r"no valid sample for 1.2 s; nothing arrives at all"):
        moments.extend(time.monotonic() for samples in made.samples() if not len(samples))
    turns = np.diff(moments)
    assert time.monotonic() - moments[0] >= 1.2
    assert len(turns) <= 1.2 / IDLE_S + 2
    assert np.median(turns) < 1.5 * IDLE_S
    assert made._port is None


def test_a_sensor_that_falls_silent_is_not_told_to_be_of_another_format(sensor: Sensor) -> None:
    made = source(sensor, silence_s=0.3)
    stream = open_stream(made)
    sensor.write(sensor.frame())
    take(stream, N)
    with pytest.raises(SourceLostError, match="nothing arrives at all"):
        list(stream)


def test_a_sensor_that_sends_now_and_then_is_alive(sensor: Sensor) -> None:
    made = source(sensor, silence_s=0.5)
    stream = open_stream(made)
    for _ in range(3):
        threading.Timer(0.35, lambda: sensor.write(sensor.frame())).start()  # longer than a read waits
        assert len(take(stream, N)) == N
    made.close()


def test_noise_is_no_sign_of_life(sensor: Sensor) -> None:
    """Only valid samples count, and the message says what was wrong with the others."""
    made = source(sensor, silence_s=0.3)
    stop = threading.Event()

    def babble() -> None:
        while not stop.wait(0.02):
            sensor.write(b"\x03\x42\x17\0")

    thread = threading.Thread(target=babble)
    thread.start()
    try:
        with pytest.raises(SourceLostError, match=r"damaged, the last: .* baud = 115200, format = 'frames' and columns"):
            assert not sum(map(len, made.samples()))
    finally:
        stop.set()
        thread.join()
    assert made.corrupt > 3


def test_a_stream_in_another_format_is_told_apart_from_noise(sensor: Sensor) -> None:
    made = source(sensor, silence_s=0.3)
    stream = open_stream(made)
    sensor.write(b"1,2\n" * 5)
    with pytest.raises(SourceLostError, match="no end of a sample: are baud = 115200 and format = 'frames' right"):
        list(stream)


def test_a_torn_frame_is_one_damaged_frame_and_the_loss_is_known(sensor: Sensor) -> None:
    made = source(sensor)
    stream = open_stream(made)
    sensor.write(sensor.frame())
    first = take(stream, N)
    sensor.write(sensor.frame()[:-20])  # the rest of it never comes
    sensor.write(b"\0" + sensor.frame())
    second = take(stream, N)
    assert (made.corrupt, made.lost) == (1, N)
    assert second.x[0, 0] == 2 * N
    assert second.time_ns[0] - first.time_ns[-1] == pytest.approx((N + 1) * PERIOD_NS, rel=0.1)
    made.close()


def test_a_backlog_is_read_whole(sensor: Sensor) -> None:
    """The driver shows at most 4 KiB at a time; read as several chunks, the older part would seem to be as new."""
    backlog = b"".join(sensor.frame() for _ in range(200))
    assert len(backlog) > 4 * 4096

    class Backlogged(serial.Serial):
        """A pseudo-terminal holds 4 KiB in all, and who refills it in time is up to the scheduler; so this one is scripted."""

        left = backlog

        @property
        def in_waiting(self) -> int:
            return min(4096, len(self.left))

        def read(self, size: int = 1) -> bytes:
            data, self.left = self.left[:size], self.left[size:]
            return data

    port = Backlogged()
    made = SerialSource(StreamConfig(port="p"), "ab", RATE_HZ, connect=lambda config: port, sleep=lambda s: None)
    assert made._read(port) == backlog
    assert port.left == b""


def test_a_port_that_never_runs_dry_does_not_keep_the_caller_waiting(sensor: Sensor) -> None:
    class Torrent(serial.Serial):
        in_waiting = 4096

        def read(self, size: int = 1) -> bytes:
            return bytes(size)

        def close(self) -> None:
            pass

    made = SerialSource(StreamConfig(port="p"), "ab", RATE_HZ, connect=lambda config: Torrent(), sleep=lambda s: None)
    assert len(made._read(Torrent())) <= MAX_CHUNK + 4096


# Unplugged and plugged in again.


def test_unplug_and_replug_is_a_gap_of_known_size_and_never_a_window(sensor: Sensor) -> None:
    made = source(sensor)
    windower = Windower(2, RATE_HZ, 4, 4)
    windows, gaps = 0, list[Gap]()
    for _ in range(5):
        stream = open_stream(made)
        for frame in (sensor.frame(), sensor.frame()):
            sensor.write(frame)
            batch = windower.feed(take(stream, N))
            gaps += batch.gaps
            windows += len(batch)
            number = batch.x[:, 0]
            assert (np.diff(number, axis=1) == 1).all(), "a window spans the gap"
        sensor.unplug()
        with pytest.raises(SourceLostError, match=r"usb-sensor: lost while reading: .*plugged in"):
            assert not sum(map(len, stream))
        with pytest.raises(SourceLostError, match="usb-sensor: no such port"):
            next(made.samples())
        sensor.frame()  # it goes on counting
        sensor.plug_in()
    assert made.lost == 4 * N
    assert made.corrupt == 0
    assert len(gaps) == 4
    assert windows == 5 * 2 * N // 4


def test_without_the_reset_of_the_decoder_the_torn_frame_would_count_as_damage(
    sensor: Sensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: what was half received before the port was lost must not be glued to what comes after."""

    def corrupt_after_replug(made: SerialSource) -> int:
        stream = open_stream(made)
        sensor.write(sensor.frame() + sensor.frame()[:20])
        take(stream, N)
        with contextlib.suppress(StopIteration):
            next(stream)
        sensor.unplug()
        with pytest.raises(SourceLostError):
            list(stream)
        sensor.plug_in()
        stream = open_stream(made)
        sensor.write(sensor.frame()[20:] + sensor.frame())
        assert take(stream, N).x[0, -1] == sensor.sequence - 1
        made.close()
        return made.corrupt

    assert corrupt_after_replug(source(sensor)) == 0
    forgetful = source(sensor)
    monkeypatch.setattr(forgetful._decoder, "reset", lambda: None)
    assert corrupt_after_replug(forgetful) == 1


def test_an_iterator_that_was_given_up_does_not_close_the_port_of_the_next(sensor: Sensor) -> None:
    made = source(sensor)
    old = made.samples()
    next(old)
    made.close()
    new = open_stream(made)
    old.close()  # type: ignore[attr-defined]
    sensor.write(sensor.frame())
    assert len(take(new, N)) == N
    made.close()


@pytest.mark.parametrize("port", ["usb:0403:6001:A10K", "usb:0403:6001", "{dev}/serial/by-id/usb-0403_6001_A10K-if00-port0"])
def test_what_comes_back_under_another_name_is_found_by_what_it_is(tmp_path: Path, port: str) -> None:
    machine = Machine(tmp_path)
    other = None
    made = SerialSource(
        StreamConfig(port=port.format(dev=machine.dev), format="csv"), "a", 400, ports=Ports(machine.sys, machine.dev)
    )
    for turn in range(3):
        plug = machine.plug_in()
        assert plug.name == f"ttyUSB{turn % 2}"
        stream = open_stream(made)
        plug.write(b"skipped\n1\n")
        assert take(stream, 1).x.tolist() == [[1]]
        machine.unplug(plug)
        with pytest.raises(SourceLostError, match="lost while reading"):
            list(stream)
        with pytest.raises(SourceLostError, match="no such port; there are: "):
            next(made.samples())
        # Meanwhile another device takes the name, and gives it back.
        other = machine.plug_in("1a86", "7523", "") if other is None else machine.unplug(other)


def test_a_port_that_is_busy_is_named_as_configured_and_as_it_is(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    plug = machine.plug_in()
    first, second = (
        SerialSource(StreamConfig(port="usb:0403:6001", format="csv"), "a", 400, ports=Ports(machine.sys, machine.dev))
        for _ in range(2)
    )
    stream = first.samples()
    next(stream)
    with pytest.raises(SourceLostError, match=r"usb:0403:6001 \(/.*/ttyUSB0\): busy, .*`fuser -v /.*/ttyUSB0` names it"):
        next(second.samples())
    first.close()
    machine.unplug(plug)


# Ports that cannot be opened.


@pytest.mark.parametrize("format", ["csv", "modbus"])
def test_a_port_that_goes_while_it_is_opened_is_lost_and_nothing_stays_open(tmp_path: Path, format: str) -> None:
    """… at whatever moment: the cable is pulled after a while that differs each time."""
    rng = np.random.default_rng(0)
    registers = (RegisterConfig(channel="a", address=0),)
    modbus = ModbusConfig(parity="none", timeout_s=0.01, registers=registers) if format == "modbus" else None
    config = StreamConfig(port=str(tmp_path / "tty"), format=format, modbus=modbus, silence_s=0.1)  # type: ignore[arg-type]
    made = port_source(config, "a", 100)
    open_before, lost_at = len(os.listdir("/proc/self/fd")), set[str]()
    for _ in range(150):
        sensor = Sensor(tmp_path / "tty")
        sensor.plug_in()
        cable = threading.Timer(float(rng.uniform(0, 0.002)), sensor.unplug)
        cable.start()
        with pytest.raises(SourceLostError) as caught:
            for _ in made.samples():
                pass
        lost_at.add(str(caught.value).removeprefix(f"{tmp_path}/tty: ")[:12])
        cable.join()
    assert "lost while r" in lost_at or "lost while a" in lost_at
    assert len(os.listdir("/proc/self/fd")) == open_before


@pytest.mark.parametrize("error", [termios.error(5, "Input/output error"), OSError(errno.EIO, "x"), OSError(errno.ENXIO, "x")])
def test_every_way_to_fail_at_opening_is_a_lost_source(sensor: Sensor, error: Exception) -> None:
    def connect(config: StreamConfig) -> serial.Serial:
        raise error

    made = SerialSource(StreamConfig(port=str(sensor.name)), "ab", RATE_HZ, connect=connect)
    with pytest.raises(SourceLostError):
        next(made.samples())


def test_an_absent_port_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    made = SerialSource(StreamConfig(port=str(tmp_path / "ttyUSB9")), "ab", RATE_HZ)
    with pytest.raises(SourceLostError, match=r"ttyUSB9: no such port; there (are: /dev/|is none at all)"):
        next(made.samples())


def test_a_busy_port_says_so(sensor: Sensor) -> None:
    first, second = source(sensor), source(sensor)
    stream = open_stream(first)
    with pytest.raises(SourceLostError, match=r"usb-sensor: busy, another program has it open; `fuser"):
        next(second.samples())
    stream.close()  # type: ignore[attr-defined]
    next(second.samples())
    second.close()


def test_without_the_lock_two_would_steal_each_others_bytes(sensor: Sensor) -> None:
    """Negative control: that the second is refused is the lock's doing, not the port's."""
    held = os.open(sensor.name, os.O_RDWR | os.O_NOCTTY)
    second = source(sensor)
    next(second.samples())
    second.close()
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(SourceLostError, match="busy"):
        next(second.samples())
    os.close(held)


@pytest.mark.parametrize("name", ["file", "folder"])
def test_what_is_no_port_is_lost_and_not_a_bug(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.mkdir() if name == "folder" else path.touch()
    with pytest.raises(SourceLostError, match=name):
        next(SerialSource(StreamConfig(port=str(path)), "ab", RATE_HZ).samples())


def test_a_baud_rate_that_the_port_cannot_do_is_a_setting(sensor: Sensor) -> None:
    with pytest.raises(ConfigError, match="set baud"):
        next(source(sensor, baud=2**40).samples())


def refusing(code: int, times: int, sensor: Sensor) -> SerialSource:
    """The port's own refusal cannot be had by a superuser."""
    left = [times]

    def connect(config: StreamConfig) -> serial.Serial:
        left[0] -= 1
        if left[0] >= 0:
            raise serial.SerialException(code, os.strerror(code))
        return serial.Serial(config.port, timeout=0.01)

    slept: list[float] = []
    made = SerialSource(StreamConfig(port=str(sensor.name)), "ab", RATE_HZ, connect=connect, sleep=slept.append)
    made.slept = slept  # type: ignore[attr-defined]
    return made


def test_no_right_to_open_names_the_group(sensor: Sensor) -> None:
    with pytest.raises(AccessError, match="group dialout"):
        next(refusing(errno.EACCES, 2, sensor).samples())


def test_a_device_that_was_just_plugged_in_gets_a_second_to_obtain_its_group(sensor: Sensor) -> None:
    made = refusing(errno.EACCES, 1, sensor)
    next(made.samples())
    assert made.slept == [1.0]  # type: ignore[attr-defined]
    made.close()


def test_columns_that_do_not_fit_are_refused_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs b"):
        SerialSource(StreamConfig(port=str(tmp_path / "absent"), columns=("a",)), ("a", "b"), RATE_HZ)


def test_lines_come_through_too(sensor: Sensor) -> None:
    made = source(sensor, format="csv", columns=("b", "a"))
    stream = open_stream(made)
    sensor.write(b"5,0\nb,a\n1,2\n3,")
    assert take(stream, 1).x.tolist() == [[2], [1]], "the first line after opening may be half a line"
    sensor.write(b"4\n")
    assert take(stream, 1).x.tolist() == [[4], [3]]
    made.close()


# Recordings.


def ramp(n: int, start_ns: int = 0, channels: tuple[str, ...] = ("a", "b"), rate_hz: float = 100.0) -> Recording:
    time_ns = start_ns + (np.arange(n) * 1e9 / rate_hz).astype(np.int64)
    x: Float32 = (np.arange(n) + 1000.0 * np.arange(len(channels))[:, None]).astype(np.float32)
    return Recording("r", channels, time_ns, x)


def test_replay_gives_all_recordings_in_order_with_the_models_channels(tmp_path: Path) -> None:
    write_recording(tmp_path / "1.csv", ramp(5000))
    write_recording(tmp_path / "2.csv", ramp(10, start_ns=10**12))
    made: Source = ReplaySource([tmp_path], ("b",))
    parts = list(made.samples())
    x = np.concatenate([part.x for part in parts], axis=1)
    assert x.tolist() == [[*range(1000, 6000), *range(1000, 1010)]]
    assert parts[-1].time_ns[0] == 10**12
    assert made.epoch_offset_ns() == 0
    assert sum(map(len, made.samples())) == 5010, "again from the start"
    made.close()


def test_replay_refuses_what_does_not_fit(tmp_path: Path) -> None:
    write_recording(tmp_path / "1.csv", ramp(100))
    with pytest.raises(DataError, match=r"1\.csv: no column c; it has a, b, the model needs a, c"):
        list(ReplaySource([tmp_path], ("a", "c")).samples())
    with pytest.raises(DataError, match=r"1\.csv: 100 samples a second, the model needs 400"):
        list(ReplaySource([tmp_path], ("a",), rate_hz=400).samples())
    assert list(ReplaySource([tmp_path], ("a",), rate_hz=99).samples())
    with pytest.raises(NoInputError):
        ReplaySource([tmp_path / "absent"], ("a",))
    with pytest.raises(ValueError, match="speed"):
        ReplaySource([tmp_path], ("a",), 0.0)


class Clock:
    """Time passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now_ns = 5 * 10**9
        self.slept: list[float] = []

    def __call__(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_ns += max(1, round(seconds * 1e9))


@pytest.mark.parametrize("speed", [0.5, 1.0, 60.0])
def test_replay_at_a_speed_takes_its_time_and_lets_the_caller_live(tmp_path: Path, speed: float) -> None:
    """… also through a hole of a minute in the recording."""
    a, b = ramp(1000), ramp(1000, start_ns=70 * 10**9)
    whole = Recording("r", a.channels, np.concatenate([a.time_ns, b.time_ns]), np.concatenate([a.x, b.x], axis=1))
    write_recording(tmp_path / "1.csv", whole)
    clock = Clock()
    start_ns = clock()
    made = ReplaySource([tmp_path], ("a", "b"), speed, clock=clock, sleep=clock.sleep)
    got = 0
    for samples in made.samples():
        got += len(samples)
        if len(samples):
            assert (clock() - start_ns) * speed >= samples.time_ns[-1] - 1e6
            assert (clock() - start_ns) * speed <= samples.time_ns[-1] + 0.2e9 * speed
    assert got == 2000
    assert (clock() - start_ns) / 1e9 == pytest.approx(79.99 / speed, rel=0.01)
    assert max(clock.slept) <= IDLE_S
