"""Figures for labelled recordings, in numpy. Never point-adjusted: with that, random scores look good.

Throughout: score (n,), higher is stranger; label (n,), 1 where something is amiss. Equal scores count as equal: a score that is
the same everywhere gets an AUROC of 0.5, whatever the order of the rows.
"""

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
