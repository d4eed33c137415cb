"""Is the sensor itself to blame? Looks at raw samples, before windows are cut from them: at missing values, runs and stamps.

- `stuck`: a channel repeats its value for longer than it ever did when all was well. Whoever often stands still is not judged.
- `dropout`: values are missing again and again or for long; or a channel lies dead on a value that it never had. Samples that
  do not come at all are a gap, and told as such: many a sensor sleeps between bursts.
- `range`: values so far out that no machine gets there: a hundred times the largest and fifty times the usual span away.
- `spikes`: single samples stand out, and their neighbours know nothing of it. A machine that is struck rings. Not judged
  below `SPIKES_FROM_HZ`: there a single sample is a long time, and may well be the machine.
- `rate`: samples come at another rate than the model's.
- `clock`: the sensor's clock runs off against the host's, or jumps back again and again.

What is *not* told: a gain or an offset that is off, or creeps. One channel that moves alone is also what a hot winding or a
worn bearing looks like, and a fault of the machine that is taken for one of the sensor is the worse mistake.

Thresholds are relative to what the channel itself did when all was well (`Usual`), and are set by what a machine cannot do,
not by what suited some data set. Everything happens on a grid of *looks*, a quarter of a window each and counted from the first
sample, so how samples are split into calls never matters. Looks are examined many at a time: at once when somebody asks
(`excuses`), and otherwise every `TELL_S`. That costs a hundredth of what a verdict does.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, Self

import numpy as np

from edge.signal import Bool, Float32, Int64, Samples

Kind = Literal["clock", "dropout", "range", "rate", "spikes", "stuck"]

TELL_S, MOST_TOLD = 5.0, 4096
"""A fault is told this late at most; and at high rates, where that costs no more, every so many samples."""
MEMORY_S, MEMORY_WINDOWS = 60.0, 10
"""What is rare is counted over so long: a minute, or ten windows where that is longer."""

RUN_FACTOR, FEWEST_EQUAL = 8, 16
"""A value is stuck when it is repeated for this many times the longest run that is usual. In noise a run twice as long is as
rare as the square of the odds; eight times is never, and what is not noise gets room. No run below 16 counts."""
STILL = 0.01
"""Share of windows that stand still for half their length above which standing still is how the channel is."""
OUT_SPANS, OUT_TIMES = 50.0, 100.0
"""Ruined bearings shake twenty times as hard as sound ones, and a sensor may have used a hundredth of its scale so far."""
SPIKE_FACTOR, SPIKE_ALONE = 4.0, 0.25
"""A spike is so many times the largest usual one; what its neighbours do is at most this share of it."""
SPIKES_FROM_HZ = 20.0
MISSING = 0.05
"""Share of values that may be missing. Windows are filled across what is short and reported as gaps where it is not."""
OFTEN = 2.5
"""Three spikes, absurd values or jumps of the clock within the memory are told; one or two are just not believed."""
RATE_OFF, RATE_SHARE = 0.05, 0.6
"""How far the rate may be off. It is told when it has been for a minute: `1 − 1/e` of the memory's time, nearly."""
SKEW = 0.005
"""How far a clock may run off: twenty times a bad crystal, and what 0.25 s of jitter can feign within a minute."""
BLAME = 0.5
"""Share of the blame that faulty channels must carry for a strange window to be theirs."""

_EVERY = -1  # in place of a channel: all of them


@dataclass(frozen=True, slots=True)
class Usual:
    """What each channel does when all is well; (C,) each."""

    low: Float32
    high: Float32
    """Smallest and largest value."""
    run: Float32
    """A value repeated this many times was never seen, with room to spare; 0: it often is, so that says nothing."""
    turn: Float32
    """Height of the largest spike; 0: the channel never moves, so that says nothing."""

    def __post_init__(self) -> None:
        if len({getattr(self, field.name).shape for field in fields(self)}) != 1 or self.low.ndim != 1:
            raise ValueError("usual.* are not one number for each channel")

    @classmethod
    def fit(cls, x: Float32) -> Self:
        """From normal windows (n, C, N), of which one in a hundred may be none.

        What is beyond the outermost fiftieth of windows counts only as far as that one in a hundred cannot spoil anything.
        """
        if x.ndim != 3 or not len(x) or x.shape[2] < 3:
            raise ValueError(f"windows of the shape {x.shape} do not show what is usual")
        rows = [_usual(x[:, channel].astype(np.float64)) for channel in range(x.shape[1])]  # one at a time: they may be many
        return cls(*np.array(rows, np.float32).T.copy())

    def arrays(self) -> dict[str, Float32]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Float32]) -> Self:
        return cls(**arrays)


def _usual(v: np.ndarray) -> tuple[float, float, float, float]:
    """Low, high, run, turn of one channel (n, N)."""
    length = v.shape[1]
    bottom, top = v.min(axis=1), v.max(axis=1)
    low, high = float(np.quantile(bottom, 0.02)), float(np.quantile(top, 0.98))
    if span := high - low:
        low, high = max(float(bottom.min()), low - 10 * span), min(float(top.max()), high + 10 * span)
    else:  # bursts, rarer than one window in fifty; they are all there is to go by
        low, high = float(bottom.min()), float(top.max())

    at = np.arange(1, length)
    step = np.diff(v)
    changed = np.maximum.accumulate(np.where(step != 0, at, 0), axis=1)
    longest = (at - changed).max(axis=1) + 1
    still = longest >= length / 2
    run = 0.0
    if still.mean() <= STILL:
        run = max(FEWEST_EQUAL, RUN_FACTOR * float(np.quantile(longest[~still], 0.98)), 2.0 * float(longest[~still].max()))
        if still.any():  # it does happen, or somebody's sensor was stuck when this was recorded
            run = max(run, 4.0 * length)

    before, after = step[:, :-1], -step[:, 1:]
    height = np.where(before * after > 0, np.minimum(np.abs(before), np.abs(after)), 0.0).max(axis=1)
    typical = float(np.quantile(height, 0.98))
    turn = min(max(float(height.max()), typical), 4 * typical)
    if not turn and step.any():  # a ramp, or one in coarse steps: its spikes are measured by its steps
        turn = float(np.abs(step).max())
    return low, high, run, turn


@dataclass(frozen=True, slots=True)
class Fault:
    """That a sensor's fault begins, or is over."""

    kind: Kind
    channel: int | None
    """None: all of them."""
    since_ns: int
    until_ns: int | None
    """Its last sample, once it is over."""
    time_ns: int
    """Sample at which it was certain."""
    position: int
    """How many samples had come when it is told."""


@dataclass(slots=True)
class _Case:
    """What one channel did of one kind lately."""

    level: float = 0.0
    """How much of it, the older the less."""
    since_ns: int = 0
    last_ns: int = 0
    last: int = -(1 << 62)
    """Position of the last sample that was bad."""
    told: bool = False


@dataclass(frozen=True, slots=True, order=True)
class _Bad:
    """A look with something wrong in it."""

    position: int
    """Of its last sample, which is when it is known."""
    kind: Kind
    channel: int
    weight: float
    first_ns: int
    last_ns: int
    last: int


@dataclass(slots=True)
class _Spell:
    """A stretch in which samples of a channel are not to be believed."""

    kind: Kind
    channel: int
    known: int
    """Position from which this is known."""
    last: int


class SensorHealth:
    """The faults of one stream's sensor. Positions count samples, from 1, in the order they came."""

    def __init__(
        self,
        usual: Usual | None,
        channels: int,
        rate_hz: float,
        window: int,
        *,
        smoothing: int = 0,
        jitter_s: float = 0.0,
    ) -> None:
        """`smoothing`: samples before a window that have a say in its score. Without `usual`, values are not judged."""
        self.channels = channels
        self._period_ns = 1e9 / rate_hz
        self._tolerance_ns = max(self._period_ns / 2, jitter_s * 1e9)
        self._look = max(1, window // 4)
        self._in_window = -(-window // self._look)
        looks = min(TELL_S * rate_hz, MOST_TOLD) // self._look
        self._batch = self._look * max(1, int(looks))
        memory = self._memory = max(MEMORY_S * rate_hz, MEMORY_WINDOWS * window)
        reach = self._reach = window + smoothing + self._look
        self._enough: dict[Kind, float] = {
            "clock": OFTEN,
            "dropout": MISSING * memory,
            "range": OFTEN,
            "rate": RATE_SHARE * memory,
            "spikes": OFTEN,
            "stuck": 0.0,
        }
        # Not before the last window that holds something of it is judged; and what comes and goes is one fault.
        self._clear: dict[Kind, float] = dict.fromkeys(self._enough, max(memory, reach)) | {"clock": max(2.5 * memory, reach)}

        self._rate_hz = rate_hz
        self.adopt(usual)

        self._fed = 0
        self._seen = 0  # examined so far
        self._due = self._batch
        self._pieces: list[Samples] = []  # fed and not yet examined
        self._tail = np.full((channels, 4), np.nan, np.float32)  # last values examined
        self._last_ns: int | None = None  # stamp of the last one examined
        self._same = np.zeros(channels, np.int64)  # how many before the last value were equal to it
        self._same_ns = np.zeros(channels, np.int64)  # stamp of the first of them
        self._off = 0  # looks in a row at another rate; below 0 when they are shorter than they should be
        self._arrivals: list[tuple[int, int, int]] = []  # position, stamp and how much later on the host's clock
        self._minute = -1
        self._least: tuple[int, int] | None = None  # stamp and lag where the lag was least, in this minute
        self._least_before: tuple[int, int] | None = None
        self._cases: dict[tuple[Kind, int], _Case] = {}
        self._spells: list[_Spell] = []
        self._found: list[Fault] = []
        self.open: tuple[tuple[Kind, int | None], ...] = ()
        """Faults that were told and last, by channel. Replaced and never changed, so any thread may look."""

    def adopt(self, usual: Usual | None) -> None:
        """From the next look on this is usual. ValueError when it is for other channels."""
        if usual is not None and len(usual.low) != self.channels:
            raise ValueError(f"usual.* is for {len(usual.low)} channels, the model has {self.channels}")
        self._judged = usual is not None
        nothing = np.zeros(self.channels, np.float32)
        low, high, run, turn = (usual.low, usual.high, usual.run, usual.turn) if usual else (nothing,) * 4
        self._low, self._high = low, high
        self._run_limit = np.where(run > 0, run, np.inf)
        moves, far = high > low, OUT_TIMES * np.maximum(np.abs(low), np.abs(high))
        self._floor = np.where(moves, np.minimum(low - OUT_SPANS * (high - low), -far), -np.inf).astype(np.float32)
        self._ceiling = np.where(moves, np.maximum(high + OUT_SPANS * (high - low), far), np.inf).astype(np.float32)
        spikes = (turn > 0) & (self._rate_hz >= SPIKES_FROM_HZ)
        self._spike = np.where(spikes, SPIKE_FACTOR * turn, np.inf).astype(np.float32)

    def feed(self, samples: Samples) -> list[Fault]:
        """The faults that begin or end, each told at its `position`."""
        if not len(samples):
            return []
        if self._spells:
            self._spells = [spell for spell in self._spells if spell.last + self._reach > self._fed]
        self._fed += len(samples)
        self._pieces.append(samples)
        if samples.arrived_ns is not None:
            stamp = int(samples.time_ns[-1])
            self._arrivals.append((self._fed, stamp, samples.arrived_ns - stamp))
        if self._fed < self._due:
            return []
        told = self._fed - self._fed % self._batch
        self._due = told + self._batch
        self._examine(told)
        found, self._found = (
            [fault for fault in self._found if fault.position <= told],
            [fault for fault in self._found if fault.position > told],
        )
        return found

    def excuses(self, position: Int64, shares: Float32) -> Bool:
        """For windows that were complete at `position` (B,) and blame `shares` (B, C): is it the sensor that was strange?

        So it is when faulty channels carry at least `BLAME` of the blame, and a sample of theirs that is not to be believed is
        in the window or in those that it was averaged with. That a clock is off excuses nothing: it hardly changes a window.
        """
        if len(position):
            self._examine(int(position[-1]) // self._look * self._look)
        faulty = np.zeros(shares.shape, bool)
        for spell in self._spells:
            touched = (position >= spell.known) & (position < spell.last + self._reach)
            faulty[touched, slice(None) if spell.channel == _EVERY else spell.channel] = True
        excused: Bool = np.where(faulty, shares, 0).sum(axis=1) >= BLAME
        return excused

    def end(self) -> list[Fault]:
        """Nobody looks any more: the ends of the faults that were told and last."""
        begun = {(fault.kind, fault.channel) for fault in self._found if fault.until_ns is None}  # and not told yet
        ends = [fault for fault in self._found if fault.until_ns is not None]
        for (kind, channel), case in self._cases.items():
            if case.told:
                where = None if channel == _EVERY else channel
                ends.append(Fault(kind, where, case.since_ns, case.last_ns, case.last_ns, self._fed))
        return [fault for fault in ends if (fault.kind, fault.channel) not in begun]

    # One stretch of whole looks at a time.

    def _examine(self, upto: int) -> None:
        n = upto - self._seen
        if n <= 0:
            return
        time_ns = np.concatenate([piece.time_ns for piece in self._pieces])
        whole = np.concatenate([self._tail, *(piece.x for piece in self._pieces)], axis=1)
        self._pieces = [Samples(time_ns[n:], whole[:, 4 + n :])] if len(time_ns) > n else []
        time_ns, whole = time_ns[:n], whole[:, : 4 + n]
        with np.errstate(invalid="ignore", over="ignore"):
            found = self._stamps(time_ns) + self._values(whole, time_ns)
        self._tail, self._last_ns = whole[:, -4:].copy(), int(time_ns[-1])
        found += self._skew(upto)
        for bad in sorted(found):
            self._close(bad.position - self._look, time_ns)
            self._note(bad)
        self._close(upto, time_ns)
        self._seen = upto

    def _values(self, whole: Float32, time_ns: Int64) -> list[_Bad]:
        """(C, 4 + n), the first four seen before."""
        x = whole[:, 4:]
        top, bottom = x.max(axis=1), x.min(axis=1)
        found: list[_Bad] = []
        lacking = ~(np.isfinite(top) & np.isfinite(bottom))
        for channel in np.flatnonzero(lacking).tolist():
            found += self._bad("dropout", channel, ~np.isfinite(x[channel]), time_ns)
        if not self._judged:
            return found
        for channel in np.flatnonzero(~((top <= self._ceiling) & (bottom >= self._floor))).tolist():
            v = x[channel]
            out = np.isfinite(v) & ((v > self._ceiling[channel]) | (v < self._floor[channel]))
            found += self._bad("range", channel, out, time_ns)
        step = whole[:, 1:] - whole[:, :-1]  # (C, n + 3)
        sharp = ~((step.max(axis=1) <= self._spike) | (-step.min(axis=1) <= self._spike))
        for channel in np.flatnonzero(sharp).tolist():
            at = whole[channel, 2:-2]
            absurd = (at > self._ceiling[channel]) | (at < self._floor[channel])  # told already
            found += self._bad("spikes", channel, _spikes(step[channel], self._spike[channel]) & ~absurd, time_ns)
        return found + self._runs(x, step[:, 3:] == 0, time_ns)

    def _runs(self, x: Float32, same: Bool, time_ns: Int64) -> list[_Bad]:
        n = same.shape[1]
        found: list[_Bad] = []
        long = np.count_nonzero(same, axis=1) + self._same + 1 >= self._run_limit
        for channel in np.flatnonzero(long).tolist():
            at = np.arange(n)
            changed = np.maximum.accumulate(np.where(same[channel], -1, at))
            run = np.where(changed >= 0, at - changed, at + 1 + self._same[channel])  # equal ones before each
            stuck = run + 1 >= self._run_limit[channel]
            usual = (x[channel] >= self._low[channel]) & (x[channel] <= self._high[channel])
            start = at - run
            began_ns = np.where(start >= 0, time_ns[np.maximum(start, 0)], self._same_ns[channel])
            found += self._bad("stuck", channel, stuck & usual, time_ns, began_ns)
            found += self._bad("dropout", channel, stuck & ~usual, time_ns, began_ns, weight=math.inf)
        trailing = np.where(same.all(axis=1), n, np.argmin(same[:, ::-1], axis=1))
        self._same_ns = np.where(trailing < n, time_ns[np.maximum(n - 1 - trailing, 0)], self._same_ns)
        self._same = np.where(trailing < n, trailing, self._same + n)
        return found

    def _stamps(self, time_ns: Int64) -> list[_Bad]:
        period, look = self._period_ns, self._look
        before_ns = int(time_ns[0]) - round(period) if self._last_ns is None else self._last_ns
        steps = np.diff(time_ns, prepend=before_ns)
        found: list[_Bad] = []
        if steps.max() > period + self._tolerance_ns:
            self._least = self._least_before = None  # the clock may have been another one behind it
        if steps.min() < -self._tolerance_ns:
            found += self._bad("clock", _EVERY, steps < -self._tolerance_ns, time_ns)
            self._least = self._least_before = None

        took = np.diff(time_ns[look - 1 :: look], prepend=before_ns) / (look * period)
        if self._off or (np.abs(took - 1) > RATE_OFF).any():
            median = np.median(steps.reshape(-1, look), axis=1) / period  # holes do not touch it
            slow = (took > 1 + RATE_OFF) & (median > 1 + RATE_OFF)
            fast = (took < 1 - RATE_OFF) & (median < 1 - RATE_OFF) & (took > 0)
            off = np.zeros(len(took), bool)
            for i, sign in enumerate((slow.astype(int) - fast).tolist()):
                self._off = self._off + sign if sign and self._off * sign >= 0 else sign
                off[i] = abs(self._off) >= self._in_window  # a whole window, so that no host that was busy looks like it
            found += self._bad("rate", _EVERY, np.repeat(off, look), time_ns)
        return found

    def _skew(self, upto: int) -> list[_Bad]:
        """Whoever arrives late tells nothing, so of each minute only the least late is compared with that of the one before."""
        found: list[_Bad] = []
        while self._arrivals and self._arrivals[0][0] <= upto:
            position, stamp, lag = self._arrivals.pop(0)
            if (minute := int(position // self._memory)) != self._minute:
                if self._least and self._least_before:
                    passed, more = self._least[0] - self._least_before[0], self._least[1] - self._least_before[1]
                    if passed > 0 and abs(more) > SKEW * (passed + more):
                        # However far: which of the two clocks is wrong, or whether it is the rate, nobody here can tell. As a
                        # `rate` it would excuse whatever comes, for as long as a sensor counts its time in other units.
                        look, since = -(-position // self._look) * self._look, self._least_before[0]
                        found.append(_Bad(look, "clock", _EVERY, math.inf, since, stamp, position))
                self._minute, self._least_before, self._least = minute, self._least, None
            if self._least is None or lag < self._least[1]:
                self._least = stamp, lag
        return found

    def _bad(
        self,
        kind: Kind,
        channel: int,
        samples: Bool,
        time_ns: Int64,
        began_ns: Int64 | None = None,
        *,
        weight: float = 1.0,
    ) -> list[_Bad]:
        """The looks that hold some of these samples (n,)."""
        at = np.flatnonzero(samples)
        if not len(at):
            return []
        looks, first, count = np.unique(at // self._look, return_index=True, return_counts=True)
        last = at[first + count - 1]
        first = at[first]
        began = (time_ns if began_ns is None else began_ns)[first]
        ends = self._seen + (looks + 1) * self._look
        columns = (ends, weight * count, began, time_ns[last], self._seen + last + 1)
        return [_Bad(end, kind, channel, *rest) for end, *rest in zip(*(column.tolist() for column in columns), strict=True)]

    # What becomes of it.

    def _note(self, bad: _Bad) -> None:
        case = self._cases.setdefault((bad.kind, bad.channel), _Case())
        if not case.told and bad.position - case.last > self._clear[bad.kind]:
            case.level, case.since_ns = 0.0, bad.first_ns
        aged = math.exp(-max(0, bad.last - case.last) / self._memory)
        case.level = case.level * aged + bad.weight if math.isfinite(bad.weight) else self._enough[bad.kind]
        case.last, case.last_ns = bad.last, bad.last_ns
        if not case.told and case.level >= self._enough[bad.kind]:
            case.told = True
            self._tell(bad.kind, bad.channel, case, bad.position, bad.last_ns, over=False)
        if bad.kind != "clock":
            for spell in self._spells:
                if (spell.kind, spell.channel) == (bad.kind, bad.channel) and bad.position <= spell.last + self._reach:
                    spell.last = bad.last
                    return
            self._spells.append(_Spell(bad.kind, bad.channel, bad.position, bad.last))

    def _close(self, upto: int, time_ns: Int64) -> None:
        """Faults that are over by position `upto`, in the order of time."""
        over = []
        for (kind, channel), case in self._cases.items():
            position = -(-int(case.last + self._clear[kind]) // self._look) * self._look
            if case.told and position <= upto:
                over.append((position, kind, channel, case))
        for position, kind, channel, case in sorted(over, key=lambda one: one[:3]):
            case.told = False
            self._tell(kind, channel, case, position, int(time_ns[position - self._seen - 1]), over=True)

    def _tell(self, kind: Kind, channel: int, case: _Case, position: int, time_ns: int, *, over: bool) -> None:
        lasting = sorted((channel, kind) for (kind, channel), case in self._cases.items() if case.told)
        self.open = tuple((kind, None if channel == _EVERY else channel) for channel, kind in lasting)
        told = -(-position // self._batch) * self._batch
        where = None if channel == _EVERY else channel
        self._found.append(Fault(kind, where, case.since_ns, case.last_ns if over else None, time_ns, told))


def _spikes(step: Float32, least: np.float32) -> Bool:
    """(n + 3,) differences → (n,): the sample before the last but one stands alone. Known when two more have come."""
    before, up, down, after = np.abs(step[:-3]), step[1:-2], -step[2:-1], np.abs(step[3:])
    height = np.minimum(np.abs(up), np.abs(down))
    quiet = SPIKE_ALONE * height
    found: Bool = (up * down > 0) & (height > least) & (np.abs(up - down) <= quiet) & (before <= quiet) & (after <= quiet)
    return found
