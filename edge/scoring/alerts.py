"""p-values → episodes: should a person know?

    quiet ──pending strange windows in a row──▶ active ──clear ordinary windows in a row──▶ quiet, cool-down

One strange window is chance: at p = 0.001 and ten windows a second it happens every two minutes. Windows overlap, so several
strange ones in a row may all be the same stretch of signal. By default an alert therefore waits until two strange windows of
an unbroken row share no sample.
"""

import math
from dataclasses import dataclass

import numpy as np

from edge.config import AlarmConfig
from edge.errors import ConfigError
from edge.event import Event, EventType, Share
from edge.signal import Bool, Float32, Float64, Int64

DEFAULT_P_VALUE = 0.001


@dataclass(frozen=True, slots=True)
class AlarmPolicy:
    """`AlarmConfig` with every default worked out for one model."""

    p_value: float
    clear_p_value: float
    pending: int
    clear: int
    cool_down_ns: int
    update_every_ns: int

    @classmethod
    def of(cls, config: AlarmConfig, *, floor: float, length: int, hop: int) -> "AlarmPolicy":
        """Raises `ConfigError` for a threshold that the calibration can never reach."""
        p_value = max(DEFAULT_P_VALUE, floor) if config.p_value is None else config.p_value
        if p_value < floor:
            raise ConfigError(
                f"alarm.p_value = {p_value:g} can never be reached: the model was calibrated on {round(1 / floor) - 1} "
                f"windows, which tell nothing rarer than {floor:.3g}; raise it to that, or calibrate on more normal data"
            )
        disjoint = math.ceil(length / hop) + 1
        pending = config.pending_windows or disjoint
        return cls(
            p_value=p_value,
            clear_p_value=min(1.0, p_value * config.clear_ratio),
            pending=pending,
            clear=config.clear_windows or disjoint,
            cool_down_ns=round(config.cool_down_s * 1e9),
            update_every_ns=round(config.update_every_s * 1e9),
        )


class Alarm:
    """Hysteresis, cool-down, one episode number from start to end. Pure: time is what the windows say."""

    def __init__(self, policy: AlarmPolicy, channels: tuple[str, ...], hop_ns: int, model: str) -> None:
        self.policy, self._channels, self._hop_ns, self._model = policy, channels, hop_ns, model
        self._episodes = 0
        self._strange = 0  # strange windows in a row
        self._ordinary = 0  # ordinary windows in a row
        self._active = False
        self._since_ns = 0
        self._quiet_until_ns: int | None = None
        self._updated_ns = 0
        self._last_ns: int | None = None
        self._clear_worst()

    @property
    def active(self) -> bool:
        return self._active

    @property
    def since_ns(self) -> int | None:
        """When the episode that is active began."""
        return self._since_ns if self._active else None

    def new_episode(self) -> int:
        """A number of its own for something that is told beside the anomalies, such as a gap."""
        self._episodes += 1
        return self._episodes

    def clock_set_back(self) -> None:
        """The stream's clock jumped back (a sensor that restarted): moments noted on it mean nothing any more."""
        self._quiet_until_ns = None

    def update(self, end_ns: Int64, score: Float32, p_value: Float64, shares: Float32) -> tuple[list[Event], Bool]:
        """Judge windows in order of time.

        `end_ns`, `score`, `p_value` are (B,), `shares` is (B, C). Returns the events and, per window, whether an episode was
        active after it.
        """
        active = np.full(len(end_ns), self._active)
        if not self._active and not self._strange and (p_value > self.policy.p_value).all():
            if len(end_ns):
                self._last_ns = int(end_ns[-1])
            return [], active  # the ordinary case costs one comparison of arrays
        events: list[Event] = []
        for i in range(len(end_ns)):
            event = self._window(int(end_ns[i]), float(score[i]), float(p_value[i]), shares[i])
            if event is not None:
                events.append(event)
            active[i] = self._active
        return events, active

    def _window(self, end_ns: int, score: float, p_value: float, shares: Float32) -> Event | None:
        if self._last_ns is not None and not 0 < end_ns - self._last_ns < 1.5 * self._hop_ns:
            self._strange = self._ordinary = 0  # a gap: "in a row" starts anew; an episode that is open stays open
        self._last_ns = end_ns
        if p_value <= self.policy.p_value:
            self._strange, self._ordinary = self._strange + 1, 0
        elif p_value > self.policy.clear_p_value:
            self._strange, self._ordinary = 0, self._ordinary + 1
        else:  # neither: not strange enough to raise, not ordinary enough to clear
            self._strange = self._ordinary = 0

        if not self._active:
            if self._strange == 0:
                self._clear_worst()
                return None
            if self._strange == 1:
                self._clear_worst()
                self._since_ns = end_ns - self._hop_ns
            self._note(score, p_value, shares)
            if self._strange < self.policy.pending or (self._quiet_until_ns is not None and end_ns < self._quiet_until_ns):
                return None
            self._active, self._updated_ns = True, end_ns
            self._episode = self.new_episode()
            return self._event("anomaly_started", end_ns)

        self._note(score, p_value, shares)
        if self._ordinary >= self.policy.clear:
            self._active, self._strange = False, 0
            self._quiet_until_ns = end_ns + self.policy.cool_down_ns
            return self._event("anomaly_ended", end_ns, until_ns=end_ns)
        if end_ns - self._updated_ns >= self.policy.update_every_ns or end_ns < self._updated_ns:
            self._updated_ns = end_ns
            return self._event("anomaly_updated", end_ns)
        return None

    def _clear_worst(self) -> None:
        self._worst_score, self._worst_p, self._blame = -math.inf, 1.0, np.zeros(len(self._channels))

    def _note(self, score: float, p_value: float, shares: Float32) -> None:
        self._worst_score, self._worst_p = max(self._worst_score, score), min(self._worst_p, p_value)
        if p_value <= self.policy.p_value:
            self._blame += shares

    def _event(self, kind: EventType, time_ns: int, until_ns: int | None = None) -> Event:
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
        )
