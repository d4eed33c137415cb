"""Samples → windows without a hidden gap. The trainer uses the same code, so both cut the same windows.

The declared policy for what is missing (`MissingPolicy`, part of every bundle):

- a hole of at most `max_fill` samples, in one channel or in all of them, is filled by holding the last value;
- a longer hole ends the current window: no window spans it, a `Gap` is reported, and the next window starts behind it;
- jitter: neighbouring stamps may be off by `jitter_s` before anything is inferred from them. Only neighbours are ever
  compared, so a sensor whose clock runs 1 % fast never looks like a gap.

The cost is per chunk, not per sample: a chunk without a hole is one array copy.
"""

import msgspec
import numpy as np

from edge.signal import Bool, Float32, Gap, Int64, Samples, Windows


class MissingPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to do about missing samples and values."""

    max_fill: int = 3
    """Longest hole, in samples, that is filled by holding the last value."""
    jitter_s: float = 0.0
    """How far a stamp may be off; half a period is always granted. Stamps made by the sensor need no more; stamps made on
    arrival at the host need the chunking of the serial driver on top (20 to 100 ms)."""


class Windower:
    """Cuts a stream of `channels` channels at `rate_hz` into windows of `length` samples, every `hop` samples.

    `feed` takes any number of samples at a time; how a stream is split into calls never changes the windows.
    Memory is bounded by one window plus the largest chunk fed.
    """

    def __init__(self, channels: int, rate_hz: float, length: int, hop: int, policy: MissingPolicy | None = None) -> None:
        if not (channels > 0 and rate_hz > 0 and length > 1 and hop > 0):
            raise ValueError(f"no windows of {length} samples every {hop} at {rate_hz} Hz with {channels} channels")
        self.channels, self.length, self.hop = channels, length, hop
        self.policy = policy or MissingPolicy()
        self.period_ns = 1e9 / rate_hz
        self._tolerance_ns = max(self.period_ns / 2, self.policy.jitter_s * 1e9)
        # Room for several windows, so that old samples move to the front rarely and not once per chunk.
        self._x = np.empty((channels, 4 * (length + hop)), np.float32)
        self._time = np.empty(self._x.shape[1], np.int64)
        self._fresh: bool
        self._restart()
        self._last_ns: int | None = None  # stamp of the newest sample seen, good or bad
        self._good_ns: int | None = None  # stamp of the newest sample that went into a window
        self._missing = False  # inside a `missing` gap
        self._hold = np.full(channels, np.nan, np.float32)  # last value of each channel
        self._run = np.zeros(channels, np.int64)  # how many samples it has been held for
        self._came = 0  # samples, good or bad
        self.filled = 0
        """Values filled so far."""
        self.lost = 0
        """Samples lost in gaps so far."""

    def feed(self, samples: Samples) -> Windows:
        """The windows that these samples complete."""
        if samples.x.shape[0] != self.channels:
            raise ValueError(f"{samples.x.shape[0]} channels, not {self.channels}")
        out = _Batch()
        if not len(samples):
            return out.windows(self.channels, self.length)
        time_ns, x = samples.time_ns, samples.x
        previous = time_ns[0] - round(self.period_ns) if self._last_ns is None else self._last_ns
        step = np.empty_like(time_ns)  # np.diff with `prepend` takes five times as long
        step[0] = time_ns[0] - previous
        np.subtract(time_ns[1:], time_ns[:-1], out=step[1:])
        broken = np.flatnonzero((step > self.period_ns + self._tolerance_ns) | (step < self.period_ns / 2 - self._tolerance_ns))
        position = 0
        for at in (*broken.tolist(), len(time_ns)):
            if at > position:
                self._feed_regular(time_ns[position:at], x[:, position:at], out, self._came + position + 1)
            if at < len(time_ns):
                self._hole(int(time_ns[at]), int(step[at]), out, self._came + at + 1)
            position = at
        self._last_ns = int(time_ns[-1])
        self._came += len(samples)
        return out.windows(self.channels, self.length)

    def _hole(self, at_ns: int, step_ns: int, out: "_Batch", number: int) -> None:
        """Samples are missing before `at_ns`, the stream's sample number `number`, or the clock jumped back."""
        missing = round(step_ns / self.period_ns) - 1
        before_ns = at_ns - step_ns
        if 0 < missing <= self.policy.max_fill:
            filler = np.linspace(before_ns, at_ns, missing + 2)[1:-1].astype(np.int64)
            self._feed_regular(filler, np.full((self.channels, missing), np.nan, np.float32), out, number, 0)
        elif missing > 0 or step_ns < 0:
            self.lost += max(missing, 0)
            out.gaps.append(Gap(before_ns, at_ns, "silence" if step_ns > 0 else "backwards", number))
            self._restart()
            self._hold[:] = np.nan
            self._run[:] = 0

    def _feed_regular(self, time_ns: Int64, x: Float32, out: "_Batch", number: int, apart: int = 1) -> None:
        """Samples that follow each other at the nominal rate, but may lack values.

        The first is sample number `number` of the stream and each next one `apart` more: fillers are known when the sample
        behind them is.
        """
        finite = np.isfinite(x)
        if finite.all() and not self._missing:
            self._hold, self._run[:] = x[:, -1].copy(), 0
            self._append(time_ns, x, out, number, apart)
            return
        x, usable = self._fill(x, finite)
        edges = np.flatnonzero(np.diff(usable)) + 1
        for part in np.split(np.arange(len(time_ns)), edges):
            first = int(time_ns[part[0]])
            come = number + apart * int(part[0])
            if usable[part[0]]:
                if self._missing:
                    out.gaps.append(Gap(first if self._good_ns is None else self._good_ns, first, "missing", come))
                    self._missing = False
                self._append(time_ns[part], x[:, part], out, come, apart)
            else:
                if not self._missing:
                    out.gaps.append(Gap(first if self._good_ns is None else self._good_ns, None, "missing", come))
                    self._missing = True
                    self._restart()
                self.lost += len(part)

    def _fill(self, x: Float32, finite: Bool) -> tuple[Float32, Bool]:
        """Hold the last value; a sample is usable if no channel had to be held for more than `max_fill` samples."""
        index = np.where(finite, np.arange(x.shape[1]), -1)
        last = np.maximum.accumulate(index, axis=1)
        held = np.where(last >= 0, np.take_along_axis(x, np.maximum(last, 0), axis=1), self._hold[:, None])
        run = np.arange(x.shape[1]) - last + np.where(last >= 0, 0, self._run[:, None])
        self._hold, self._run = held[:, -1].astype(np.float32), run[:, -1]
        usable: Bool = np.all((run <= self.policy.max_fill) & np.isfinite(held), axis=0)
        self.filled += int((~finite[:, usable]).sum())
        return held.astype(np.float32, copy=False), usable

    def _append(self, time_ns: Int64, x: Float32, out: "_Batch", number: int, apart: int) -> None:
        n = len(time_ns)
        self._good_ns = int(time_ns[-1])
        if self._used + n > len(self._time):
            self._compact(n)
        self._x[:, self._used : self._used + n] = x
        self._time[self._used : self._used + n] = time_ns
        self._used += n
        count = (self._used - self.length - self._next) // self.hop + 1
        if count > 0:
            first = slice(self._next, self._next + (count - 1) * self.hop + 1, self.hop)
            last = slice(self._next + self.length - 1, self._next + (count - 1) * self.hop + self.length, self.hop)
            # What sliding_window_view gives, without its checks, which cost more than the copy.
            row, column = self._x.strides
            shape, strides = (count, self.channels, self.length), (self.hop * column, row, column)
            # No copy: what has been written is never written again, the buffer is replaced. At a hop of one sample a burst
            # would otherwise become as many times larger as a window has samples.
            out.x.append(np.ndarray(shape, np.float32, self._x, self._next * column, strides))
            out.start_ns.append(self._time[first].copy())
            out.end_ns.append(self._time[last].copy())
            done = self._next + self.length - 1 - (self._used - n)  # which of these samples completes the first window
            out.position.append(number + apart * (done + self.hop * np.arange(count)))
            fresh = np.zeros(count, bool)
            fresh[0], self._fresh = self._fresh, False
            out.fresh.append(fresh)
            self._next += count * self.hop

    def _compact(self, incoming: int) -> None:
        """Drop what no later window needs and make room."""
        keep = min(self._next, self._used)
        self._used -= keep
        self._next -= keep
        kept_x, kept_time = self._x[:, keep : keep + self._used], self._time[keep : keep + self._used]
        # A burst (a file, a stalled host) grows the buffer for as long as it lasts and no longer.
        size = max(4 * (self.length + self.hop), self._used + incoming)
        target_x = np.empty((self.channels, size), np.float32)
        target_time = np.empty(size, np.int64)
        target_x[:, : self._used], target_time[: self._used] = kept_x, kept_time
        self._x, self._time = target_x, target_time

    def _restart(self) -> None:
        self._x = np.empty_like(self._x)  # windows that were handed out still look at the old one
        self._used = 0
        self._next = 0
        self._fresh = True


class _Batch:
    """What one call of `feed` gathers."""

    def __init__(self) -> None:
        self.start_ns: list[Int64] = []
        self.end_ns: list[Int64] = []
        self.x: list[Float32] = []
        self.fresh: list[Bool] = []
        self.position: list[Int64] = []
        self.gaps: list[Gap] = []

    def windows(self, channels: int, length: int) -> Windows:
        if not self.x:
            none = np.empty(0, np.int64)
            return Windows(none, none, np.empty((0, channels, length), np.float32), np.empty(0, bool), tuple(self.gaps))
        # Nearly always there is one piece, and then nothing is copied again.
        x = self.x[0] if len(self.x) == 1 else np.concatenate(self.x)
        x.flags.writeable = False
        fresh = np.concatenate(self.fresh)
        start_ns, end_ns, position = map(np.concatenate, (self.start_ns, self.end_ns, self.position))
        return Windows(start_ns, end_ns, x, fresh, tuple(self.gaps), position)
