"""Samples in, events out: what the trainer evaluates, what a replay runs and what the device runs is this one pure object.

    Samples ─▶ Windower ─▶ Backend ─▶ Ensemble ─▶ Smoother ─▶ Calibrator ─▶ Alarm ─▶ Event
                                  └───────────── Explainer ─────────────────┘

No clock, no file, no network. Fed the same samples it gives the same events, however they are split into calls.
"""

from dataclasses import dataclass

import numpy as np

from edge.event import Event
from edge.head import Head
from edge.scoring.alerts import Alarm, AlarmPolicy
from edge.scoring.backends import Backend, run_in_slices
from edge.scoring.smoothing import Smoother
from edge.scoring.streaming import Stream
from edge.sensing.windows import Windower
from edge.signal import Bool, Float32, Float64, Gap, Int64, Samples


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What was thought of the windows that some samples completed, oldest first."""

    start_ns: Int64
    end_ns: Int64
    """(B,) first and last sample that each score is about: the window, and those before it that it was averaged with."""
    score: Float32
    """(B,) higher is stranger; 0 is ordinary."""
    p_value: Float64
    """(B,)"""
    shares: Float32
    """(B, C) blame per channel."""
    alarm: Bool
    """(B,) an episode was active after this window."""
    events: tuple[Event, ...]

    def __len__(self) -> int:
        return len(self.end_ns)


class Pipeline:
    """One stream's way from samples to events. Usually made by `Bundle.pipeline`."""

    def __init__(
        self,
        windower: Windower,
        backend: Backend,
        head: Head,
        policy: AlarmPolicy,
        smoother: Smoother,
        *,
        channels: tuple[str, ...],
        model: str = "",
        stream: Stream | None = None,
    ) -> None:
        """With `stream`, whose hop is the windower's, new samples go through it and not whole windows through `backend`."""
        self.channels, self.windower = channels, windower
        self._backend, self.head = backend, head
        self._model, self._stream = model, stream
        self._hop_ns = round(windower.hop * windower.period_ns)
        self._smoother = smoother
        self.alarm = Alarm(policy, channels, self._hop_ns, model)
        self._gap_episode = 0

    @property
    def policy(self) -> AlarmPolicy:
        """Changed by `alarm.set_policy`."""
        return self.alarm.policy

    def feed(self, samples: Samples) -> list[Event]:
        """The events that these samples cause."""
        return list(self.judge(samples).events)

    def judge(self, samples: Samples) -> Verdicts:
        """Like `feed`, and what was thought of every window on the way."""
        windows = self.windower.feed(samples)
        events = [self._gap(gap) for gap in windows.gaps]
        if any(gap.reason == "backwards" for gap in windows.gaps):
            self.alarm.clock_set_back()
        if not len(windows):
            none = np.empty(0, np.int64)
            shares = np.empty((0, len(self.channels)), np.float32)
            return Verdicts(none, none, np.empty(0, np.float32), np.empty(0), shares, np.empty(0, bool), tuple(events))
        outputs = self._stream.run(windows) if self._stream else run_in_slices(self._backend, windows.x)
        score, seen = self._smoother.feed(windows.end_ns, self.head.scorer.score(outputs))
        p_value = self.head.calibrator.p_value(score)
        shares = self.head.explainer.shares(outputs)
        alerts, active = self.alarm.update(windows.end_ns, score, p_value, shares)
        start_ns = windows.start_ns - (seen - 1) * self._hop_ns
        return Verdicts(start_ns, windows.end_ns, score, p_value, shares, active, (*events, *alerts))

    def _gap(self, gap: Gap) -> Event:
        if gap.end_ns is None or gap.reason != "missing":
            self._gap_episode = self.alarm.new_episode()
        return Event(
            type="gap",
            episode=self._gap_episode,
            time_ns=gap.start_ns if gap.end_ns is None else gap.end_ns,
            since_ns=gap.start_ns,
            until_ns=gap.end_ns,
            model=self._model,
            reason=gap.reason,
        )
