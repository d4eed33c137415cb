"""Does the bundle keep its promise? On normal running that it has not learned from, p ≤ α is to hold for at most α of the time.

Neighbouring windows share samples and strange moments come in clusters, so ten thousand windows are worth far fewer
independent ones; everything said here counts those.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from edge.bundle import Bundle
from edge.pipeline import Verdicts
from edge.scoring.calibrate import DEFAULT_P_VALUE
from edge.signal import Bool, Float64
from trainer.metrics import poisson_interval, wilson_interval

DAY_H = 24.0
LEVELS = 25
BATCHES = 16
"""Of one length in time, whose means tell how much the windows hang together. Longer ones see slower wander."""
FEW_BATCHES = (2.131 / 1.960) ** 2
"""A variance that is itself only known from `BATCHES` values: Student's t instead of the normal quantile."""
CONFIDENCE_Z2 = 3.842
"""The square of the normal quantile of 95 % confidence, rounded up."""

Verdict = Literal["kept", "broken", "unknown"]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    promised: float
    """α: at most this share of the windows is to have p ≤ α."""
    measured: float
    low: float
    high: float
    """Between these the true share lies, with 95 % confidence."""


class Promise(msgspec.Struct, frozen=True, kw_only=True):
    """What normal running that the model has not learned from says about its p-values."""

    windows: int
    independent: float
    """So many independent windows they are worth, at the threshold of the alerts."""
    hours: float
    threshold: Point
    """At the threshold of the alerts."""
    verdict: Verdict
    """`broken`: more is flagged than was promised, and not by chance. `kept`: not so, and more than twice the promise is ruled
    out. `unknown`: too few data to tell."""
    more_hours: float | None
    """Of normal running that a verdict still takes; None when there is one."""
    calibration_windows: int
    calibration_more_hours: float | None
    """Of normal running to calibrate on before p = 0.001 can be reached at all; None when it can."""
    alerts: int
    alerts_per_day: float
    alerts_per_day_low: float
    alerts_per_day_high: float
    """Between these the true rate lies, with 95 % confidence."""
    curve: tuple[Point, ...]


def keep(bundle: Bundle, verdicts: Sequence[Verdicts]) -> Promise:
    """`verdicts` on recordings of normal running, at least one window in all."""
    manifest, policy = bundle.manifest, bundle.pipeline().policy
    p_values = [one.p_value for one in verdicts]
    overlap = manifest.window / manifest.hop
    count = sum(len(p) for p in p_values)
    window_h = manifest.hop / manifest.rate_hz / 3600
    hours = count * window_h
    threshold, independent = measure(p_values, policy.p_value, overlap)
    verdict = judge(threshold)
    alerts = sum(event.type == "anomaly_started" for one in verdicts for event in one.events)
    low, high = poisson_interval(alerts)
    days = hours / DAY_H
    calibrated = bundle.head.calibrator.windows
    lacking = int(np.ceil(1 / DEFAULT_P_VALUE)) - 1 - calibrated
    levels = np.geomspace(max(bundle.head.calibrator.floor, 1e-6), 0.5, LEVELS)
    return Promise(
        windows=count,
        independent=independent,
        hours=hours,
        threshold=threshold,
        verdict=verdict,
        more_hours=max(needed(policy.p_value) / independent - 1, 0.05) * hours if verdict == "unknown" else None,
        calibration_windows=calibrated,
        calibration_more_hours=lacking * window_h if lacking > 0 else None,
        alerts=alerts,
        alerts_per_day=alerts / days,
        alerts_per_day_low=low / days,
        alerts_per_day_high=high / days,
        curve=tuple(measure(p_values, float(level), overlap)[0] for level in levels),
    )


def measure(p_values: Sequence[Float64], level: float, overlap: float) -> tuple[Point, float]:
    """The share of windows with p ≤ `level`, and how many independent windows it was measured on.

    `p_values` are those of consecutive windows, one array a recording; `overlap` is window ÷ hop, at least 1.
    """
    flagged = [p <= level + 1e-12 for p in p_values]
    count = sum(len(one) for one in flagged)
    share = sum(int(one.sum()) for one in flagged) / count
    independent = max(1.0, count / max(1.0, overlap, inflation(flagged, overlap)))
    low, high = wilson_interval(share, independent)
    return Point(promised=level, measured=share, low=low, high=high), independent


def inflation(flagged: Sequence[Bool], overlap: float) -> float:
    """By how much the variance of the share exceeds that of as many independent windows; 1 where that cannot be told.

    The method of batch means (Schmeiser 1982): means of long stretches vary as though each stretch were one independent
    observation, however the windows inside hang together.
    """
    count = sum(len(one) for one in flagged)
    length = max(int(np.ceil(4 * overlap)), count // BATCHES)
    means = [one[at : at + length].mean() for one in flagged for at in range(0, len(one) - length + 1, length)]
    share = sum(int(one.sum()) for one in flagged) / count
    if len(means) < 4 or not 0 < share < 1:
        return 1.0
    return float(FEW_BATCHES * length * np.var(means, ddof=1) / (share * (1 - share)))


def judge(point: Point) -> Verdict:
    if point.low > point.promised:
        return "broken"
    return "kept" if point.high <= 2 * point.promised else "unknown"


def needed(level: float) -> float:
    """Independent windows after which a share that is as promised is known to be less than twice that."""
    return max(1.0, 2 * CONFIDENCE_Z2 * (1 - 2 * level) / level)
