"""Which windows look unlike the rest? For recordings of normal running that hold a fault after all. On the device too."""

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from edge.scoring.scorers import SCORERS
from edge.signal import Float32, Float64, Int64

FOLDS = 5
ROUNDS = 30
FEWEST = 5
"""Windows to each feature, or a spread in all directions cannot be known."""


def blocks(count: int, overlap: int) -> Iterator[tuple[slice, Int64]]:
    """Of `count` windows in the order of time, `FOLDS` blocks, and to each the windows that share no sample with it."""
    for start, stop in pairwise(np.linspace(0, count, FOLDS + 1).astype(int).tolist()):
        yield slice(start, stop), np.r_[0 : max(0, start - overlap), min(count, stop + overlap) : count]


def bulk(z: Float32, trim: float) -> Int64:
    """Places, in order, of those of the features (n, K) that lie closest together: all but the share `trim`, rounded down.

    The concentration steps of Rousseeuw & Van Driessen, "A Fast Algorithm for the Minimum Covariance Determinant Estimator"
    (1999), from one start: the half that is nearest to the medians. With few windows, that half alone decides.
    """
    count = len(z) - math.floor(trim * len(z))
    median = np.median(z, axis=0)
    spread = 1.4826 * np.median(np.abs(z - median), axis=0) + 1e-6
    # Bounded, so that one value that hardly ever moves does not outvote all others.
    distance = np.minimum(((z - median) / spread) ** 2, 100).mean(axis=1)
    if len(z) < FEWEST * z.shape[1]:
        return np.sort(np.argsort(distance, kind="stable")[:count])
    kept = np.sort(np.argsort(distance, kind="stable")[: len(z) // 2])
    for _ in range(ROUNDS):
        nearest = np.sort(np.argsort(SCORERS["mahalanobis"].fit(z[kept]).score(z), kind="stable")[:count])
        if np.array_equal(nearest, kept):
            break
        kept = nearest
    return kept


def away(z: Float32, overlap: int) -> Float64:
    """(n,) how far each of the features (n, K), in the order of time, lies from the bulk of them; windows `overlap` places
    apart share no sample.

    Logarithm of the distance: 0 is the median, -1 the 15 % quantile, both of which hardly move when some windows are strange.
    Each block is measured by what is bulk in the others. Measured by itself, what the bulk was fitted to would lie
    closer than the rest, however alike they all are, and clean recordings would be full of strange windows.
    """
    inner = np.zeros(len(z), bool)
    inner[bulk(z, 0.5)] = True
    measured = []
    for block, others in blocks(len(z), overlap):
        # Of a machine that wanders slowly the bulk may lie in one block, and nothing of it in the others.
        usual = others[inner[others]] if inner[others].sum() >= len(z) // 10 else others
        measured.append(SCORERS["mahalanobis"].fit(z[usual]).score(z[block]))
    distance = np.log(np.concatenate(measured).astype(np.float64) + 1e-6)
    low, middle = np.quantile(distance, (0.15, 0.5))
    found: Float64 = (distance - middle) / max(middle - low, 1e-3)
    return found
