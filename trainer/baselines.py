"""What is simple, to lay beside a model: what does not beat these has learned nothing. Plain numpy.

Each takes normal rows (n, C) and rows to judge (m, C), both in spreads of the normal ones (`standardised`), and a seed; it
gives one score per row (m,), higher is stranger. A window speaks for the row in its middle and those near by, the first and the
last one for the ends too. There must be a window's length of rows of either kind.
"""

from collections.abc import Iterator

import numpy as np

from edge.sensing.recordings import Recording
from edge.signal import Float32, Float64, Int64

CLIP = 20.0
"""Spreads. A channel that hardly moved while normal would else outvote all others."""
MOST_WINDOWS = 6000
"""To fit to, drawn by chance. Fitted to all windows of SMD, the PCA residual is worse; a baseline is to be at its best."""
SLICE = 2000
EXPLAINED = 0.9
ROUNDS = 100
"""Of k-means, at most; it is at rest long before."""


def standardised(normal: Recording, test: Recording) -> tuple[Float32, Float32]:
    """(n, C) and (m, C), in spreads of each channel around its mean, both taken from `normal`.

    A still channel has spread 1; a missing value lies on the mean.
    """
    rows = normal.x.T.astype(np.float64)
    known = np.isfinite(rows)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, rows, 0).sum(axis=0) / count
    spread = np.sqrt((np.where(known, rows - mean, 0) ** 2).sum(axis=0) / count)
    spread = np.where(spread < 1e-6, 1.0, spread)

    def scaled(recording: Recording) -> Float32:
        found: Float32 = np.clip(np.nan_to_num((recording.x.T - mean) / spread), -CLIP, CLIP).astype(np.float32)
        return found

    return scaled(normal), scaled(test)


def mean_abs(normal: Float32, test: Float32, seed: int = 0) -> Float64:
    found: Float64 = np.abs(test).mean(axis=1, dtype=np.float64)
    return found


def pca_residual(normal: Float32, test: Float32, seed: int = 0, *, length: int, stride: int = 1) -> Float64:
    """Squared distance of each window from the directions that hold nine tenths of the variance of normal windows."""
    fit = drawn(normal, length, seed).astype(np.float64)
    mean = fit.mean(axis=0)
    fit -= mean
    values, vectors = np.linalg.eigh(fit.T @ fit)  # ascending
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = int(np.searchsorted(np.cumsum(values) / max(values.sum(), 1e-30), EXPLAINED)) + 1
    basis = vectors[:, :kept]
    found = []
    for part in slices(test, length, stride):
        z = part - mean
        found.append(np.maximum((z**2).sum(axis=1) - ((z @ basis) ** 2).sum(axis=1), 0.0))
    return centred(np.concatenate(found), len(test), length, stride)


def kmeans(normal: Float32, test: Float32, seed: int = 0, *, length: int, clusters: int = 10, stride: int = 1) -> Float64:
    """Distance of each window to the nearest of ten centres of normal windows.

    Lloyd (1982); the first centres as Arthur & Vassilvitskii (2007), "k-means++", draw them.
    """
    rng = np.random.default_rng(seed)
    fit = drawn(normal, length, seed)
    centres = _first_centres(fit, min(clusters, len(fit)), rng)
    nearest: Int64 = np.full(len(fit), -1)
    for _ in range(ROUNDS):
        before, nearest = nearest, _squares(fit, centres).argmin(axis=1)
        if np.array_equal(before, nearest):
            break
        for i in np.unique(nearest):  # a centre that nobody is near stays where it is
            centres[i] = fit[nearest == i].mean(axis=0)
    found = [np.sqrt(_squares(part, centres).min(axis=1).astype(np.float64)) for part in slices(test, length, stride)]
    return centred(np.concatenate(found), len(test), length, stride)


def drawn(rows: Float32, length: int, seed: int) -> Float32:
    """At most `MOST_WINDOWS` of the windows."""
    view = np.lib.stride_tricks.sliding_window_view(rows, length, axis=0)
    chosen = np.random.default_rng(seed).permutation(len(view))[:MOST_WINDOWS]
    return view[chosen].reshape(len(chosen), -1)


def slices(rows: Float32, length: int, stride: int = 1) -> Iterator[Float32]:
    """Every `stride`-th window, some at a time: wide windows of long recordings are large."""
    view = np.lib.stride_tricks.sliding_window_view(rows, length, axis=0)[::stride]
    for at in range(0, len(view), SLICE):
        part = view[at : at + SLICE]
        yield part.reshape(len(part), -1)


def centred(score: Float64, rows: int, length: int, stride: int = 1) -> Float64:
    """One score per window → one per row, that of the window whose middle is nearest."""
    at = np.round((np.arange(rows) - (length - 1) // 2) / stride).astype(np.int64)
    return score[np.clip(at, 0, len(score) - 1)]


def _first_centres(fit: Float32, count: int, rng: np.random.Generator) -> Float32:
    chosen = [int(rng.integers(len(fit)))]
    nearest = _squares(fit, fit[chosen])[:, 0].astype(np.float64)
    while len(chosen) < count:
        total = nearest.sum()
        chosen.append(int(rng.choice(len(fit), p=nearest / total)) if total > 0 else int(rng.integers(len(fit))))
        nearest = np.minimum(nearest, _squares(fit, fit[chosen[-1:]])[:, 0])
    return fit[chosen].copy()


def _squares(x: Float32, centres: Float32) -> Float32:
    """(n, K) and (k, K) → (n, k) squared distances."""
    found: Float32 = (x**2).sum(axis=1)[:, None] - 2 * (x @ centres.T) + (centres**2).sum(axis=1)
    return found.clip(0)
