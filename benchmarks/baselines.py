"""The simple methods of `benchmarks.detect`: those of `trainer.baselines`, and an isolation forest, with their settings."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from edge.signal import Float32, Float64
from trainer.baselines import kmeans, mean_abs, pca_residual


@dataclass(frozen=True, slots=True)
class Baseline:
    name: str
    score: Callable[[Float32, Float32, int], Float64]
    seeded: bool = False
    """Its score depends on the seed."""


def isolation_forest(normal: Float32, test: Float32, seed: int) -> Float64:
    from sklearn.ensemble import IsolationForest  # here, because the tests do without it

    score: Float64 = -IsolationForest(n_estimators=100, random_state=seed).fit(normal).score_samples(test)
    return score


BASELINES = (
    Baseline("mean abs z", mean_abs),
    Baseline("isolation forest", isolation_forest, seeded=True),
    Baseline("k-means, windows of 40", partial(kmeans, length=40), seeded=True),
    *(Baseline(f"PCA residual, windows of {n}", partial(pca_residual, length=n), seeded=True) for n in (20, 32, 64)),
)
