"""A new model beside the one in use, over what this very stream has recorded: is it fit to serve here?

    recorded ─┬─▶ live pipeline, with the head that this stream was commissioned with ─┐
              └─▶ candidate's pipeline ────────────────────────────────────────────────┴─▶ Limits ─▶ ShadowReport

A self-test says that this machine computes what the build machine did. It does not say that the model suits the machine that is
watched: that is seen here, on that machine's own running, before a single alert depends on it. Pure but for measuring time,
by a clock that is an argument.

A head belongs to the very model that it was fitted to, so what was learned on site does not belong to the candidate. It is
judged with the head in its bundle, and, when `refit` can make one from the recording, with that; what is judged is what serves.

Of what is recorded nobody knows whether it was all normal. So nothing is measured against a truth, but against the model that
serves, and against what the candidate itself promises.

Three answers. `refused` is for ever: only what the candidate is to blame for leads there. `unknown` is for now: too little is
recorded yet. What no recording of the past can show is left to probation (`edge.updating.probation`).
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import msgspec
import numpy as np

from edge.bundle import Bundle, Manifest
from edge.config import WEEK_H, AlarmConfig
from edge.errors import AmissError, DataError
from edge.head import Head
from edge.pipeline import Pipeline, Verdicts
from edge.scoring.backends import OUTPUTS, Outputs
from edge.scoring.commission import fit_head
from edge.scoring.inject import inject, usual_spread
from edge.sensing.health import Usual
from edge.signal import Float32, Samples, Windows

TIMED = 200
"""Windows that are judged one by one, as they come live, and timed; all others many at a time."""
TIMED_EARLY = (8, 32, 128)
"""After so many of them a model that is hopelessly slow is given up."""
TRIED = 224
"""Recorded windows that faults are put into."""
QUANTILES = (0.05, 0.5, 0.95, 0.99, 1.0)
REFIT_WINDOWS = 2000
"""That a head is fitted to; up to twice as many are held while it is not known how many there will be."""
REFIT_BYTES = 48 * 1024 * 1024
RARE = 0.01
"""A count that is rarer than this under what is allowed is not chance."""

Verdict = Literal["accepted", "refused", "unknown"]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a candidate has to keep on this stream."""

    minutes: float = 30.0
    """Of judged signal before anything but a failure is decided,"""
    windows: int = 200
    """and windows, of which those that overlap count."""
    times_live: float = 2.0
    """Alarms and strange windows: so many times those of the live model. One alarm more is always granted: it may be a fault
    that the live model does not hear."""
    per_week: float | None = None
    """Alarms that are bearable whatever the live model does; `None`: the false-alarm budget, without one an alarm a day."""
    times_promised: float = 10.0
    """Strange windows: so many times what the threshold promises. Ten, because machines move on: of what calibrates well on a
    fleet, on one machine three times as many are no fault (docs/results-promise.md)."""
    of_hop: float = 0.5
    """Share of the time between two windows that one of them may take, at the median."""
    free: float = 0.05
    """Up to this share of it nobody asks how fast the live model is; beyond, `slower` times its time is the limit."""
    slower: float = 2.0
    first_s: float = 5.0
    """For the very first window: so long the stream stands still at the switch."""
    heard: float = 0.5
    """Of injected faults, relative to those that the live model hears."""


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """What one model makes of the recording."""

    model: str
    """Digest."""
    windows: int
    hours: float
    """Of signal that was judged."""
    episodes: int
    strange: int
    """Windows at or below the threshold that no sensor fault excuses."""
    excused: int
    promised: float
    """Share of strange windows that the threshold promises."""
    score: dict[str, float]
    """Quantiles."""
    p_value: dict[str, float]
    heard: float | None
    """Share of injected faults that would raise an alarm if they lasted."""
    latency_s: dict[str, float]
    """`first`, `median`, `high` (95 %) for one window; empty when none was timed."""
    hop_s: float
    not_finite: int
    """Windows for which the model did not say finite numbers."""

    @property
    def strange_share(self) -> float:
        return self.strange / self.windows if self.windows else 0.0


class ShadowReport(msgspec.Struct, frozen=True, kw_only=True):
    verdict: Verdict
    reasons: tuple[str, ...]
    """One line for each limit that is not kept, or for what is missing."""
    head: Literal["own", "refitted"]
    """Which head of the candidate was judged: that of its bundle, or one fitted to this stream's recording. What was
    commissioned on site belongs to the live model and is never used with another."""
    minutes: float
    """Of signal that the candidate judged."""
    minutes_missing: float
    """That have to be recorded yet; 0 when it is enough."""
    live: Side
    candidate: Side | None
    """`None`: it failed before it said anything."""
    failed: bool = False
    """Refused for what no other head can mend."""

    def sentence(self) -> str:
        return f"{self.verdict}: {'; '.join(self.reasons)}" if self.reasons else self.verdict


def compare(
    live: Bundle,
    candidate: Bundle,
    samples: Iterable[Samples],
    *,
    alarm: AlarmConfig | None = None,
    live_head: Head | None = None,
    candidate_head: Head | None = None,
    limits: Limits | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> ShadowReport:
    """Both over the same samples, oldest first. The heads are those of the bundles where none is given.

    `clock` in seconds. What the candidate does wrong is in the report. Raises `DataError` when the live model fails on the
    recording: that is no fault of the candidate.
    """
    limits, alarm = limits or Limits(), alarm or AlarmConfig()
    head: Literal["own", "refitted"] = "own" if candidate_head is None else "refitted"
    try:
        old = _Run(live, live_head, alarm, clock)
    except AmissError as error:
        raise DataError(f"the model in use cannot be compared with: {error}") from None
    trouble = ""
    new: _Run | None = None
    try:
        new = _Run(candidate, candidate_head, alarm, clock, limits.of_hop)
    except AmissError as error:
        trouble = f"does not work with the alarm settings of this device: {error}"
    except Exception as error:  # what a model makes its runtime raise is not known beforehand, and is its own fault
        trouble = _raised(error)
    for part in samples:
        try:
            old.feed(part)
        except Exception as error:  # the live model's fault is no reason to refuse another
            raise DataError(f"the model in use {_raised(error)}") from None
        if new is None:
            break
        try:
            new.feed(part)
        except Exception as error:  # as above
            trouble = _raised(error)
            break
        if trouble := new.trouble or _slow(new, old, limits):
            break
    try:
        side = new.side() if new else None
    except Exception as error:  # as above: it hears injected faults for that
        side, trouble = None, trouble or _raised(error)
    usual = old.side()
    minutes = 60 * side.hours if side else 0.0
    missing = _missing(side, limits) if side else 0.0
    verdict: Verdict
    if trouble:
        verdict, reasons = "refused", [trouble]
    elif side is None or missing:
        verdict, reasons = "unknown", [f"{minutes:.3g} min are recorded, {missing:.3g} more are needed to tell"]
    else:
        reasons = list(_broken(usual, side, limits, alarm, candidate))
        verdict = "refused" if reasons else "accepted"
    return ShadowReport(
        verdict=verdict,
        reasons=tuple(reasons),
        head=head,
        minutes=round(minutes, 2),
        minutes_missing=round(missing, 2),
        live=usual,
        candidate=side,
        failed=bool(trouble),
    )


def unlike(live: Manifest, candidate: Manifest) -> str:
    """Why the candidate cannot take the place of the live model on the same stream; empty when it can.

    Windows, hop and scorer may be others: they are the model's own business. A unit that is left out is no other unit.
    """
    names, wanted = (tuple(channel.name for channel in one.channels) for one in (candidate, live))
    if names != wanted:
        return f"is for the channels {', '.join(names)}; this stream has {', '.join(wanted)}, in this order"
    for ours, theirs in zip(live.channels, candidate.channels, strict=True):
        if ours.unit and theirs.unit and ours.unit != theirs.unit:
            return f"is for {theirs.name} in {theirs.unit}; this stream has it in {ours.unit}"
    if not 0.99 < candidate.rate_hz / live.rate_hz < 1.01:
        return f"is for {candidate.rate_hz:g} Hz; this stream has {live.rate_hz:g} Hz"
    return ""


def refit(bundle: Bundle, samples: Iterable[Samples], *, alarm: AlarmConfig | None = None) -> Head:
    """Commission the model from a recording of the stream, as `request/commission` does from what comes in.

    Windows in which the sensor lacks values or keeps another rate do not count. Raises `DataError` when they are too few, or
    look faulty.
    """
    taken = _Taken(bundle)
    pipeline = bundle.pipeline(alarm)

    def look(windows: Windows, outputs: Outputs) -> None:
        kinds = {kind for kind, _ in pipeline.health.open} if pipeline.health else set()
        if kinds.isdisjoint(("dropout", "rate")):
            taken.add(windows, outputs)

    pipeline.tap = look
    for part in samples:
        pipeline.judge(part)
    return taken.head()


def _raised(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"fails with {type(error).__name__}: {text[:300]}" if text else f"fails with {type(error).__name__}"


class _Run:
    """One model over the recording."""

    def __init__(
        self, bundle: Bundle, head: Head | None, alarm: AlarmConfig, clock: Callable[[], float], of_hop: float = math.inf
    ) -> None:
        self.bundle, self._clock = bundle, clock
        self.pipeline: Pipeline = bundle.pipeline(alarm)
        if head is not None:
            self.pipeline.adopt(head, bundle.policy(alarm, head))
        self.pipeline.tap = self._look
        self.took_s: list[float] = []  # for one window, the first ones
        self.trouble = ""
        self._shapes = {name: array.shape[1:] for name, array in bundle.golden.outputs.arrays().items()}
        self._not_finite = self._windows = self._episodes = self._strange = self._excused = 0
        self._scores: list[Float32] = []
        self._p_values: list[Float32] = []
        self._tried: list[Float32] = []
        self._each = 1
        self._longest_s = of_hop * self.hop_s

    @property
    def hop_s(self) -> float:
        return self.pipeline.windower.hop / self.bundle.manifest.rate_hz

    def feed(self, samples: Samples) -> None:
        for part in self._pieces(samples):
            began_s = self._clock()
            verdicts = self.pipeline.judge(part)
            took_s = self._clock() - began_s
            if len(verdicts) and len(self.took_s) < TIMED:
                self.took_s.append(took_s / len(verdicts))
            self._tally(verdicts)
            if len(self.took_s) in TIMED_EARLY and (median := self.latency_s()["median"]) > self._longest_s:
                self.trouble = (
                    f"takes {_ms(median)} for a window, {_ms(self._longest_s)} of the {_ms(self.hop_s)} between two is allowed"
                )
            if self.trouble:
                break

    def _pieces(self, samples: Samples) -> Iterator[Samples]:
        hop = self.pipeline.windower.hop
        at = 0
        while at < len(samples):
            n = hop if len(self.took_s) < TIMED else len(samples) - at
            yield Samples(samples.time_ns[at : at + n], samples.x[:, at : at + n])
            at += n

    def _look(self, windows: Windows, outputs: Outputs) -> None:
        for name, array in outputs.arrays().items():
            if array.shape != (len(windows), *self._shapes[name]):
                self.trouble = f"gives {name} of the shape {array.shape}, its golden outputs are {self._shapes[name]} a window"
                return
        if broken := int(np.count_nonzero(~outputs.finite())):
            self._not_finite += broken
            self.trouble = f"what it says of {self._not_finite} windows is not finite"
        # Some windows, evenly over the recording, to put faults into.
        at = -self._windows % self._each
        while at < len(windows):
            self._tried.append(windows.x[at].copy())
            if len(self._tried) > 2 * TRIED:
                self._tried, self._each = self._tried[::2], 2 * self._each
            at = _next(self._windows + at, self._each) - self._windows

    def _tally(self, verdicts: Verdicts) -> None:
        self._windows += len(verdicts)
        self._episodes += sum(event.type == "anomaly_started" for event in verdicts.events)
        self._strange += int(np.count_nonzero((verdicts.p_value <= self.pipeline.policy.p_value) & ~verdicts.excused))
        self._excused += int(verdicts.excused.sum())
        self._scores.append(verdicts.score)
        self._p_values.append(verdicts.p_value.astype(np.float32))

    def latency_s(self) -> dict[str, float]:
        if not self.took_s:
            return {}
        median, high = np.quantile(self.took_s, (0.5, 0.95)).tolist()
        return {"first": self.took_s[0], "median": median, "high": high}

    def side(self) -> Side:
        hours = self._windows * self.hop_s / 3600
        return Side(
            model=self.bundle.digest,
            windows=self._windows,
            hours=hours,
            episodes=self._episodes,
            strange=self._strange,
            excused=self._excused,
            promised=self.pipeline.policy.p_value,
            score=_quantiles(self._scores),
            p_value=_quantiles(self._p_values),
            heard=self._heard(),
            latency_s=self.latency_s(),
            hop_s=self.hop_s,
            not_finite=self._not_finite,
        )

    def _heard(self) -> float | None:
        """A fault that lasts is what smoothing leaves as it is, so each window stands for itself."""
        if self.trouble or not self._tried:
            return None
        x = np.stack(self._tried[:: -(-len(self._tried) // TRIED)])
        outputs = self.pipeline.outputs(inject(x, usual_spread(x), np.random.default_rng(3)))
        head = self.pipeline.head
        return float((head.calibrator.p_value(head.scorer.score(outputs)) <= self.pipeline.policy.p_value).mean())


def _quantiles(parts: list[Float32]) -> dict[str, float]:
    values = np.concatenate(parts) if parts else np.empty(0, np.float32)
    if not len(values):
        return {}
    found = np.quantile(np.minimum(values, np.float32(3e38)), QUANTILES).tolist()
    return {f"{share:g}": value for share, value in zip(QUANTILES, found, strict=True)}


def _slow(new: _Run, old: _Run, limits: Limits) -> str:
    """Why it is too slow, as far as was timed; nothing while that is too little."""
    if new.took_s and new.took_s[0] > limits.first_s:
        return f"takes {new.took_s[0]:.3g} s for its first window, {limits.first_s:.3g} s are allowed"
    if len(new.took_s) < TIMED_EARLY[0]:
        return ""
    median, usual = new.latency_s()["median"], old.latency_s().get("median", math.inf)
    if median > limits.free * new.hop_s and median > limits.slower * usual:
        return f"takes {_ms(median)} for a window, the live model {_ms(usual)}"
    return ""


def _missing(side: Side, limits: Limits) -> float:
    """Minutes that have to be judged yet."""
    return max(limits.minutes - 60 * side.hours, (limits.windows - side.windows) * side.hop_s / 60, 0.0)


def _broken(live: Side, side: Side, limits: Limits, alarm: AlarmConfig, candidate: Bundle) -> Iterator[str]:
    """A line for each limit that is not kept."""
    per_week = limits.per_week or alarm.per_week or 7.0
    bearable = _at_most(per_week * side.hours / WEEK_H)
    granted = max(math.floor(limits.times_live * live.episodes) + 1, bearable)
    if side.episodes > granted:
        yield (
            f"raises {side.episodes} alarms in {side.hours:.3g} h, the live model {live.episodes}; "
            f"{granted} are allowed ({limits.times_live:g} times those and one, or {per_week:.3g} a week)"
        )
    # Windows overlap: what makes one strange makes its neighbours so, and the first such row is chance.
    row = 2 * math.ceil(candidate.manifest.window / candidate.manifest.hop)
    allowed = max(limits.times_promised * side.promised, limits.times_live * live.strange_share)
    if side.strange > allowed * side.windows + row:
        yield (
            f"finds {side.strange_share:.2%} of the windows strange, {side.promised:.2g} is promised and the live model finds "
            f"{live.strange_share:.2%}; {allowed:.2%} are allowed"
        )
    (low, high), (least, most) = ((one.p_value["0.05"], one.p_value["0.95"]) for one in (side, live))
    if high <= low and most > least:
        yield f"says the same of everything (p = {low:.3g})"
    if live.heard is not None and side.heard is not None and live.heard >= 0.1 and side.heard < limits.heard * live.heard:
        yield (
            f"hears {side.heard:.0%} of the faults that were put into what is recorded, the live model {live.heard:.0%}; "
            f"{limits.heard * live.heard:.0%} are needed"
        )


def _at_most(mean: float) -> int:
    """The most events that come with this mean and are no rarer than `RARE`: of a Poisson number."""
    term = total = math.exp(-mean)
    count = 0
    while total < 1 - RARE and count < 10_000:
        count += 1
        term *= mean / count
        total += term
    return count


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _next(at: int, each: int) -> int:
    """The next multiple."""
    return (at // each + 1) * each


class _Taken:
    """Windows for a new head, evenly over a recording of unknown length."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        golden = bundle.golden
        size = sum(array[:1].nbytes for array in (golden.x, *golden.outputs.arrays().values()))
        self._most = max(200, min(REFIT_WINDOWS, REFIT_BYTES // 2 // max(size, 1)))
        self._each, self._seen = 1, 0
        self._kept: list[tuple[int, Float32, Outputs]] = []  # end, (C, N), of one window

    def add(self, windows: Windows, outputs: Outputs) -> None:
        at = -self._seen % self._each
        while at < len(windows):
            part = Outputs(*(getattr(outputs, name)[at : at + 1].copy() for name in OUTPUTS))
            self._kept.append((int(windows.end_ns[at]), windows.x[at].copy(), part))
            if len(self._kept) > 2 * self._most:
                self._kept, self._each = self._kept[::2], 2 * self._each
            at = _next(self._seen + at, self._each) - self._seen
        self._seen += len(windows)

    def head(self) -> Head:
        manifest = self._bundle.manifest
        hop = manifest.hop * self._each
        try:
            if not self._kept:
                raise ValueError(f"nowhere are {manifest.window} samples in a row usable")
            end_ns = np.array([end for end, _, _ in self._kept], np.int64)
            # A sensor that restarted has set its clock back; what came after stays after, far enough to be a gap.
            step = np.diff(end_ns)
            end_ns[1:] += np.cumsum(np.where(step <= 0, round(1e9 * 100 * hop / manifest.rate_hz) - step, 0))
            fitted = fit_head(
                manifest.scorer,
                Outputs.concatenate([outputs for _, _, outputs in self._kept]),
                end_ns,
                self._bundle.smoother(hop),
                overlap=-(-manifest.window // hop),
                stride=max(1, manifest.hop // hop),
            )
            usual = Usual.fit(np.stack([x for _, x, _ in self._kept]))
        except ValueError as error:
            raise DataError(f"no head can be fitted to what is recorded: {error}") from None
        return Head(fitted.scorer, fitted.calibrator, fitted.explainer, fitted.reference, usual, fitted.tail)
