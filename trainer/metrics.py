"""Figures for labelled recordings, in numpy. Never point-adjusted: with that, random scores look good.

Throughout: score (n,), higher is stranger; label (n,), 1 where something is amiss. Equal scores count as equal: a score that is
the same everywhere gets an AUROC of 0.5, whatever the order of the rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.signal import Bool, Int64

Label = npt.NDArray[np.int8] | Bool


def auroc(score: npt.NDArray[np.floating], label: Label) -> float:
    """Chance that an anomalous row scores higher than a normal one; NaN unless there are both.

    Mann & Whitney (1947); ties count half.
    """
    positive = np.asarray(label, bool)
    n, p = int((~positive).sum()), int(positive.sum())
    if not n or not p:
        return float("nan")
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[positive].sum() - p * (p + 1) / 2) / (n * p))


def auc_pr(score: npt.NDArray[np.floating], label: Label) -> float:
    """Average precision: Σ precision × step in recall over all thresholds; NaN unless something is amiss.

    Davis & Goadrich (2006) show why there is no straight line between its points.
    """
    positive = np.asarray(label, bool)
    if not positive.any():
        return float("nan")
    order = np.argsort(-np.asarray(score, np.float64), kind="stable")
    hits = np.cumsum(positive[order])
    # One point per distinct score: rows that score alike are flagged together.
    last = np.append(np.flatnonzero(np.diff(np.asarray(score)[order])), len(order) - 1)
    precision = hits[last] / (last + 1)
    recall = hits[last] / hits[-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def vus_pr(score: npt.NDArray[np.floating], label: Label, length: int, thresholds: int = 250) -> float:
    """Volume under the surface of range-based precision and recall, over buffers of 0 to `length` rows around each episode;
    NaN unless there are both kinds of row.

    Paparrizos, Boniol, Palpanas, Tsay, Elmore & Franklin (2022), "Volume Under the Surface", VLDB 15(11). Labels are seldom
    right to the row: within half a buffer around an episode a high score still counts, by √(1 − distance / buffer). Recall is
    multiplied by the share of episodes in which anything was found. Thresholds are `thresholds` of the scores, evenly by rank.
    """
    positive = np.asarray(label, bool)
    score = np.asarray(score, np.float64)
    n, p = len(score), int(positive.sum())
    if not 0 < p < n:
        return float("nan")
    found = episodes(positive)
    order = np.argsort(-score, kind="stable")
    threshold = score[order][np.linspace(0, n - 1, thresholds).astype(np.int64)]
    flagged = np.searchsorted(-score[order], -threshold, side="right")  # how many rows each threshold flags
    hits = np.cumsum(positive[order])[flagged - 1]
    total = 0.0
    for buffer in range(length + 1):
        soft = _softened(positive, found, buffer)
        true = np.cumsum(soft[order])[flagged - 1]
        recall = np.minimum(true / (p + (true - hits) / 2), 1.0)
        highest = np.sort([score[a : b + 1].max() for a, b in _widened(found, buffer // 2, n)])
        existing = 1 - np.searchsorted(highest, threshold) / len(highest)
        total += float((np.diff(recall * existing, prepend=0.0) * true / flagged).sum())
    return total / (length + 1)


def _softened(positive: Bool, found: list[tuple[int, int]], buffer: int) -> npt.NDArray[np.float64]:
    """(n,) 1 in an episode, less and less towards half a buffer away from it, 0 beyond."""
    soft = positive.astype(np.float64)
    if half := buffer // 2:
        fading = np.sqrt(1 - np.arange(1, half + 1) / buffer)
        for first, last in found:
            after = soft[last + 1 : last + 1 + half]
            after += fading[: len(after)]
            before = soft[max(0, first - half) : first]
            before += fading[: len(before)][::-1]
    return np.minimum(soft, 1.0)


def _widened(found: list[tuple[int, int]], by: int, n: int) -> list[tuple[int, int]]:
    """Episodes that reach `by` rows further on either side; those that meet are one."""
    wide: list[tuple[int, int]] = []
    for first, last in found:
        if wide and first - by <= wide[-1][1]:
            wide[-1] = (wide[-1][0], min(last + by, n - 1))
        else:
            wide.append((max(first - by, 0), min(last + by, n - 1)))
    return wide


def buffer_length(x: npt.NDArray[np.floating]) -> int:
    """Rows after which (n,) repeats itself best, between 6 and 303, or 125: the longest buffer of `vus_pr`.

    As TSB-AD chooses it (Liu & Paparrizos 2024), so that figures can be laid beside published ones.
    """
    x = np.asarray(x, np.float64)[:20000]
    x = x - x.mean()
    n, lags = len(x), min(400, len(x) - 1)
    spectrum = np.fft.rfft(x, 2 * n)
    correlation = np.fft.irfft(spectrum * spectrum.conj(), 2 * n)[3 : lags + 1]
    inner = correlation[1:-1]
    peaks = 1 + np.flatnonzero((inner > correlation[:-2]) & (inner > correlation[2:]))
    if not len(peaks):
        return 125
    best = int(peaks[correlation[peaks].argmax()])
    return best + 3 if 3 <= best <= 300 else 125


@dataclass(frozen=True, slots=True)
class Alerts:
    """How the alerts of one recording fit its labelled episodes."""

    episodes: int
    detected: int
    delays_s: tuple[float, ...]
    """Of each detected episode: from its first row to the alert; 0 when an alert was still active as it began."""
    false_alarms: int
    """Alerts that were raised outside of every episode."""
    normal_s: float
    """How long the recording was normal."""


def episodes(label: Label) -> list[tuple[int, int]]:
    """Stretches of 1 as (first, last) row."""
    edges = np.diff(np.concatenate([[0], np.asarray(label, np.int8), [0]]))
    return list(zip(np.flatnonzero(edges == 1).tolist(), (np.flatnonzero(edges == -1) - 1).tolist(), strict=True))


def judge_alerts(time_ns: Int64, label: Label, raised_ns: list[int], ended_ns: list[int], grace_ns: int) -> Alerts:
    """Alerts against labels.

    `time_ns` (n,), `label` (n,); `raised_ns` and `ended_ns` are when alerts began and were over, the last of which may not be.
    For `grace_ns`, one window, after an episode an alert still counts as its: windows that hold part of it end until then.
    """
    found = episodes(label)
    ends = [*ended_ns, *[int(time_ns[-1])] * (len(raised_ns) - len(ended_ns))]
    delays: list[float] = []
    for first, last in found:
        start, stop = int(time_ns[first]), int(time_ns[last]) + grace_ns
        inside = [
            max(raised, start) for raised, ended in zip(raised_ns, ends, strict=True) if raised <= stop and ended >= start
        ]
        if inside:
            delays.append((min(inside) - start) / 1e9)
    wrong = [
        raised for raised in raised_ns if not any(int(time_ns[a]) <= raised <= int(time_ns[b]) + grace_ns for a, b in found)
    ]
    # The gap before a row belongs to it; a hole in a recording is not time in which a false alarm was possible.
    step_ns = float(np.median(np.diff(time_ns))) if len(time_ns) > 1 else 0.0
    normal = int((~np.asarray(label, bool)).sum())
    return Alerts(len(found), len(delays), tuple(delays), len(wrong), normal * step_ns / 1e9)


def poisson_interval(count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Between which means lies that of a Poisson variable that came out as `count`? Garwood (1936), exact, two-sided."""
    tail = (1 - confidence) / 2

    def at_most(mean: float) -> float:
        """P(X ≤ count)"""
        return sum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(count + 1))

    def below(mean: float) -> float:
        """P(X < count)"""
        return at_most(mean) - math.exp(count * math.log(mean) - mean - math.lgamma(count + 1))

    most = count + 10 * math.sqrt(count + 1) + 10
    low = 0.0 if count == 0 else _bisect(lambda mean: 1 - below(mean) < tail, most)
    return low, _bisect(lambda mean: at_most(mean) > tail, most)


def wilson_interval(share: float, n: float) -> tuple[float, float]:
    """Between which shares lies the true one when `share` of `n` independent trials was measured, with 95 % confidence?

    Wilson (1927). `n` need not be whole: of trials that hang together it is how many independent ones they are worth.
    """
    z = 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def _bisect(too_small: Callable[[float], bool], high: float) -> float:
    low = 1e-12
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if too_small(middle) else (low, middle)
    return high
