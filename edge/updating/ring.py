"""The last hours of a stream on the device's own disk: what a new model is tried on before it is trusted.

    <folder>/<number>.ring   header, then blocks of samples; each block carries its length and its CRC-32

Within three bounds, each of which costs recording and never the agent:

- *bytes a day*: a bucket that fills at that rate and begins empty, on a monotonic clock. No wall clock is needed, a start
  grants nothing, and no 24 hours see more than the budget, pages and names included.
- *bytes on the disk*: the oldest file goes first.
- *hours* of the stream: what is older says little about the machine as it is.

Where the budget does not pay for everything, whole stretches are kept, as far apart as it takes: each is long enough for
several windows in a row. A sample here and there would be none.

A block is 16 bits a value between the lowest and the highest of its channel: a float16 has 11 bits, whatever the level, and a
shaft that turns at 1450 a minute moves by less than that. A channel in which one absurd value would flatten all others is kept
as float32. Missing values stay missing. A stamp that begins a block is exact; the others are within an eighth of a sample.

Nothing is synced: a process that is killed loses what it had not yet appended, at most `APPEND_S`; with the power goes what the
system had not yet written, which is more and no matter. A torn block ends its file for a reader, and is cut off at the next
start.
"""

import contextlib
import logging
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np

from edge.errors import ConfigError
from edge.signal import Float32, Int64, Samples

log = logging.getLogger(__name__)

APPEND_S, APPEND_VALUES = 30.0, 1 << 18
"""An append each so often, or so many values: 1 MB of memory."""
PAGE = 4096
"""What an append costs beside its bytes: the page at its end is written again by the next one."""
FILES = 16
"""That the ring has when it is full: an old one goes as a whole."""
BURST_S = 600.0
"""Of the daily budget that may be saved up, after a pause of the sensor say."""
RETRY_S = 60.0
"""A disk that took nothing is left alone for so long."""
LONGEST = 1 << 26
"""Bytes of a block or file that are read; a longer one is none of ours."""
FINE = 0.005
"""Of the usual spread of a channel: rounding must not be coarser than that. 16 bits are a thousand times finer as long as the
whole span is no more than some hundred spreads."""

_MAGIC = b"AMR1"
_FRAME = struct.Struct("<4sII")  # magic, length and CRC-32 of what follows
_BLOCK = struct.Struct("<cBHIqqdd")  # kind, how stamps are kept, channels, samples, position, first stamp, step, unit
_EVEN, _NEARLY, _EXACT = range(3)
_MISSING = -32768


class About(msgspec.Struct, frozen=True):
    """Head of a file."""

    channels: tuple[str, ...]
    rate_hz: float


@dataclass(slots=True)
class _File:
    number: int
    position: int
    """Of its first sample in the stream."""
    size: int


class Ring:
    """Used by one thread, that of the stream. Others, and other processes, read with `recorded`."""

    def __init__(
        self,
        folder: Path,
        channels: tuple[str, ...],
        rate_hz: float,
        *,
        hours: float,
        max_bytes: int,
        bytes_per_day: int,
        stretch: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`stretch`: samples that are kept in a row at least, some sixteen windows. `clock` is monotonic, in seconds.

        Raises `ConfigError` when not even some stretches fit the bytes. What is there of other channels is thrown away.
        """
        self.folder, self.about, self.hours = folder, About(channels, rate_hz), hours
        self.max_bytes, self.bytes_per_day, self.stretch = max_bytes, bytes_per_day, stretch
        self._clock = clock
        self._cost = self._priced(stretch)
        needed = max(4 * self._cost, FILES * PAGE)
        if min(max_bytes, bytes_per_day) < needed:
            raise ConfigError(
                f"a recording of {min(max_bytes, bytes_per_day)} bytes is too small to try a model on: {stretch} samples of "
                f"{len(channels)} channels in a row need {needed}"
            )
        span_s = max(hours * 3600, 1.0)
        self._burst = max(2 * self._cost, min(BURST_S / 86400, 0.25) * bytes_per_day)
        self._rate = min((bytes_per_day - self._burst) / 86400, max_bytes * (1 - 1 / FILES) / span_s)
        self._purse, self._filled_s = 0.0, clock()
        self._parts: list[Samples] = []  # of the buffer
        self._values = 0
        self._since_s = 0.0
        self._left = 0  # samples of the stretch that is being kept
        self._position = 0  # of the next sample in the stream, kept or not
        self._first = 0  # position of the first sample in the buffer
        self._retry_s = -1e18
        self._descriptor: int | None = None
        self.written = 0
        """Bytes since the start, pages and names included."""
        self._files: list[_File] = []  # oldest first
        self._find()

    @property
    def share(self) -> float:
        """Of the stream that the budget pays for, 0 … 1."""
        if self._rate >= self._running:
            return 1.0
        return min(1.0, self._rate / (self._cost / self.stretch * self.about.rate_hz))

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(file.size for file in self._files)

    def sentence(self) -> str:
        """What is kept, for a person."""
        rate_hz, share = self.about.rate_hz, self.share
        every_s = self.stretch / rate_hz / share
        kept = "all of the signal" if share == 1 else f"{self.stretch / rate_hz:.3g} s of every {every_s:.3g} s"
        hours = min(self.hours, self.max_bytes / min(self._rate, self._running) / 3600)
        return f"keeps {kept}, for {hours:.3g} hours, in at most {self.max_bytes} bytes and {self.bytes_per_day} a day"

    def add(self, samples: Samples) -> None:
        """Never raises for the sake of a disk."""
        at, n = 0, len(samples)
        while at < n:
            if not self._left and not self._afford():
                self._append()
                self._position += n - at
                return
            taken = min(self._left, n - at)
            if not self._parts:
                self._first, self._since_s = self._position, self._clock()
            # A copy: what the windower and others look at is theirs, and a part of it would keep all of it in memory.
            self._parts.append(Samples(samples.time_ns[at : at + taken].copy(), samples.x[:, at : at + taken].copy()))
            self._values += taken * len(samples.x)
            self._left -= taken
            self._position += taken
            at += taken
        if self._values >= APPEND_VALUES or self._clock() - self._since_s >= APPEND_S:
            self._append()

    def flush(self) -> None:
        """What is in memory, to the file."""
        self._append()

    def close(self) -> None:
        self._append()
        self._shut()

    def _priced(self, samples: float, appends: float = 1.0) -> float:
        """Bytes of so many samples, all told."""
        return samples * (2 * len(self.about.channels) + 2) + appends * (128 + PAGE)

    @property
    def _running(self) -> float:
        """Bytes a second of all of the signal."""
        return self._priced(
            self.about.rate_hz, max(1 / APPEND_S, self.about.rate_hz * len(self.about.channels) / APPEND_VALUES)
        )

    def _afford(self) -> bool:
        now_s = self._clock()
        self._purse = min(self._burst, self._purse + max(0.0, now_s - self._filled_s) * self._rate)
        self._filled_s = now_s
        if now_s < self._retry_s or self._purse < self._cost:
            return False
        self._purse -= self._cost
        self._left = self.stretch
        return True

    def _append(self) -> None:
        if not self._parts:
            return
        parts, self._parts, self._values = self._parts, [], 0
        time_ns = np.concatenate([part.time_ns for part in parts])
        x = np.concatenate([part.x for part in parts], axis=1)
        data = b"".join(_blocks(time_ns, x, self._first, 1e9 / self.about.rate_hz))
        before = self.written
        try:
            self._write(data)
        except OSError as error:
            log.warning("%s: nothing is recorded for %.0f s: %s", self.folder, RETRY_S, error.strerror or error)
            self._left, self._retry_s = 0, self._clock() + RETRY_S
            self._mend()
        self._purse += self._cost * len(time_ns) / self.stretch - (self.written - before)

    def _write(self, data: bytes) -> None:
        head = _framed(b"H" + msgspec.json.encode(self.about))
        while self._files and self.size + len(head) + len(data) > self.max_bytes:
            self._drop()
        most = self.hours * 3600 * self.about.rate_hz
        while len(self._files) > 1 and self._position - self._files[1].position > most:
            self._drop()
        file = self._files[-1] if self._files else None
        if (
            file is None
            or self._descriptor is None
            or file.size + len(data) > max(self.max_bytes // FILES, PAGE)
            or (file.size and self._first - file.position >= most / FILES)
        ):
            self._shut()
            self.folder.mkdir(parents=True, exist_ok=True)
            file = _File(self._files[-1].number + 1 if self._files else 1, self._first, 0)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(self._path(file), flags, 0o600)
            self._files.append(file)
            self.written += 2 * PAGE
        if not file.size:
            data = head + data
        self.written += len(data) + PAGE
        view = memoryview(data)
        while view:
            count = os.write(self._descriptor, view)
            file.size += count
            view = view[count:]

    def _mend(self) -> None:
        """Half a block may be at the end of the newest file, and is cut off."""
        self._shut()
        if self._files:
            with contextlib.suppress(OSError):
                self._resume(self._files[-1])

    def _resume(self, file: _File) -> None:
        """Go on at the end of its last whole block."""
        path = self._path(file)
        whole, position = _measured(path)
        os.truncate(path, whole)
        file.size = whole
        self._position = max(self._position, position)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def _find(self) -> None:
        for path in sorted(self.folder.glob("*.ring")):
            try:
                with path.open("rb") as stream:
                    about, position = _head(stream.read(PAGE))
                if about != self.about:
                    raise ValueError("of another stream")
                self._files.append(_File(int(path.stem), position, path.stat().st_size))
            except (OSError, ValueError) as error:
                log.info("%s: dropped (%s)", path, error)
                with contextlib.suppress(OSError):
                    path.unlink()
        if self._files:
            try:
                self._resume(self._files[-1])
            except OSError as error:
                log.warning("%s: cannot be gone on with: %s", self._path(self._files[-1]), error.strerror or error)
                self._position = self._files[-1].position

    def _drop(self) -> None:
        if len(self._files) == 1:
            self._shut()
        file = self._files.pop(0)
        self._path(file).unlink(missing_ok=True)
        self.written += PAGE

    def _shut(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None

    def _path(self, file: _File) -> Path:
        return self.folder / f"{file.number:010d}.ring"


def recorded(folder: Path) -> Iterator[Samples]:
    """What a ring has on the disk, oldest first, while it may be written to. A damaged block ends its file; no file is none."""
    for path in sorted(folder.glob("*.ring")):
        try:
            data = _contents(path)
        except OSError:
            continue  # it was the oldest, and has gone meanwhile
        for kind, payload, _ in _frames(data):
            if kind == b"S":
                try:
                    yield _samples(payload)
                except (ValueError, struct.error):
                    break


def _contents(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(LONGEST)


def _framed(payload: bytes) -> bytes:
    return _FRAME.pack(_MAGIC, len(payload), zlib.crc32(payload)) + payload


def _frames(data: bytes) -> Iterator[tuple[bytes, memoryview, int]]:
    """Kind, payload and end of each whole block."""
    at, view = 0, memoryview(data)
    while at + _FRAME.size < len(data):
        magic, length, crc = _FRAME.unpack_from(data, at)
        payload = view[at + _FRAME.size : at + _FRAME.size + length]
        if magic != _MAGIC or len(payload) != length or not length or zlib.crc32(payload) != crc:
            return
        at += _FRAME.size + length
        yield bytes(payload[:1]), payload, at


def _measured(path: Path) -> tuple[int, int]:
    """Bytes up to the end of its last whole block, and the position behind its last sample."""
    whole = position = 0
    for kind, payload, end in _frames(_contents(path)):
        whole = end
        if kind == b"S":
            _, _, _, n, first, *_ = _BLOCK.unpack_from(payload)
            position = first + n
    return whole, position


def _head(data: bytes) -> tuple[About, int]:
    """The header at the start of a file, and the position of its first sample. Raises ValueError."""
    first = next(_frames(data), None)
    if first is None or first[0] != b"H":
        raise ValueError("no recording")
    found = msgspec.json.decode(first[1][1:], type=About)
    at = first[2] + _FRAME.size
    if len(data) < at + _BLOCK.size:
        raise ValueError("nothing in it")
    return found, int(_BLOCK.unpack_from(data, at)[4])


def _blocks(time_ns: Int64, x: Float32, position: int, period_ns: float) -> Iterator[bytes]:
    """One block for each stretch without a hole, so that what follows a hole has its exact stamp."""
    step = np.diff(time_ns)
    holes = np.flatnonzero((step > 1.5 * period_ns) | (step < 0.5 * period_ns)) + 1
    edges = [0, *holes.tolist(), len(time_ns)] if len(holes) <= len(time_ns) // 32 else [0, len(time_ns)]
    for start, stop in pairwise(edges):
        yield _framed(_packed(time_ns[start:stop], x[:, start:stop], position + start, period_ns))


def _packed(time_ns: Int64, x: Float32, position: int, period_ns: float) -> bytes:
    channels, n = x.shape
    step = (int(time_ns[-1]) - int(time_ns[0])) / (n - 1) if n > 1 else period_ns
    off = time_ns - time_ns[0] - np.rint(np.arange(n) * step).astype(np.int64)
    farthest = int(np.abs(off).max())
    unit = max(1.0, farthest / 32767)
    if not farthest:
        kind, stamps = _EVEN, b""
    elif unit / 2 <= period_ns / 8:
        kind, stamps = _NEARLY, np.rint(off / unit).astype("<i2").tobytes()
    else:
        kind, stamps = _EXACT, time_ns.astype("<i8").tobytes()
    head = _BLOCK.pack(b"S", kind, channels, n, position, int(time_ns[0]), step, unit)
    return b"".join((head, stamps, *map(_channel, x)))


def _channel(x: Float32) -> bytes:
    """Whether as float32, middle, step, values."""
    good = np.isfinite(x)
    values = x if good.all() else x[good]
    if not len(values):
        return struct.pack("<?dd", False, 0.0, 0.0) + np.full(len(x), _MISSING, "<i2").tobytes()
    low, high = float(values.min()), float(values.max())
    middle, step = (low + high) / 2, (high - low) / 65534
    some = values[:: -(-len(values) // 1024)].astype(np.float64)
    spread = float(np.median(np.abs(some - np.median(some))))
    if step / 2 > FINE * spread and step > 0:
        return struct.pack("<?dd", True, 0.0, 0.0) + x.astype("<f4").tobytes()
    with np.errstate(invalid="ignore"):
        codes = np.rint((x.astype(np.float64) - middle) / step) if step else np.zeros(len(x))
    return struct.pack("<?dd", False, middle, step) + np.where(good, codes, _MISSING).astype("<i2").tobytes()


def _samples(payload: memoryview) -> Samples:
    """Raises ValueError or struct.error for what `_packed` does not write."""
    _, kind, channels, n, _, start, step, unit = _BLOCK.unpack_from(payload)
    at = _BLOCK.size
    if kind == _EXACT:
        time_ns = np.frombuffer(payload, "<i8", n, at).astype(np.int64)
        at += 8 * n
    else:
        time_ns = start + np.rint(np.arange(n) * step).astype(np.int64)
        if kind == _NEARLY:
            time_ns += np.rint(np.frombuffer(payload, "<i2", n, at) * unit).astype(np.int64)
            at += 2 * n
    x = np.empty((channels, n), np.float32)
    for row in x:
        plain, middle, width = struct.unpack_from("<?dd", payload, at)
        at += 17
        if plain:
            row[:] = np.frombuffer(payload, "<f4", n, at)
            at += 4 * n
        else:
            codes = np.frombuffer(payload, "<i2", n, at)
            row[:] = np.where(codes == _MISSING, np.nan, middle + codes.astype(np.float64) * width)
            at += 2 * n
    return Samples(time_ns, x)
