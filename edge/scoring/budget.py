"""False alarms that somebody is willing to bear → the score from which windows count as strange.

What counts is episodes, not windows: an alert waits until windows have been strange for a whole span in a row, and windows
overlap. So what is looked at is the *sustained* score, the lowest within the span: an alert begins where it exceeds the
threshold. Of normal running the `Tail` keeps the highest sustained score of each short block of time, in order.

Two things are said of a threshold, both with the stated confidence:

- *promised*: from how often normal running exceeded it, and nothing else. Exceeding blocks side by side are one episode. Their
  number is Poisson; where episodes come in swarms it varies more than that, and is worth fewer (McCullagh & Nelder 1989,
  "Generalized Linear Models", ch. 6: variance ÷ mean as a divisor). With no episode in T hours it is the rule of three:
  -ln(1 - confidence) ÷ T.
- *estimated*: where T hours are too few for that. Peaks over a high threshold have a generalised Pareto tail (Davison & Smith
  1990; Coles 2001, ch. 4; for streams Siffer et al. 2017, SPOT). Its shape ξ is not left to a handful of peaks: a score is the
  mean of logarithms of distances, so a power law in the distances, as heavy as tails get, is ξ = 0. Lighter is not believed,
  heavier as far as many peaks say so, and of what the peaks allow the highest threshold is taken (profile likelihood).

Where both reach, the higher threshold of them counts. Both hold for running that is like the running that was kept, and for no
other: not for a machine that moves on, and not for a wander so slow that it has not been seen several times
(docs/results-budget.md).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Self

import numpy as np

from edge.config import HOURS, WEEK_H, AlarmConfig
from edge.errors import ConfigError
from edge.scoring.calibrate import Calibrator
from edge.scoring.smoothing import Smoother
from edge.signal import Bool, Float32, Float64, Int64

NS_PER_HOUR = 3_600_000_000_000
BLOCKS = 2048
"""Kept at most: 70 kB. Where there are more, they become longer."""
FEWEST_BLOCKS = 30
"""Below that the tail is not estimated: a few minutes say nothing about a week."""
BATCHES = 16
"""Stretches of time whose counts tell whether episodes come in swarms."""
FEW_BATCHES = (2.131 / 1.960) ** 2
"""A variance that is itself only known from `BATCHES` values: Student's t instead of the normal quantile."""
SEEN = 32
"""Blocks above the level at which swarms are looked for: at the threshold itself there may be no episode at all."""
PEAKS, FEWEST_PEAKS, MOST_PEAKS = 0.2, 10, 300
"""Share of the blocks above the level where the tail begins, and how many at least and at most."""
BELIEF = 0.2
"""Standard deviation of what is believed of ξ before the peaks are seen; half a Gaussian, at 0 and above."""
_XI = np.linspace(0.0, 1.0, 41)
_SCALE = np.exp(np.linspace(-1.5, 1.5, 61))  # in mean excesses


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a threshold costs in false alarms. Rates are episodes a week."""

    asked: float | None
    """`None`: the threshold was set as a p-value."""
    confidence: float
    p_value: float
    """At or below it windows count as strange;"""
    score: float
    """that is, above this score."""
    promised: float
    """At most so many, from counting alone."""
    estimated: float | None
    """At most so many, if the tail goes on as it does; `None`: too little normal running even for that."""
    hours: float
    """Of normal running that this is known from."""
    more_hours: float | None
    """Of normal running like that, before what is asked for is promised; 0 when it is, `None` when nothing is asked for."""

    def sentence(self) -> str:
        sure = f"{self.confidence:.0%} confidence"
        known = f"{_hours(self.hours)} of normal running"
        if self.asked is not None and self.more_hours == 0:
            return f"at most {rate(self.asked)} promised with {sure}, counted in {known}"
        counted = f"counting alone promises at most {rate(self.promised)}"
        more = f"; {_hours(self.more_hours)} more promise what is asked" if self.more_hours else ""
        if self.asked is None:
            tail = "" if self.estimated is None else f", its tail suggests at most {rate(self.estimated)}"
            return f"p ≤ {self.p_value:.2g} is strange; in {known} {counted}{tail} ({sure})"
        if self.estimated is None:
            return f"{rate(self.asked)} asked; {known} are too few to estimate that, so p ≤ {self.p_value:.2g} is strange; " + (
                f"{counted} ({sure}){more}"
            )
        return f"at most {rate(self.asked)} estimated from the tail of {known}; {counted} ({sure}){more}"


@dataclass(frozen=True, slots=True)
class Tail:
    """The highest sustained scores of normal running."""

    span: Float32
    """(L,) hours over which a score is sustained, ascending from 0: that of the window alone."""
    maxima: Float32
    """(L, m) the highest in each block, in order of time."""
    block: float
    """Hours of normal running to each block."""

    @classmethod
    def fit(cls, score: Float32, position: Int64, smoother: Smoother, *, stride: int = 1, hour: float = NS_PER_HOUR) -> Self:
        """From scores of normal windows in order of time, as they calibrate, at `position` in the unit of the smoother.

        `stride` is how many of them lie within one hop of the device, `hour` so many of that unit. ValueError for no scores.
        """
        if not len(score) or score.shape != position.shape:
            raise ValueError(f"no tail from {len(score)} scores at {len(position)} positions")
        whole = max(1, int(smoother.window / smoother.hop + 1e-6))
        lags = sorted({0, *(1 << i for i in range(whole.bit_length()) if 1 << i < whole), whole, 2 * whole})
        length = max(2 * whole, -(-len(score) // BLOCKS))
        edges = np.linspace(0, len(score), max(1, len(score) // length) + 1).astype(np.int64)
        rows = _places(position, smoother)
        maxima = np.stack([np.maximum.reduceat(_sustained(score, rows, lag, stride), edges[:-1]) for lag in lags])
        span = np.array(lags, np.float64) * smoother.hop / hour
        return cls(span.astype(np.float32), maxima.astype(np.float32), len(score) * smoother.hop / hour / (len(edges) - 1))

    @property
    def hours(self) -> float:
        return self.block * int(self.maxima.shape[1])

    def sustained(self, span: float) -> Float32:
        """(m,) for the longest span that is not longer, in hours: what is sustained for longer is rarer still."""
        known = np.flatnonzero(self.span <= span * (1 + 1e-4))
        found: Float32 = self.maxima[known[-1] if len(known) else 0]
        return found

    def promised(self, score: float, span: float, confidence: float) -> float:
        """Episodes a week with a sustained score above this one, at most."""
        maxima = self.sustained(span)
        return _at_most(_runs(maxima > score), _swarm(maxima, score), confidence) / self.hours * WEEK_H

    def lowest(self, asked: float, span: float, confidence: float) -> float:
        """The lowest score at which so many a week are promised; infinite when none is."""
        found = math.inf
        scores: list[float] = np.sort(self.sustained(span))[::-1].tolist()
        for score in scores:
            if self.promised(score, span, confidence) > asked:
                break
            found = float(score)
        return found

    def needed(self, asked: float, span: float, confidence: float) -> float:
        """Hours after which so many a week are promised at a score that was not exceeded."""
        return _at_most(0, _swarm(self.sustained(span), math.inf), confidence) / asked * WEEK_H

    def extrapolated(self, asked: float, span: float, confidence: float) -> float | None:
        """The score that is exceeded so often a week by the heaviest tail that the peaks allow; `None`: too few blocks."""
        peaks = self._peaks(span, confidence)
        return None if peaks is None else peaks.level(asked)

    def estimated(self, score: float, span: float, confidence: float) -> float | None:
        """The other way round: so many a week."""
        peaks = self._peaks(span, confidence)
        if peaks is None:
            return None
        low, high = -30.0, math.log(max(peaks.rate, 1e-12))
        if score <= peaks.start:
            return self.promised(score, span, confidence)
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if peaks.level(math.exp(middle)) <= score else (middle, high)
        return math.exp(high)

    def arrays(self) -> dict[str, Float32]:
        return {"span": self.span, "maxima": self.maxima, "block": np.array([self.block], np.float32)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Float32]) -> Self | None:
        """`None` where there are none; raises KeyError or ValueError for what is missing or wrong."""
        if not arrays:
            return None
        span, maxima, block = arrays["span"], arrays["maxima"], float(arrays["block"].item())
        if maxima.ndim != 2 or span.shape != maxima.shape[:1] or not maxima.size or not block > 0:
            raise ValueError(f"tail of {span.shape} spans and {maxima.shape} maxima")
        return cls(span, maxima, block)

    def _peaks(self, span: float, confidence: float) -> "_Peaks | None":
        maxima = self.sustained(span).astype(np.float64)
        count = min(max(round(PEAKS * len(maxima)), FEWEST_PEAKS), MOST_PEAKS)
        if len(maxima) < FEWEST_BLOCKS:
            return None
        start = float(np.sort(maxima)[-count - 1])
        above = maxima > start
        excess = np.array([maxima[at:to].max() - start for at, to in _stretches(above)])
        if len(excess) < 2:
            return None
        swarm = _swarm(maxima, start)
        often = _at_most(len(excess), swarm, confidence) / self.hours * WEEK_H
        return _Peaks.fit(start, often, excess, swarm, confidence)


@dataclass(frozen=True, slots=True)
class _Peaks:
    """All generalised Pareto tails that the peaks allow."""

    start: float
    rate: float
    """Peaks a week above the start, at most."""
    xi: Float64
    scale: Float64

    @classmethod
    def fit(cls, start: float, rate: float, excess: Float64, swarm: float, confidence: float) -> Self:
        xi, scale = (grid.ravel() for grid in np.meshgrid(_XI, _SCALE * max(float(excess.mean()), 1e-6), indexing="ij"))
        y = excess / scale[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            heavy = np.log1p(xi[:, None] * y) * (1 / xi[:, None] + 1)
        log = -(np.where(xi[:, None] > 0, heavy, y).sum(axis=1) + len(excess) * np.log(scale)) / swarm - (xi / BELIEF) ** 2 / 2
        allowed = log >= log.max() - _normal_quantile(confidence) ** 2 / 2
        return cls(start, rate, xi[allowed], scale[allowed])

    def level(self, asked: float) -> float:
        """Score that is exceeded so often a week at most."""
        ratio = max(self.rate / asked, 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            heavy = (ratio**self.xi - 1) / self.xi
        return self.start + float((self.scale * np.where(self.xi > 0, heavy, math.log(ratio))).max())


def allowance(config: AlarmConfig, calibrator: Calibrator, tail: Tail | None, span: float) -> Allowance | None:
    """What this configuration allows, with scores sustained over `span` hours; `None` for a bundle that cannot tell.

    Raises `ConfigError` when a budget is asked for that it knows nothing about.
    """
    asked, sure = config.per_week, config.confidence
    if tail is None:
        if asked is not None:
            raise ConfigError(
                f"alarm.false_alarms = {config.false_alarms!r}: this bundle was made before there were budgets and does "
                "not say how its scores follow each other; make it again (`amiss quantize`) or set alarm.p_value"
            )
        return None
    if asked is None:
        p_value = calibrator.usual_p_value if config.p_value is None else config.p_value
        return _told(None, sure, p_value, calibrator, tail, span)
    counted, far = tail.lowest(asked, span, sure), tail.extrapolated(asked, span, sure)
    if math.isinf(counted) and far is None:
        return _told(asked, sure, calibrator.usual_p_value, calibrator, tail, span)
    # Where counting reaches, the tail still has a say: it is just where swarms happened to be missed that little was counted.
    score = max(one for one in (counted, far) if one is not None and math.isfinite(one))
    return _told(asked, sure, calibrator.beyond(score), calibrator, tail, span)


def _told(asked: float | None, sure: float, p_value: float, calibrator: Calibrator, tail: Tail, span: float) -> Allowance:
    # What counts is the threshold as it is used, which is that of the p-value.
    score = float(np.nextafter(np.float32(calibrator.score_at(p_value)), np.float32(-np.inf)))
    promised = tail.promised(score, span, sure)
    more = None if asked is None else 0.0 if promised <= asked else max(tail.needed(asked, span, sure) - tail.hours, tail.block)
    return Allowance(asked, sure, p_value, score, promised, tail.estimated(score, span, sure), tail.hours, more)


def rate(per_week: float) -> str:
    """In the unit in which a person would say it."""
    counts = {unit: per_week * hours / WEEK_H for unit, hours in HOURS.items()}
    unit = next((unit for unit, count in counts.items() if count > 0.95), "month")
    return f"{counts[unit]:.2g} a {unit}" if unit != "hour" else f"{counts[unit]:.2g} an hour"


def _hours(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.2g} minutes"
    return f"{hours:.2g} hours" if hours < 100 else f"{hours:.0f} hours"


def _places(position: Int64, smoother: Smoother) -> Int64:
    """How many windows of an unbroken row stand before each."""
    index = np.arange(len(position))
    first = np.ones(len(position), bool)
    first[1:] = smoother.breaks(np.diff(position))
    found: Int64 = index - np.maximum.accumulate(np.where(first, index, 0))
    return found


def _sustained(score: Float32, place: Int64, lag: int, stride: int) -> Float32:
    """The lowest of each score and of those up to `lag` before it, in its row; at the start of a row of those there are."""
    found = score.copy()
    for back in range(stride, lag + 1, stride):
        within = place[back:] >= back
        found[back:] = np.where(within, np.minimum(found[back:], score[:-back]), found[back:])
    return found


def _stretches(above: Bool) -> Iterator[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(above, prepend=False, append=False)).tolist()
    return zip(edges[::2], edges[1::2], strict=True)


def _runs(above: Bool) -> int:
    return int(np.count_nonzero(above[1:] & ~above[:-1])) + int(above[0])


def _swarm(maxima: Float32 | Float64, score: float) -> float:
    """How many episodes a swarm of them counts, at least 1."""
    level = min(score, float(np.sort(maxima)[-min(SEEN, len(maxima) // 4) - 1]))
    begins = maxima > level
    begins[1:] &= ~begins[:-1].copy()
    edges = np.linspace(0, len(maxima), BATCHES + 1).astype(int).tolist()
    counts = np.array([np.count_nonzero(begins[at:to]) for at, to in pairwise(edges)])
    if len(maxima) < 2 * BATCHES:
        return 1.0
    return max(1.0, FEW_BATCHES * float(counts.var(ddof=1)) / max(float(counts.mean()), 1e-9))


def _at_most(count: int, swarm: float, confidence: float) -> float:
    """The highest mean at which so few would still be seen with 1 - confidence: of a Poisson number, by Wilson & Hilferty
    (1931), within 1 %."""
    if not count:
        return -math.log(1 - confidence) * swarm
    few = count / swarm + 1
    return swarm * few * (1 - 1 / (9 * few) + _normal_quantile(confidence) / (3 * math.sqrt(few))) ** 3


def _normal_quantile(share: float) -> float:
    return NormalDist().inv_cdf(share)
