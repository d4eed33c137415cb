"""Binary frames: COBS + CRC-32 + sequence number. The format to choose when the sensor's firmware is yours.

Version 1, on the wire (docs/wire-format.md has an example byte by byte):

    COBS(payload) 00

    payload, little endian:
      0  u8   version    1
      1  u8   kind       0: values are float32 · 1: values are int16 × scale
      2  u8   channels   C, 1 … 255
      3  u8   samples    n, 1 … 255
      4  u32  sequence   number of the first sample in this frame; counts *samples*, wraps to 0 after 2³² − 1
      8  u64  time_us    the device's clock when it took the first sample; never goes back while the device runs
     16  f32  scale      only kind 1: finite, > 0; value = int16 × scale
      …  f32 or i16      n × C values, sample by sample: all channels of the first sample, then of the second, …
                         missing: NaN, or −32768
      …  u32  crc        CRC-32 (the one of zlib, Ethernet, PNG) of all bytes before it

A payload is at most 8192 bytes: up to there (and somewhat beyond) CRC-32 finds every error of up to three bits, and a
microcontroller can hold it. 00 occurs nowhere but at the end of a frame, so a receiver is in step again after the next one.
More than one 00 between frames is fine; a sender that puts one in front as well loses only the frame that was hit.

Why CRC-32: garbage at the wrong baud rate passes a CRC-16 about every 40 minutes.
"""

import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edge.sensing.decoders.layout import Clock, pick
from edge.sensing.decoders.stamps import StreamClock
from edge.signal import Float32, Int64, Samples

VERSION = 1
FLOAT32, INT16 = 0, 1
MAX_PAYLOAD = 8192
MAX_ENCODED = MAX_PAYLOAD + MAX_PAYLOAD // 254 + 1
"""Without the delimiter. COBS adds a byte to each 254."""

_HEADER = struct.Struct("<BBBBIQ")
_SCALE = struct.Struct("<f")
_CRC = struct.Struct("<I")
_WRAP = 1 << 32
_MAX_TIME_US = 1 << 53  # 285 years; in nanoseconds it still fits an int64
_MISSING = -32768


class FrameDecoder:
    """Bytes → samples. How the bytes are split never changes the values, nor, with `clock="sensor"`, the stamps.

    `columns` are the names of the channels of a frame, `channels` those that the model wants; see `layout.pick` for errors.
    """

    def __init__(
        self,
        columns: Sequence[str],
        channels: Sequence[str],
        period_ns: float,
        clock: Clock = "arrival",
        jitter_s: float = 0.25,
    ) -> None:
        self._pick = pick(columns, channels)
        self._columns = len(columns)
        self._period_ns = period_ns
        self._sensor = clock == "sensor"
        self._clock = StreamClock(period_ns, jitter_s * 1e9, clock)
        self._pending = b""  # the frame that is still coming in; at most MAX_ENCODED bytes, whatever arrives
        self._skip = False  # inside a frame that was too long and is counted already
        self._torn = False  # the next piece may lack its beginning
        self._expected: int | None = None  # sequence number that should come next
        self._newest = (-1, -1)  # sequence and time of the last frame
        self._count = 0  # samples so far, lost ones included: what the stamps follow
        self.corrupt = 0
        """Damaged frames so far."""
        self.lost = 0
        """Samples so far that the sequence numbers show to be missing."""
        self.trouble = ""
        """What was wrong with the last damaged frame; for the person who looks for a wrong setting."""

    def feed(self, data: bytes, time_ns: int) -> Samples:
        """The samples that these bytes complete; `time_ns` is when they arrived, on the host's monotonic clock."""
        *pieces, rest = (self._pending + data).split(b"\0")
        x: list[Float32] = []
        time: list[Int64] = []
        index: list[int] = []  # number of the first sample of each frame since the last restart
        unstamped = 0  # frames in x before this one have their stamps
        for piece in pieces:
            frame = self._accept(piece)
            if frame is None:
                continue
            sequence, time_us, values = frame
            n = len(values)
            missing = self._missing(sequence, time_us)
            if missing is None:  # the device has started again
                if unstamped < len(x):
                    time.append(self._stamp(index, x[unstamped:], time_ns if not self._clock.running else None))
                    index, unstamped = [], len(x)
                self._clock.restart()
                missing = 0
            self._expected = (sequence + n) % _WRAP
            self._newest = (sequence, time_us)
            self.lost += missing
            self._count += missing
            x.append(values)
            if self._sensor:
                # A device that stamps when it sends, not when it samples, is off by a frame at most.
                self._clock.tolerance_ns = n * self._period_ns
                time.append(self._clock.stamp(self._count + np.arange(n), time_us * 1000, self._count))
                unstamped = len(x)
            else:
                index.append(self._count)
            self._count += n
        self._keep(rest)
        if not x:
            return Samples.empty(len(self._pick))
        if unstamped < len(x):
            time.append(self._stamp(index, x[unstamped:], time_ns))
        values = np.concatenate(x)[:, self._pick].T.astype(np.float32, order="C")
        values[np.isinf(values)] = np.nan
        return Samples(np.concatenate(time), values)

    def reset(self) -> None:
        """The port was opened again: what comes next may begin in the middle of a frame, which is then no damage."""
        self._pending, self._skip, self._torn = b"", False, True
        self._clock.restart()

    def _keep(self, rest: bytes) -> None:
        if len(rest) > MAX_ENCODED:
            if not (self._skip or self._torn):
                self._damaged(f"no end of frame within {MAX_ENCODED} bytes")
            self._skip, rest = True, b""
        self._pending = rest

    def _accept(self, piece: bytes) -> tuple[int, int, Float32] | None:
        """Sequence, time and values (n, columns) of a frame that is whole, right and new."""
        torn, self._torn = self._torn, False
        if self._skip:
            self._skip = False
            return None
        if not piece:
            self._torn = torn  # a delimiter alone does not tell where the stream was entered
            return None
        frame = self._parse(piece)
        if isinstance(frame, str):
            if not torn:
                self._damaged(frame)
            return None
        return None if frame[:2] == self._newest else frame

    def _parse(self, piece: bytes) -> tuple[int, int, Float32] | str:
        """The frame, or what is wrong with it."""
        if len(piece) > MAX_ENCODED:
            return f"no end of frame within {MAX_ENCODED} bytes"
        payload = cobs_decode(piece)
        if payload is None or len(payload) < _HEADER.size + _CRC.size:
            return f"{len(piece)} bytes that are no frame; is the baud rate right?"
        body = len(payload) - _CRC.size
        if zlib.crc32(memoryview(payload)[:body]) != _CRC.unpack_from(payload, body)[0]:
            return "wrong checksum"
        version, kind, channels, samples, sequence, time_us = _HEADER.unpack_from(payload)
        if version != VERSION or kind not in (FLOAT32, INT16):
            return f"a frame of version {version}, kind {kind}, which this program does not know"
        if channels != self._columns:
            return f"a frame of {channels} channels, the configuration names {self._columns} columns"
        start = _HEADER.size + (_SCALE.size if kind == INT16 else 0)
        if not samples or body != start + samples * channels * (4 if kind == FLOAT32 else 2) or time_us > _MAX_TIME_US:
            return "a frame whose header contradicts itself; the fault is in the sensor's firmware"
        count = samples * channels
        values: Float32
        if kind == FLOAT32:
            values = np.frombuffer(payload, "<f4", count, start)
        else:
            (scale,) = _SCALE.unpack_from(payload, _HEADER.size)
            if not 0 < scale < float("inf"):
                return f"a frame with scale {scale}; the fault is in the sensor's firmware"
            raw = np.frombuffer(payload, "<i2", count, start)
            values = np.where(raw == _MISSING, np.float32("nan"), raw * np.float32(scale))
        return sequence, time_us, values.reshape(samples, channels)

    def _missing(self, sequence: int, time_us: int) -> int | None:
        """Samples missing before this frame; None when the device has started again.

        A start takes the sequence back to zero. Close to the wrap that looks like a step forward, and where the clock was
        set like one that took years; so the step must be a small one *and* fit into the time that has passed on the device.
        """
        if self._expected is None:
            return None
        missing = (sequence - self._expected) % _WRAP
        passed_ns = (time_us - self._newest[1]) * 1000
        if missing and (missing >= _WRAP // 2 or missing * self._period_ns > 2 * passed_ns + 1e9):
            return None
        return missing

    def _stamp(self, index: list[int], frames: list[Float32], time_ns: int | None) -> Int64:
        count = np.concatenate([first + np.arange(len(x)) for first, x in zip(index, frames, strict=True)])
        return self._clock.stamp(count, time_ns, int(count[-1]))

    def _damaged(self, trouble: str) -> None:
        self.corrupt += 1
        self.trouble = trouble


def encode_frame(x: npt.ArrayLike, sequence: int, time_us: int, scale: float | None = None) -> bytes:
    """A frame with its delimiter from `x` (C, n); with a `scale` the values travel as int16.

    For simulators, tests and senders in Python. Raises `ValueError` for what does not fit a frame.
    """
    values = np.asarray(x, np.float32)
    if values.ndim != 2 or not (0 < values.shape[0] < 256 and 0 < values.shape[1] < 256):
        raise ValueError(f"a frame holds 1 to 255 samples of 1 to 255 channels, not {values.shape}")
    channels, samples = values.shape
    kind = FLOAT32 if scale is None else INT16
    payload = _HEADER.pack(VERSION, kind, channels, samples, sequence % _WRAP, time_us)
    if scale is None:
        payload += values.T.astype("<f4").tobytes()
    else:
        # Clipped, because a value that wraps around would be a wrong one.
        raw = np.clip(np.rint(values / np.float32(scale)), -32767, 32767)
        payload += _SCALE.pack(scale) + np.where(np.isnan(raw), _MISSING, raw).T.astype("<i2").tobytes()
    if len(payload) + _CRC.size > MAX_PAYLOAD:
        raise ValueError(f"{samples} samples of {channels} channels need {len(payload)} bytes, a frame holds {MAX_PAYLOAD}")
    return cobs_encode(payload + _CRC.pack(zlib.crc32(payload))) + b"\0"


def cobs_encode(payload: bytes) -> bytes:
    """Consistent overhead byte stuffing (Cheshire and Baker 1999): the same bytes without any 00."""
    out = bytearray()
    for run in payload.split(b"\0"):
        while len(run) >= 254:
            out += b"\xff" + run[:254]
            run = run[254:]
        out.append(len(run) + 1)
        out += run
    return bytes(out)


def cobs_decode(encoded: bytes) -> bytearray | None:
    """The bytes that were stuffed, or None when `encoded` (without 00) is nothing that COBS makes.

    Every code byte stands where a zero was (the first one in front of the data, and after 255 there was none), so it is
    enough to walk from code to code: six times as fast as copying run by run.
    """
    out = bytearray(encoded)
    at, end, surplus = 0, len(out), []
    while at < end:
        code = out[at]
        if not code:
            return None
        out[at] = 0
        at += code
        if code == 255 and at < end:
            surplus.append(at)
    if at != end or not end:
        return None
    for at in reversed(surplus):
        del out[at]
    del out[0]
    return out
