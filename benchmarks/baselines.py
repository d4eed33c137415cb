"""What is simple, for `benchmarks.detect`: what does not beat these has learned nothing.

Each takes normal rows (n, C) and rows to judge (m, C), both in spreads of the normal ones, and a seed; it gives one score per
row (m,), higher is stranger. A window speaks for the row in its middle, and the first and the last one for the ends too.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from edge.sensing.recordings import Recording
from edge.signal import Float32, Float64

CLIP = 20.0
"""Spreads. A channel that hardly moved while normal would else outvote all others."""
MOST_WINDOWS = 6000
"""To fit to, drawn by chance. Fitted to all windows of SMD, the PCA residual is worse; a baseline is to be at its best."""
SLICE = 2000
EXPLAINED = 0.9


@dataclass(frozen=True, slots=True)
class Baseline:
    name: str
    score: Callable[[Float32, Float32, int], Float64]
    seeded: bool = False
    """Its score depends on the seed."""


def standardised(normal: Recording, test: Recording) -> tuple[Float32, Float32]:
    """(n, C) and (m, C), in spreads of each channel around its mean, both taken from `normal`. A still channel has spread 1."""
    rows = normal.x.T.astype(np.float64)
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    spread = np.where(spread < 1e-6, 1.0, spread)

    def scaled(recording: Recording) -> Float32:
        found: Float32 = np.clip((recording.x.T - mean) / spread, -CLIP, CLIP).astype(np.float32)
        return found

    return scaled(normal), scaled(test)


def mean_abs(normal: Float32, test: Float32, seed: int) -> Float64:
    found: Float64 = np.abs(test).mean(axis=1, dtype=np.float64)
    return found


def pca_residual(normal: Float32, test: Float32, seed: int, *, length: int) -> Float64:
    """Squared distance of each window from the directions that hold nine tenths of the variance of normal windows."""
    fit = drawn(normal, length, seed).astype(np.float64)
    mean = fit.mean(axis=0)
    fit -= mean
    values, vectors = np.linalg.eigh(fit.T @ fit)  # ascending
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = int(np.searchsorted(np.cumsum(values) / max(values.sum(), 1e-30), EXPLAINED)) + 1
    basis = vectors[:, :kept]
    found = []
    for part in slices(test, length):
        z = part - mean
        found.append(np.maximum((z**2).sum(axis=1) - ((z @ basis) ** 2).sum(axis=1), 0.0))
    return centred(np.concatenate(found), length)


def kmeans(normal: Float32, test: Float32, seed: int, *, length: int, clusters: int = 10) -> Float64:
    """Distance of each window to the nearest of ten centres of normal windows."""
    from sklearn.cluster import KMeans  # here, because the tests do without it

    model = KMeans(clusters, n_init=1, random_state=seed).fit(drawn(normal, length, seed))
    return centred(np.concatenate([model.transform(part).min(axis=1) for part in slices(test, length)]), length)


def isolation_forest(normal: Float32, test: Float32, seed: int) -> Float64:
    from sklearn.ensemble import IsolationForest

    score: Float64 = -IsolationForest(n_estimators=100, random_state=seed).fit(normal).score_samples(test)
    return score


BASELINES = (
    Baseline("mean abs z", mean_abs),
    Baseline("isolation forest", isolation_forest, seeded=True),
    Baseline("k-means, windows of 40", partial(kmeans, length=40), seeded=True),
    *(Baseline(f"PCA residual, windows of {n}", partial(pca_residual, length=n), seeded=True) for n in (20, 32, 64)),
)


def windows(rows: Float32, length: int) -> Float32:
    """(n, C) → (n - length + 1, C × length)"""
    view = np.lib.stride_tricks.sliding_window_view(rows, length, axis=0)
    return view.reshape(len(view), -1)


def drawn(rows: Float32, length: int, seed: int) -> Float32:
    """At most `MOST_WINDOWS` of the windows."""
    found = windows(rows, length)
    return found[np.random.default_rng(seed).permutation(len(found))[:MOST_WINDOWS]]


def slices(rows: Float32, length: int) -> Iterator[Float32]:
    """All windows, some at a time: wide windows of long recordings are large."""
    for at in range(0, len(rows) - length + 1, SLICE):
        yield windows(rows[at : at + SLICE + length - 1], length)


def centred(score: Float64, length: int) -> Float64:
    """One score per window → one per row."""
    before = (length - 1) // 2
    return np.pad(score, (before, length - 1 - before), mode="edge")
