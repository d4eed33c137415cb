"""Samples in, events out: what the trainer evaluates, what a replay runs and what the device runs is this one pure object.

    Samples ─┬─▶ Windower ─▶ Backend ─▶ Ensemble ─▶ Memory ─▶ Smoother ─▶ Calibrator ─▶ Alarm ────────────▶ Event
             │                      ├──────────────────────── Explainer ────────────────┤   ├─▶ Settling ─┤
             └─▶ SensorHealth ──────┼───────────────────────────────────────────────────┘   │             │
                                    └──────────────────────────────────────────────────────┴─▶ Drift ────┘

No clock, no file, no network. Fed the same samples it gives the same events, however they are split into calls.

A strange window for which the sensor is to blame (`SensorHealth.excuses`) is ordinary to the alarm: it neither raises nor
keeps up an anomaly. One that mostly blames channels whose sensor is sound counts as ever. So an anomaly that was raised before
the fault could be known is over soon, as one episode, and one of the machine goes on beside the fault.
"""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np

from edge.event import Event, Share
from edge.head import Head
from edge.scoring.alerts import Alarm, AlarmPolicy
from edge.scoring.backends import Backend, Outputs, run_in_slices
from edge.scoring.drift import Drift, Settling
from edge.scoring.evidence import Evidence
from edge.scoring.explain import excerpt
from edge.scoring.memory import Memory
from edge.scoring.smoothing import Smoother
from edge.scoring.streaming import Stream
from edge.sensing.health import Fault, SensorHealth
from edge.sensing.windows import Windower
from edge.signal import Bool, Float32, Float64, Gap, Int64, Samples, Windows


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
    excused: Bool
    """(B,) strange, but a sensor is to blame."""
    finite: Bool
    """(B,) all that the model says of it are finite numbers. Of the score that cannot be seen: it is bounded, and averaged."""
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
        settle_s: float = 600.0,
        faults: Callable[[], Outputs] | None = None,
        health: SensorHealth | None = None,
    ) -> None:
        """With `stream`, whose hop is the windower's, new samples go through it and not whole windows through `backend`.

        `settle_s`: see `AlarmConfig`; `faults`: see `Memory`. Without `health` no sensor is ever to blame.
        """
        self.channels, self.windower, self.health = channels, windower, health
        self._backend, self.head = backend, head
        self._model, self._stream = model, stream
        self._hop_ns = round(windower.hop * windower.period_ns)
        self._smoother = smoother
        self.alarm = Alarm(policy, channels, self._hop_ns, model)
        self._gap_episode = 0
        self._fault_episodes: dict[tuple[str, int | None], int] = {}
        self._blamed = set[tuple[str, int | None]]()  # faults of the sensor that were told, last, and touch values
        self._settle_s, self._faults = settle_s, faults
        self.tap: Callable[[Windows, Outputs], None] | None = None
        """Gets every window and what the model says of it; for commissioning."""
        self._end_ns = 0
        self.memory = Memory(head.reference, faults)
        self.evidence = Evidence()
        self.drift: Drift | None = None
        self.settling: Settling | None = None
        self._watch()

    def _watch(self) -> None:
        """Slow change is told by the head's own reference; without one, not at all."""
        self.drift = None
        if self.head.reference is not None:
            window_ns = self.windower.length * self.windower.period_ns
            self.drift = Drift(self.head.reference, self.channels, window_ns, self._hop_ns, self._model, self.alarm.new_episode)
        self.settling = self._settling()

    def _settling(self) -> Settling | None:
        if self.head.reference is None:
            return None
        window_ns = self.windower.length * self.windower.period_ns
        return Settling(self.head.reference, self.channels, window_ns, self._hop_ns, self._model, self._settle_s)

    def adopt(self, head: Head, policy: AlarmPolicy | None = None) -> list[Event]:
        """From the next window on `head` says what is ordinary. Returns the events that it causes.

        Give the policy that goes with its calibration, or the threshold may be out of reach. What was forgiven stays so. An
        episode that lasts ends when its windows are ordinary for the new head.
        """
        events = self.drift.end(self._end_ns) if self.drift else []
        self.head = head
        if policy is not None:
            self.alarm.set_policy(policy)
        if self.health is not None:
            self.health.adopt(head.usual)
        self._smoother.restart()
        self.memory = Memory.from_arrays(self.memory.arrays(), head.reference, self._faults)
        self._watch()
        return events

    def set_alarm(self, policy: AlarmPolicy, settle_s: float) -> None:
        """From the next window on. Another `settle_s` begins to look anew."""
        self.alarm.set_policy(policy)
        if settle_s != self._settle_s:
            self._settle_s = settle_s
            self.settling = self._settling()

    def take_over(self, other: "Pipeline") -> list[Event]:
        """Go on where another model's pipeline was, whose alarm has no episode on, with the same channels at the same rate.

        Returns the ends of what is on there, drift and faults of the sensor: what lasts is told anew."""
        events = other.drift.end(other._end_ns) if other.drift else []
        events += [other._fault(fault) for fault in other.health.end()] if other.health else []
        self.alarm.take_over(other.alarm)
        return events

    def outputs(self, x: Float32) -> Outputs:
        """What the model says of windows (B, C, N) that were kept; for `Memory.add`."""
        return run_in_slices(self._backend, x)

    @property
    def policy(self) -> AlarmPolicy:
        """Changed by `alarm.set_policy`."""
        return self.alarm.policy

    @property
    def faults(self) -> tuple[str, ...]:
        """Those of the sensor that last, for a person: `current: stuck`."""
        return tuple(f"{self._named(channel)}: {kind}" for kind, channel in self.health.open) if self.health else ()

    def feed(self, samples: Samples) -> list[Event]:
        """The events that these samples cause."""
        return list(self.judge(samples).events)

    def judge(self, samples: Samples) -> Verdicts:
        """Like `feed`, and what was thought of every window on the way."""
        windows = self.windower.feed(samples)
        marks: list[Gap | Fault] = [*windows.gaps, *(self.health.feed(samples) if self.health else ())]
        marks.sort(key=lambda mark: mark.position)
        if not len(windows):
            none = np.empty(0, np.int64)
            shares = np.empty((0, len(self.channels)), np.float32)
            no = np.empty(0, bool)
            return Verdicts(none, none, np.empty(0, np.float32), np.empty(0), shares, no, no, no, tuple(map(self._mark, marks)))
        outputs = self._stream.run(windows) if self._stream else run_in_slices(self._backend, windows.x)
        if self.tap is not None:
            self.tap(windows, outputs)
        finite = outputs.finite()
        found = self.head.scorer.score(outputs)
        alone = self.memory.adjust(outputs, found)
        score, seen = self._smoother.feed(windows.end_ns, alone)
        p_value = self.head.calibrator.p_value(score)
        shares = self.head.explainer.shares(outputs)
        excused = p_value <= self.policy.clear_p_value
        if excused.any():  # an ordinary window needs no excuse, and the sensor is not looked at again for it
            excused &= self.health.excuses(windows.position, shares) if self.health else False
        believed = np.where(excused, 1.0, p_value)
        thought = _Thought(windows, outputs, alone, (found > alone) | excused, score, believed, shares)
        # What is told beside the anomalies has its place among the windows, so that nothing depends on what comes in one call.
        events: list[Event] = []
        active = np.empty(len(windows), bool)
        at = 0
        for mark in (*marks, None):
            until = len(windows) if mark is None else int(np.searchsorted(windows.position, mark.position))
            if until > at:
                told, active[at:until] = self._in_turn(thought.part(slice(at, until)))
                events += told
            if mark is not None:
                events.append(self._mark(mark))
            at = until
        self.evidence.update(windows.x, alone, believed <= self.policy.p_value, active)
        self._end_ns = int(windows.end_ns[-1])
        start_ns = windows.start_ns - (seen - 1) * self._hop_ns
        return Verdicts(start_ns, windows.end_ns, score, p_value, shares, active, excused, finite, tuple(events))

    def _mark(self, mark: Gap | Fault) -> Event:
        return self._gap(mark) if isinstance(mark, Gap) else self._fault(mark)

    def _in_turn(self, thought: "_Thought") -> tuple[list[Event], Bool]:
        """Alarm, drift and settling take turns so often that their events come in one order, however samples are split."""
        if self.drift is None or self.settling is None:
            return self._alerts(thought)
        events: list[Event] = []
        active: list[Bool] = []
        at = 0
        while at < len(thought.windows):
            part = thought.part(slice(at, at + min(self.drift.room, self.settling.room)))
            end_ns = part.windows.end_ns
            alerts, now = self._alerts(part)
            events += alerts
            uneasy = now | (part.p_value <= self.policy.p_value)
            asked, unrest = self.settling.update(end_ns, part.outputs, part.alone, uneasy, alerts)
            events += asked
            # What a faulty sensor says is no slow change, nor what is done to a machine in maintenance.
            if not self._blamed and not self.alarm.muted:
                events += self.drift.update(end_ns, part.outputs, part.alone, ~(unrest | now | part.forgiven))
            active.append(now)
            at += len(now)
        return events, active[0] if len(active) == 1 else np.concatenate(active)

    def _alerts(self, thought: "_Thought") -> tuple[list[Event], Bool]:
        windows = thought.windows
        alerts, active = self.alarm.update(windows.end_ns, thought.score, thought.p_value, thought.shares)
        for i, event in enumerate(alerts):
            if event.type == "anomaly_started":
                at = int(np.flatnonzero(windows.end_ns == event.time_ns)[0])
                shown = excerpt(
                    windows.x[at], int(windows.start_ns[at]), self.windower.period_ns, self.channels, event.channels
                )
                alerts[i] = msgspec.structs.replace(event, excerpt=shown)
        return alerts, active

    def _gap(self, gap: Gap) -> Event:
        if gap.reason == "backwards":
            self.alarm.clock_set_back()
            if self.drift is not None:
                self.drift.clock_set_back()
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

    def _fault(self, fault: Fault) -> Event:
        key = fault.kind, fault.channel
        if fault.until_ns is None:
            self._fault_episodes[key] = self.alarm.new_episode()
            if fault.kind != "clock":
                self._blamed.add(key)
        else:
            self._blamed.discard(key)
        names = self.channels if fault.channel is None else (self.channels[fault.channel],)
        return Event(
            type="sensor_fault",
            episode=self._fault_episodes[key],
            time_ns=fault.time_ns,
            since_ns=fault.since_ns,
            until_ns=fault.until_ns,
            channels=tuple(Share(name, round(1 / len(names), 4)) for name in names),
            model=self._model,
            reason=fault.kind,
        )

    def _named(self, channel: int | None) -> str:
        return "all channels" if channel is None else self.channels[channel]


@dataclass(frozen=True, slots=True)
class _Thought:
    """What is known of some windows before the alarm hears of them."""

    windows: Windows
    outputs: Outputs
    alone: Float32
    """(B,) score of each window by itself."""
    forgiven: Bool
    """(B,) it would be higher, but somebody called it ordinary."""
    score: Float32
    p_value: Float64
    shares: Float32

    def part(self, index: slice) -> "_Thought":
        if index.start == 0 and index.stop >= len(self.windows):
            return self
        windows = Windows(
            self.windows.start_ns[index], self.windows.end_ns[index], self.windows.x[index], self.windows.fresh[index]
        )
        return _Thought(
            windows,
            self.outputs.part(index),
            self.alone[index],
            self.forgiven[index],
            self.score[index],
            self.p_value[index],
            self.shares[index],
        )
