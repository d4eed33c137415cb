"""The only code that opens a sensor, or a recording in its place.

The caller opens, iterates, and when the sensor is lost waits and iterates again; counters and sequence numbers go on:

    source = SerialSource(config, channels, rate_hz)
    while True:
        try:
            for samples in source.samples(): …
        except SourceLostError: …  # back off, report, go round
"""

import contextlib
import errno
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import serial

from edge.config import StreamConfig
from edge.errors import AccessError, ConfigError, DataError, SourceLostError
from edge.sensing.decoders import open_decoder
from edge.sensing.recordings import Recording, find_recordings, match_channels, read_recording
from edge.signal import Samples

CHUNK_S = 0.02
"""Bytes are collected for this long: per chunk the decoder costs some 25 µs, whatever is in it."""
LONGEST_CHUNK_S = 0.1
"""However seldom a window is complete: what an alert may wait for bytes that need not be waited for."""
IDLE_S = 0.5
"""However silent the sensor, the caller gets an empty chunk this often: time to ping a watchdog, or to stop."""
MAX_CHUNK = 256 * 1024
"""A backlog is read whole, because its newest byte is the one that arrived now. But a port that never runs dry must not
keep the caller waiting: at 3 Mbaud this is most of a second."""

_MUCH, _REFILL_S = 2048, 0.002  # who has just emptied half of the driver's buffer waits for it to be filled again


def collect_s(hop_s: float) -> float:
    """How long to collect bytes when a window is complete every `hop_s`.

    Waking up costs a slow stream more than its samples do, and between two windows there is nothing to do with them.
    """
    return min(max(CHUNK_S, hop_s / 4), LONGEST_CHUNK_S)


class Source(Protocol):
    def samples(self) -> Iterator[Samples]:
        """Opens, then yields what comes, now and then nothing. Raises `SourceLostError`; may be called again after it."""

    def epoch_offset_ns(self) -> int:
        """Stream time + this = nanoseconds since the epoch, as far as is known now: the wall clock may still be set."""

    def close(self) -> None: ...


class SerialSource:
    """A sensor on a serial port.

    Raises `ConfigError` at once when the sensor's columns do not hold the model's channels or the port cannot do the baud
    rate; `samples()` raises `SourceLostError` (port absent, busy, gone, silent) and `AccessError` (no right to open it).
    """

    def __init__(
        self,
        config: StreamConfig,
        channels: Sequence[str],
        rate_hz: float,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        wall: Callable[[], int] = time.time_ns,
        sleep: Callable[[float], None] = time.sleep,
        collect_s: float = CHUNK_S,
        connect: Callable[[StreamConfig], serial.Serial] | None = None,
    ) -> None:
        self.config, self._collect_s = config, collect_s
        self._decoder = open_decoder(config, channels, rate_hz)
        self._channels = len(channels)
        self._clock, self._wall, self._sleep = clock, wall, sleep
        self._connect = connect or _connect
        self._port: serial.Serial | None = None
        self._newest_ns: int | None = None

    @property
    def corrupt(self) -> int:
        """Damaged frames or lines since the source was made."""
        return self._decoder.corrupt

    @property
    def lost(self) -> int:
        """Samples that sequence numbers show to be missing, since the source was made."""
        return self._decoder.lost

    def samples(self) -> Iterator[Samples]:
        self.close()
        port = self._port = self._open()
        # Opening empties the driver's buffer, so the first bytes may begin anywhere.
        self._decoder.reset()
        valid_ns = self._clock()
        corrupt, received = self._decoder.corrupt, 0
        try:
            yield Samples.empty(self._channels)  # open: whoever waits for that need not wait for the sensor
            while True:
                data = self._read(port)
                now_ns = self._clock()
                received += len(data)
                samples = self._decoder.feed(data, now_ns)
                if len(samples):
                    valid_ns, self._newest_ns = now_ns, int(samples.time_ns[-1])
                elif now_ns - valid_ns > self.config.silence_s * 1e9:
                    raise SourceLostError(self._silent(received, self._decoder.corrupt - corrupt))
                yield samples
        except (OSError, termios.error) as error:  # pyserial's own error is an OSError, termios.error is none
            raise SourceLostError(f"{self.config.port}: lost while reading: {error}; is it still plugged in?") from None
        finally:
            # Only its own: an iterator that was given up may be collected when the next one has opened the port again.
            if self._port is port:
                self._port = None
            _close(port)

    def epoch_offset_ns(self) -> int:
        if self.config.clock == "sensor" and self._newest_ns is not None:
            return self._wall() - self._newest_ns
        return self._wall() - self._clock()

    def close(self) -> None:
        port, self._port = self._port, None
        if port is not None:
            _close(port)

    def _read(self, port: serial.Serial) -> bytes:
        """All that arrives within `collect_s` of the first byte; nothing when none comes within `IDLE_S`."""
        data = port.read(1)
        if data:
            self._sleep(self._collect_s)
            # Not once: the driver shows 4 KiB at a time, and the rest of a backlog would seem to have arrived later.
            backlog = False
            while len(data) < MAX_CHUNK:
                if waiting := port.in_waiting:
                    data += port.read(waiting)
                    backlog = waiting >= _MUCH
                elif backlog:
                    self._sleep(_REFILL_S)
                    backlog = False
                else:
                    break
        return data

    def _open(self) -> serial.Serial:
        port = self.config.port
        for attempt in ("first", "last"):
            try:
                return self._connect(self.config)
            except (ValueError, OverflowError, NotImplementedError) as error:
                raise ConfigError(f"{port}: {error}; set baud = {self.config.baud} to a rate that the adapter has") from None
            except (OSError, termios.error) as error:
                code = getattr(error, "errno", None)
                if code in (errno.EACCES, errno.EPERM):
                    if attempt == "first":
                        self._sleep(1.0)  # a device that was just plugged in exists before udev has given it its group
                        continue
                    raise AccessError(
                        f"{port}: no right to open it; add the user to the group dialout (usermod -aG dialout USER, then log "
                        "in again; for a service SupplementaryGroups=dialout)"
                    ) from None
                if code in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
                    raise SourceLostError(f"{port}: no such port; {_ports_there()}") from None
                if code in (errno.EBUSY, errno.EAGAIN):
                    raise SourceLostError(f"{port}: busy, another program has it open; `fuser -v {port}` names it") from None
                raise SourceLostError(f"{port}: cannot be opened: {error}; is it a serial port?") from None
        raise AssertionError  # the last attempt returns or raises

    def _silent(self, received: int, corrupt: int) -> str:
        cause = f"{self.config.port}: no valid sample for {self.config.silence_s:g} s; "
        if not received:
            return cause + "nothing arrives at all: is the sensor powered, and does it send by itself?"
        if not corrupt:
            return cause + f"{received} bytes came, but no end of a sample: is format = {self.config.format!r} right?"
        return (
            cause + f"{received} bytes came, {corrupt} damaged, the last: {self._decoder.trouble}; check baud = "
            f"{self.config.baud}, format = {self.config.format!r} and columns"
        )


class ReplaySource:
    """Recordings in place of a sensor, one after the other on one time line.

    `speed` 1.0 is as it was, `None` as fast as possible. `rate_hz`, when given, is what the recordings must have.
    Raises `NoInputError` at once when there are none; `samples()` raises `DataError`, naming the file, when one does not fit.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        channels: Sequence[str],
        speed: float | None = None,
        *,
        rate_hz: float | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if speed is not None and not speed > 0:
            raise ValueError(f"speed {speed}")
        self._paths = find_recordings(paths)
        self._channels, self._speed, self._rate_hz = tuple(channels), speed, rate_hz
        self._clock, self._sleep = clock, sleep

    def samples(self) -> Iterator[Samples]:
        for path in self._paths:
            recording = match_channels(read_recording(path), self._channels)
            if self._rate_hz is not None and len(recording.time_ns) > 1 and not 0.9 < recording.rate_hz / self._rate_hz < 1.1:
                raise DataError(f"{path}: {recording.rate_hz:g} samples a second, the model needs {self._rate_hz:g}")
            if self._speed is None:
                yield from recording.samples()
            else:
                yield from self._paced(recording, self._speed)

    def epoch_offset_ns(self) -> int:
        return 0  # a recording's time is wall-clock time

    def close(self) -> None:
        pass

    def _paced(self, recording: Recording, speed: float) -> Iterator[Samples]:
        started_ns, first_ns = self._clock(), int(recording.time_ns[0])
        rate_hz = recording.rate_hz if len(recording.time_ns) > 1 else 1.0
        # A tenth of a second at a time looks live and costs little.
        for samples in recording.samples(max(1, round(rate_hz * speed * 0.1))):
            due_ns = started_ns + (int(samples.time_ns[-1]) - first_ns) / speed
            while (wait_s := (due_ns - self._clock()) / 1e9) > 0:
                self._sleep(min(wait_s, IDLE_S))
                if wait_s > IDLE_S:
                    yield Samples.empty(len(self._channels))
            yield samples


def _connect(config: StreamConfig) -> serial.Serial:
    # Exclusive only among those who ask for it: it keeps two agents apart, not a terminal program away.
    return serial.Serial(config.port, config.baud, timeout=min(IDLE_S, config.silence_s / 2), exclusive=True)


def _close(port: serial.Serial) -> None:
    with contextlib.suppress(OSError, termios.error):  # it is gone, which is as good as closed
        port.close()


def _ports_there() -> str:
    from serial.tools.list_ports import comports  # only for the message; it walks through /sys

    there = sorted(map(str, Path("/dev/serial/by-id").glob("*"))) or sorted(port.device for port in comports())
    return f"there are: {', '.join(there)}" if there else "there is none at all: is the sensor plugged in?"
