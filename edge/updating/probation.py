"""A model has been switched to: does it keep what it showed? Pure: time is what it is told.

Shadow has seen the past, and of that what was recorded. What remains is what the machine does next, so for some hours the new
model serves on trial, and what it does is held against what was known of this stream before. `roll back` when

- something fails: a number that is not finite, no verdicts on samples that came (an exception ends the agent, and the starts
  of a model on trial are counted);
- it is absurd: nearly every window strange from the switch on, or half of them over an hour;
- it is slow: the median of an hour, or of the first `TIMED` windows, beyond the limit;
- it alarms too often, beyond chance.

The last is a sequential test: alarms are a Poisson number, and the likelihood ratio between `times` the bearable rate and the
bearable rate is watched all the time (Wald 1945, "Sequential tests of statistical hypotheses"). Under the bearable rate that
ratio is a martingale, and ever reaches 1 / α with a probability of at most α (Ville 1939), however often one looks: so many
good models at most are rolled back. Alarms that come in swarms break that; what comes within `SWARM_H` of the last that counted
is one alarm.

Only judged time counts: a sensor that is silent, or of whose samples no window can be made, neither helps nor harms. A fault of
the machine looks like a bad model. So what is rolled back is told with its figures, for a person to see which it was.
"""

import math
from bisect import bisect_left
from collections import deque
from itertools import accumulate
from typing import Literal

import msgspec

DISJOINT = 20
"""Windows that share no sample, after which it can be absurd."""
TIMED = 50
SWARM_H = 1.0
HOUR_S = 3600.0

Action = Literal["commit", "go on", "roll back"]


class Before(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of this stream, from shadow and from the old model's service."""

    hours: float
    """Of judged signal,"""
    alarms: int
    """and how many alarms were raised in them: by the old model, or by the new one in shadow where it had more."""
    strange_share: float
    """Of the windows, by the new model in shadow."""
    window: int
    hop: int
    """Samples, of the new model."""
    rate_hz: float
    latency_s: float
    """Median for one window of the new model, in shadow; with this machine's other work it may take twice as long.
    0: not known."""

    @property
    def hop_s(self) -> float:
        return self.hop / self.rate_hz


class Probation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How it is judged."""

    hours: float = 24.0
    """Of judged signal, after which the model stays."""
    times: float = 4.0
    """Alarms are too many at so many times what is bearable. Lower takes longer to tell."""
    per_week: float = 7.0
    """Bearable whatever was before: the false-alarm budget."""
    mistaken: float = 0.01
    """α: share of good models that are rolled back for their alarms, at most."""
    absurd: float = 0.9
    """Share of the windows strange at once, or"""
    strange: float = 0.5
    """over an hour."""
    of_hop: float = 0.5
    slower: float = 4.0
    """Times the latency in shadow, where it is more than a twentieth of the hop."""
    idle_s: float = 600.0
    """Of samples in a row, which may come without a verdict; longer than any window takes to fill."""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What has happened since the last time, all of one stream."""

    samples: int
    windows: int
    strange: int
    """Windows at or below the threshold, not excused by the sensor."""
    alarms: int = 0
    """Started."""
    latency_s: float | None = None
    """Median of the windows' latencies."""
    not_finite: int = 0
    lost: int = 0
    """Samples that no window is made of, and gaps: the sensor's doing, not the model's."""


class Decision(msgspec.Struct, frozen=True):
    action: Action
    reason: str = ""


GO_ON = Decision("go on")


class Serving:
    """One model on probation on one stream. Its state can be stored and loaded: a start of the agent is not a new chance."""

    def __init__(self, before: Before, probation: Probation | None = None) -> None:
        self.before, self.probation = before, probation or Probation()
        self.alarms = 0
        """That counted, swarms as one."""
        self._told = 0
        self._last_alarm_h = -math.inf
        self._windows = self._strange = 0
        self._hour: deque[tuple[int, int]] = deque(maxlen=60)  # windows and strange ones, of judged minutes that are over
        self._minute = (0, 0)
        self._unheard = 0  # samples in a row since the last window
        self._latencies: deque[tuple[float, int]] = deque(maxlen=600)

    @property
    def hours(self) -> float:
        """Judged so far."""
        return self._windows * self.before.hop_s / HOUR_S

    @property
    def bearable_per_h(self) -> float:
        """An upper estimate: in few hours without an alarm there may have been one by chance."""
        known = (self.before.alarms + 1) / self.before.hours if self.before.hours else 0.0
        return max(known, self.probation.per_week / 168)

    @property
    def evidence(self) -> float:
        """Logarithm of how much likelier the alarms are at the unbearable rate."""
        return self.alarms * math.log(self.probation.times) - (self.probation.times - 1) * self.bearable_per_h * self.hours

    @property
    def share(self) -> float:
        """Of the probation that is over, 0 … 1."""
        return min(1.0, self.hours / self.probation.hours)

    def update(self, seen: Seen) -> Decision:
        """Whatever comes first; called at least once a minute."""
        if seen.not_finite:
            return Decision("roll back", f"what it says of {seen.not_finite} windows is not finite")
        self._count(seen)
        for judge in (self._idle, self._absurd, self._slow, self._alarming):
            if reason := judge():
                return Decision("roll back", reason)
        return Decision("commit", f"{self.hours:.3g} h served, {self.alarms} alarms") if self.share == 1.0 else GO_ON

    def state(self) -> dict[str, float]:
        """What has to outlast a start of the agent."""
        return {
            "alarms": float(self.alarms),
            "told": float(self._told),
            "since_alarm_h": self.hours - self._last_alarm_h if self.alarms else -1.0,
            "windows": float(self._windows),
            "strange": float(self._strange),
        }

    def load(self, state: dict[str, float]) -> None:
        """Raises KeyError or ValueError for what `state` does not give."""
        values = [float(state[name]) for name in ("alarms", "since_alarm_h", "windows", "strange")]
        if not all(map(math.isfinite, values)):
            raise ValueError(f"no state of a probation: {state}")
        self.alarms, since_h, self._windows, self._strange = int(values[0]), values[1], int(values[2]), int(values[3])
        self._last_alarm_h = self.hours - since_h if since_h >= 0 else -math.inf
        self._told = max(self.alarms, int(min(state.get("told", 0.0), 1e9)))  # not there before: some were of one swarm

    def _count(self, seen: Seen) -> None:
        self._windows += seen.windows
        self._strange += seen.strange
        self._told += seen.alarms
        if seen.alarms and self.hours - self._last_alarm_h >= SWARM_H:
            self.alarms += 1
            self._last_alarm_h = self.hours
        self._minute = self._minute[0] + seen.windows, self._minute[1] + seen.strange
        while self._minute[0] * self.before.hop_s >= 60.0:  # more than one, where somebody reports more seldom
            whole = max(1, round(60.0 / self.before.hop_s))
            part = round(self._minute[1] * min(1.0, whole / self._minute[0]))
            self._hour.append((whole, part))
            self._minute = max(self._minute[0] - whole, 0), self._minute[1] - part
        if seen.latency_s is not None and seen.windows:
            self._latencies.append((seen.latency_s, seen.windows))
        self._unheard = 0 if seen.windows or seen.lost else self._unheard + seen.samples

    def _idle(self) -> str:
        idle_s = self._unheard / self.before.rate_hz  # no clock: of a slow stream nothing comes most of the time
        longest_s = max(self.probation.idle_s, 10 * self.before.window / self.before.rate_hz)
        return f"says nothing for {idle_s:.0f} s of samples" if idle_s > longest_s else ""

    def _absurd(self) -> str:
        overlap = max(1.0, self.before.window / self.before.hop)
        usual = self.before.strange_share
        if self._windows < DISJOINT * overlap:
            return ""
        since = self._strange / self._windows
        if since >= max(self.probation.absurd, 2 * usual):
            return f"finds {since:.0%} of all windows strange since the switch, {usual:.2%} in shadow"
        share = sum(part[1] for part in self._hour) / max(1, sum(part[0] for part in self._hour))
        if len(self._hour) == self._hour.maxlen and share > max(self.probation.strange, 5 * usual):
            return f"finds {share:.0%} of the windows of an hour strange, {usual:.2%} in shadow"
        return ""

    def _slow(self) -> str:
        if sum(windows for _, windows in self._latencies) < TIMED:
            return ""
        ordered = sorted(self._latencies)
        counts = list(accumulate(windows for _, windows in ordered))
        median = ordered[bisect_left(counts, counts[-1] / 2)][0]
        hop_s = self.before.hop_s
        if median > self.probation.of_hop * hop_s:
            return f"takes {1e3 * median:.3g} ms for a window, {1e3 * hop_s:.3g} ms pass between two"
        if self.before.latency_s and median > max(0.05 * hop_s, self.probation.slower * self.before.latency_s):
            return f"takes {1e3 * median:.3g} ms for a window, {1e3 * self.before.latency_s:.3g} ms in shadow"
        return ""

    def _alarming(self) -> str:
        if self.evidence < -math.log(self.probation.mistaken):
            return ""
        return (
            f"raised {self._told} alarms in {self.hours:.3g} h ({self.alarms} apart), "
            f"{self.bearable_per_h * self.hours:.2g} are bearable in that time"
        )
