"""p-values → episodes: should a person know?

    quiet ──pending strange windows in a row──▶ active ──clear ordinary windows in a row──▶ quiet, cool-down

One strange window is chance: at p = 0.001 and ten windows a second it happens every two minutes. Windows overlap, so several
strange ones in a row may all be the same stretch of signal. By default an alert therefore waits until two strange windows of
an unbroken row share no sample.

Nobody reads the hundredth alert of a loose contact, nor the second of a level that has shifted for good and looks ordinary now
and then. So an end is followed by a cool-down; it belongs to a cause, the channel that is blamed most. A cause that is back
before it has been away for as long was not over: the same episode goes on when the cool-down has passed, and is no alert. The
cool-down doubles whenever that cause comes back within `BACK` times the longest one; another cause is told at once. And over
all causes there is a ration: `BURST` alerts, and one more for every longest cool-down that passes. With the defaults no 24
hours of the stream's clock ever see more than 36 alerts, whatever the signal does, and one cause alone no more than 32. What
has to wait is told when its time has come and it still lasts; nothing is lost but the repetition.

Only windows open and close an episode, never the clock: an alert follows so many strange windows, its end so many ordinary
ones, whatever time they claim to be of.
"""

import math
from collections import deque
from dataclasses import dataclass
from statistics import median

import numpy as np

from edge.config import AlarmConfig
from edge.errors import ConfigError
from edge.event import Event, EventType, Share
from edge.scoring.budget import Allowance, Tail, allowance
from edge.scoring.calibrate import Calibrator
from edge.signal import Bool, Float32, Float64, Int64

BACK = 24
"""Longest cool-downs of quiet after which a cause begins anew: with the default a day."""
BURST = 12
"""Alerts before they are rationed. A morning on which a machine is taken apart has fewer."""
PAUSES = 8
"""Pauses that are remembered to tell a sensor that sleeps from one that was cut off; half of them have to be known."""
LONGER = 2.0
"""Times the usual pause: up to there the next window of a sensor that sleeps belongs to the same row. One burst may be lost."""


@dataclass(frozen=True, slots=True)
class AlarmPolicy:
    """`AlarmConfig` with every default worked out for one model."""

    p_value: float
    clear_p_value: float
    pending: int
    clear: int
    cool_down_ns: int
    longest_cool_down_ns: int
    update_every_ns: int
    longest_update_ns: int
    bridge_ns: int | None
    """A pause up to this long does not break a row; `None`: found out from the stream."""
    allowance: Allowance | None = None
    """What this costs in false alarms; `None`: the bundle cannot tell."""

    @classmethod
    def of(
        cls,
        config: AlarmConfig,
        *,
        calibrator: Calibrator,
        length: int,
        hop: int,
        tail: Tail | None = None,
        rate_hz: float = 1.0,
    ) -> "AlarmPolicy":
        """For windows of `length` samples, `hop` apart. Raises `ConfigError` for a threshold that cannot be told."""
        if config.p_value is not None and config.p_value < calibrator.floor:
            raise ConfigError(
                f"alarm.p_value = {config.p_value:g} cannot be told: the model was calibrated on {calibrator.windows} windows, "
                f"which tell nothing rarer than {calibrator.floor:.3g}; raise it to that, calibrate on more normal data, or "
                "set alarm.false_alarms instead, which is estimated where it cannot be counted"
            )
        disjoint = math.ceil(length / hop) + 1
        pending = config.pending_windows or disjoint
        allowed = allowance(config, calibrator, tail, (pending - 1) * hop / rate_hz / 3600)
        if allowed is not None:
            p_value = allowed.p_value
        else:
            p_value = calibrator.usual_p_value if config.p_value is None else config.p_value
        return cls(
            p_value=p_value,
            clear_p_value=min(1.0, p_value * config.clear_ratio),
            pending=pending,
            clear=config.clear_windows or disjoint,
            cool_down_ns=round(config.cool_down_s * 1e9),
            longest_cool_down_ns=round(max(config.cool_down_s, config.longest_cool_down_s) * 1e9),
            update_every_ns=round(config.update_every_s * 1e9),
            longest_update_ns=round(max(config.update_every_s, config.longest_update_s) * 1e9),
            bridge_ns=None if config.bridge_s is None else round(config.bridge_s * 1e9),
            allowance=allowed,
        )

    def sentence(self) -> str:
        """What this threshold promises."""
        if self.allowance is not None:
            return self.allowance.sentence()
        return (
            f"p ≤ {self.p_value:.2g} is strange; this bundle was made before there were budgets and promises no rate of alerts"
        )

    def alerts_at_most(self, span_ns: int) -> int | None:
        """In any stretch of that length, while the stream's clock is not set back; without a cool-down there is no bound."""
        return BURST + span_ns // self.longest_cool_down_ns if self.cool_down_ns else None


@dataclass(frozen=True, slots=True)
class Worst:
    """What an episode came to."""

    score: float
    p_value: float
    blame: Float64
    """(C,) sum of the shares of its strange windows."""


@dataclass(slots=True)
class Rest:
    """The cool-down of one cause."""

    since_ns: int
    length_ns: int
    episode: int | None
    """What was over, and goes on if the cause has come back meanwhile; `None`: a person has ended it."""
    began_ns: int
    worst: Worst
    seen_ns: int | None = None
    """When the cause was last back, though nobody was told."""
    usual_ns: int | None = None
    """Its length, had nobody asked for the longest one."""

    @property
    def until_ns(self) -> int:
        return self.since_ns + self.length_ns


class Rows:
    """Which windows begin a row anew? Those behind a gap, but not where the sensor always sleeps between a few windows.

    Its rows are all too short for an alert. There a pause that is no longer than `LONGER` times the usual one breaks nothing;
    and where rows are long enough, strange windows on both sides of a gap are two strange things.
    """

    def __init__(self, hop_ns: int) -> None:
        self._hop_ns = hop_ns
        self._last_ns: int | None = None
        self._length = 0
        self._pauses: deque[int] = deque(maxlen=PAUSES)
        self._lengths: deque[int] = deque(maxlen=PAUSES)

    @property
    def last_ns(self) -> int | None:
        return self._last_ns

    def feed(self, end_ns: Int64, policy: AlarmPolicy) -> Bool:
        """(B,)"""
        anew = np.zeros(len(end_ns), bool)
        if not len(end_ns):
            return anew
        steps = np.empty_like(end_ns)  # np.diff with `prepend` takes five times as long
        steps[0] = self._hop_ns if self._last_ns is None else end_ns[0] - self._last_ns
        np.subtract(end_ns[1:], end_ns[:-1], out=steps[1:])
        at = 0
        for i in np.flatnonzero((steps <= 0) | (steps >= 1.5 * self._hop_ns)).tolist():
            self._length += i - at
            anew[i] = not self._bridged(int(steps[i]), policy)
            self._lengths.append(self._length)
            if steps[i] > 0:
                self._pauses.append(int(steps[i]))
            self._length, at = 0, i
        self._length += len(end_ns) - at
        self._last_ns = int(end_ns[-1])
        return anew

    def _bridged(self, pause_ns: int, policy: AlarmPolicy) -> bool:
        if pause_ns <= 0:
            return False
        if policy.bridge_ns is not None:
            return pause_ns <= policy.bridge_ns
        if len(self._pauses) < PAUSES // 2 or max(*self._lengths, self._length) >= policy.pending:
            return False
        return pause_ns <= LONGER * median(self._pauses)


class Alarm:
    """Hysteresis, cool-down, one episode number from start to end. Pure: time is what the windows say."""

    def __init__(self, policy: AlarmPolicy, channels: tuple[str, ...], hop_ns: int, model: str) -> None:
        self.policy, self._channels, self._model = policy, channels, model
        self._hop_ns = hop_ns
        self._rows = Rows(hop_ns)
        self._episodes = 0
        self._strange = 0  # strange windows in a row
        self._ordinary = 0  # ordinary windows in a row
        self._active = False
        self._since_ns = 0
        self._cause = 0
        self._rests: dict[int, Rest] = {}  # by channel
        self._rationed_ns: int | None = None  # up to when all of the ration would be spent, at one each longest cool-down
        self._update_due_ns = 0
        self._update_every_ns = 0
        self._muted = False
        self._worst_score, self._worst_p = -math.inf, 1.0
        self._blame: Float64 = np.zeros(len(channels))

    @property
    def active(self) -> bool:
        return self._active

    @property
    def since_ns(self) -> int | None:
        """When the episode that is active began."""
        return self._since_ns if self._active else None

    @property
    def muted(self) -> bool:
        """Nothing starts at the moment."""
        return self._muted

    def new_episode(self) -> int:
        """A number of its own for something that is told beside the anomalies, such as a gap."""
        self._episodes += 1
        return self._episodes

    def take_over(self, other: "Alarm") -> None:
        """Go on where another model's alarm was, which has no episode on: with its numbers, its cool-downs, muted if it was."""
        self._episodes = other._episodes
        self._rests, self._rationed_ns = other._rests, other._rationed_ns
        self._muted = other._muted
        self._shorten(other._rows.last_ns)

    def set_policy(self, policy: AlarmPolicy) -> None:
        """From the next window on. An episode that is active goes on and ends by the new rules."""
        self.policy = policy
        self._shorten(self._rows.last_ns)

    def _shorten(self, now_ns: int | None) -> None:
        """What was noted under another policy lasts no longer than this one lets it."""
        longest_ns = self.policy.longest_cool_down_ns
        if not self.policy.cool_down_ns:  # only what a person asked for
            self._rests = {cause: rest for cause, rest in self._rests.items() if rest.usual_ns is not None}
            self._rationed_ns = None
        elif self._rationed_ns is not None and now_ns is not None:
            self._rationed_ns = min(self._rationed_ns, now_ns + BURST * longest_ns)
        for rest in self._rests.values():
            rest.length_ns = min(rest.length_ns, longest_ns)
            rest.usual_ns = None if rest.usual_ns is None else min(rest.usual_ns, longest_ns)

    def clock_set_back(self) -> None:
        """The stream's clock jumped back (a sensor that restarted): moments noted on it mean nothing any more."""
        self._rests, self._rationed_ns = {}, None

    def mute(self) -> Event | None:
        """For maintenance: nothing starts until `unmute`. Returns the end of the episode that was active.

        What is strange meanwhile counts for nothing: an anomaly that is still there afterwards is told after as many windows
        as any other.
        """
        self._muted = True
        self._strange = self._ordinary = 0
        return None if self._rows.last_ns is None else self.end(self._rows.last_ns, "maintenance")

    def unmute(self) -> None:
        self._muted = False

    def end(self, time_ns: int, reason: str, *, longest: bool = False) -> Event | None:
        """End the episode that is active, for a reason that no window gives; `None` when there is none.

        Like after any other end the same cause waits for its cool-down; with `longest`, for the longest there is.
        """
        if not self._active:
            return None
        ended = self._ended(time_ns, reason)
        for rest in self._rests.values():
            if longest and rest.since_ns == time_ns:
                rest.usual_ns, rest.length_ns = rest.length_ns, self.policy.longest_cool_down_ns
        return ended

    def relent(self) -> None:
        """Nobody wants the longest cool-downs any more that were asked for: what lasts is told after the usual ones."""
        for rest in self._rests.values():
            if rest.usual_ns is not None:
                rest.length_ns, rest.usual_ns = rest.usual_ns, None

    def update(self, end_ns: Int64, score: Float32, p_value: Float64, shares: Float32) -> tuple[list[Event], Bool]:
        """Judge windows in order of time.

        `end_ns`, `score`, `p_value` are (B,), `shares` is (B, C). Returns the events and, per window, whether an episode was
        active after it.
        """
        active = np.full(len(end_ns), self._active)
        anew = self._rows.feed(end_ns, self.policy)
        if not self._active and not self._strange and (p_value > self.policy.p_value).all():
            return [], active  # the ordinary case costs one comparison of arrays
        events: list[Event] = []
        for i in range(len(end_ns)):
            if anew[i]:
                self._strange = self._ordinary = 0  # "in a row" starts anew; an episode that is open stays open
            event = self._window(int(end_ns[i]), float(score[i]), float(p_value[i]), shares[i])
            if event is not None:
                events.append(event)
            active[i] = self._active
        return events, active

    def _window(self, end_ns: int, score: float, p_value: float, shares: Float32) -> Event | None:
        if p_value <= self.policy.p_value:
            self._strange, self._ordinary = self._strange + 1, 0
        elif p_value > self.policy.clear_p_value:
            self._strange, self._ordinary = 0, self._ordinary + 1
        else:  # neither: not strange enough to raise, not ordinary enough to clear
            self._strange = self._ordinary = 0
        if self._muted:
            self._strange = 0

        if not self._active:
            if self._strange == 0:
                self._clear_worst()
                return None
            if self._strange == 1:
                self._clear_worst()
                self._since_ns = end_ns - self._hop_ns
            self._note(score, p_value, shares)
            cause = int(self._blame.argmax())
            if self._strange < self.policy.pending:
                return None
            rest = self._rests.get(cause)
            if rest is not None and end_ns < rest.until_ns:
                rest.seen_ns = end_ns
                return None
            if rest is not None and rest.episode and rest.seen_ns is not None and end_ns - rest.seen_ns <= rest.length_ns:
                return self._resumed(rest, rest.episode, cause, end_ns)
            if self._rationed(end_ns):
                return None
            self._active, self._cause = True, cause
            self._spend(end_ns)
            self._update_every_ns = self.policy.update_every_ns
            self._update_due_ns = end_ns + self._update_every_ns
            self._episode = self.new_episode()
            return self._event("anomaly_started", end_ns)

        self._since_ns = min(self._since_ns, end_ns - self._hop_ns)  # the clock may have been set back
        self._note(score, p_value, shares)
        if self._ordinary >= self.policy.clear:
            return self._ended(end_ns)
        if end_ns >= self._update_due_ns or end_ns < self._update_due_ns - self._update_every_ns:
            # What has lasted for a week need not be said every minute.
            self._update_every_ns = min(2 * self._update_every_ns, self.policy.longest_update_ns)
            self._update_due_ns = end_ns + self._update_every_ns
            return self._event("anomaly_updated", end_ns)
        return None

    def _resumed(self, rest: Rest, episode: int, cause: int, end_ns: int) -> Event:
        """It was not over: the same episode goes on, under its number."""
        self._active, self._cause, self._episode, self._since_ns = True, cause, episode, rest.began_ns
        worst = rest.worst
        self._worst_score, self._worst_p = max(self._worst_score, worst.score), min(self._worst_p, worst.p_value)
        self._blame = self._blame + worst.blame
        self._update_every_ns = self.policy.update_every_ns
        self._update_due_ns = end_ns + self._update_every_ns
        return self._event("anomaly_updated", end_ns)

    def _rationed(self, now_ns: int) -> bool:
        return self._rationed_ns is not None and (self._rationed_ns - now_ns > (BURST - 1) * self.policy.longest_cool_down_ns)

    def _spend(self, now_ns: int) -> None:
        if self.policy.cool_down_ns:
            spent_ns = now_ns if self._rationed_ns is None else max(now_ns, self._rationed_ns)
            self._rationed_ns = spent_ns + self.policy.longest_cool_down_ns

    def _ended(self, time_ns: int, reason: str = "") -> Event:
        self._active, self._strange = False, 0
        # Blame shifts while an episode lasts; neither what it began with nor what it came to is to be told twice.
        for cause in {self._cause, int(self._blame.argmax())}:
            rest, length_ns = self._rests.get(cause), self.policy.cool_down_ns
            if rest is not None and time_ns - rest.until_ns < BACK * self.policy.longest_cool_down_ns:
                length_ns = min(2 * rest.length_ns, self.policy.longest_cool_down_ns)
            worst = Worst(self._worst_score, self._worst_p, self._blame.copy())
            self._rests[cause] = Rest(time_ns, length_ns, None if reason else self._episode, self._since_ns, worst)
        return self._event("anomaly_ended", time_ns, until_ns=time_ns, reason=reason)

    def _clear_worst(self) -> None:
        self._worst_score, self._worst_p, self._blame = -math.inf, 1.0, np.zeros(len(self._channels))

    def _note(self, score: float, p_value: float, shares: Float32) -> None:
        self._worst_score, self._worst_p = max(self._worst_score, score), min(self._worst_p, p_value)
        if p_value <= self.policy.p_value:
            self._blame += shares

    def _event(self, kind: EventType, time_ns: int, until_ns: int | None = None, reason: str = "") -> Event:
        total = self._blame.sum()
        order = np.argsort(-self._blame, kind="stable")
        return Event(
            type=kind,
            episode=self._episode,
            time_ns=time_ns,
            since_ns=self._since_ns,
            until_ns=until_ns,
            score=self._worst_score if math.isfinite(self._worst_score) else None,
            p_value=self._worst_p,
            threshold=self.policy.p_value,
            channels=tuple(Share(self._channels[i], round(float(self._blame[i] / total), 4)) for i in order) if total else (),
            model=self._model,
            reason=reason,
        )
