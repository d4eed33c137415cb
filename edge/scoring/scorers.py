"""How strange is what the encoder saw? Higher is stranger. Fitted on normal windows only, on the device too: plain numpy."""

from collections.abc import Mapping
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from edge.scoring.backends import Outputs
from edge.signal import Float32

Arrays = Mapping[str, npt.NDArray[np.float32]]


def features(outputs: Outputs) -> Float32:
    """(B, D + 2 C): the embedding, the logarithm of the residuals, which spread over decades, and the levels."""
    return np.concatenate([outputs.embedding, np.log(outputs.residual + 1e-6), outputs.level], axis=1)


class Scorer(Protocol):
    @classmethod
    def fit(cls, z: Float32) -> Self:
        """Learn from normal features (n, K); raises ValueError when they are too few or not finite."""
        ...

    def score(self, z: Float32) -> Float32:
        """(B, K) → (B,), higher is stranger; not finite in, infinitely strange out."""
        ...

    def arrays(self) -> dict[str, Float32]:
        """What `from_arrays` needs to build it again."""
        ...

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self: ...


class MahalanobisScorer:
    """Distance from the centre of the normal features in units of their spread along each direction.

    Assumes one blob; correlated features are fine. The covariance is shrunk towards the identity by as much as the number of
    windows warrants: Ledoit & Wolf (2004), "A well-conditioned estimator for large-dimensional covariance matrices", eq. 14.
    The score is divided by √K, so ordinary windows score about 1 whatever the size of the model.
    """

    def __init__(self, mean: Float32, whiten: Float32) -> None:
        self._mean, self._whiten = mean, whiten  # (K,), (K, K)

    @classmethod
    def fit(cls, z: Float32) -> Self:
        _require(z)
        mean, scale = _standardiser(z)
        y = (z.astype(np.float64) - mean) / scale  # (n, K)
        n, k = y.shape
        covariance = y.T @ y / n
        mu = np.trace(covariance) / k
        distance = ((covariance - mu * np.eye(k)) ** 2).sum()
        noise = ((y**2).T @ (y**2) / n - covariance**2).sum() / n
        shrinkage = 1.0 if distance <= 0 else float(np.clip(noise / distance, 1e-3, 1.0))
        covariance = (1 - shrinkage) * covariance + shrinkage * mu * np.eye(k)
        values, vectors = np.linalg.eigh(covariance)
        whiten = vectors / np.sqrt(np.maximum(values, 1e-9)) / np.sqrt(k) / scale[:, None]
        return cls(mean.astype(np.float32), whiten.astype(np.float32))

    def score(self, z: Float32) -> Float32:
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is the strangest score there is
            projected = (z - self._mean) @ self._whiten
        return _finite(np.sqrt(np.einsum("bk,bk->b", projected, projected)))

    def arrays(self) -> dict[str, Float32]:
        return {"mean": self._mean, "whiten": self._whiten}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        return cls(np.asarray(arrays["mean"]), np.asarray(arrays["whiten"]))


class NearestNeighbourScorer:
    """Distance to the nearest of at most `PROTOTYPES` remembered normal windows.

    Assumes nothing about the shape of normal: several modes of operation are several clouds. The memory is thinned by taking
    the farthest point again and again (k-centre greedy, Sener & Savarese 2018), so rare modes stay in it. One neighbour and not
    the mean of several: after the thinning a rare mode is a single point.
    """

    PROTOTYPES = 512
    _FAR = 1e9
    """Spreads. What is farther, or not finite, is put here: the squares still fit float32."""

    def __init__(self, mean: Float32, scale: Float32, prototypes: Float32) -> None:
        self._mean, self._scale, self._prototypes = mean, scale, prototypes  # (K,), (K,), (P, K)
        self._squares = np.einsum("pk,pk->p", prototypes, prototypes)

    @classmethod
    def fit(cls, z: Float32) -> Self:
        _require(z)
        mean, scale = (a.astype(np.float32) for a in _standardiser(z))
        y = ((z - mean) / scale).astype(np.float32)
        # Quadratic in n: what is far more than the memory holds is thinned evenly in time first.
        y = y[:: max(1, len(y) // (8 * cls.PROTOTYPES))]
        return cls(mean, scale, y[_k_centre(y, cls.PROTOTYPES)])

    def score(self, z: Float32) -> Float32:
        with np.errstate(over="ignore", invalid="ignore"):
            y = (z - self._mean) / self._scale
        y = np.clip(np.nan_to_num(y, nan=self._FAR), -self._FAR, self._FAR).astype(np.float32)
        squares = np.einsum("bk,bk->b", y, y)[:, None] - 2 * (y @ self._prototypes.T) + self._squares
        return _finite(np.sqrt(np.maximum(squares.min(axis=1, initial=np.inf), 0) / y.shape[1]))

    def arrays(self) -> dict[str, Float32]:
        return {"mean": self._mean, "scale": self._scale, "prototypes": self._prototypes}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        return cls(*(np.asarray(arrays[name]) for name in ("mean", "scale", "prototypes")))


SCORERS: dict[str, type[Scorer]] = {"mahalanobis": MahalanobisScorer, "knn": NearestNeighbourScorer}


def _standardiser(z: Float32) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and spread of each feature; one that never moved keeps a spread of 1, so that it counts when it moves at last."""
    spread = z.std(axis=0, dtype=np.float64)
    return z.mean(axis=0, dtype=np.float64), np.where(spread < 1e-6, 1.0, spread)


def _k_centre(y: Float32, count: int) -> npt.NDArray[np.int64]:
    chosen = [0]
    nearest = ((y - y[0]) ** 2).sum(axis=1)
    while len(chosen) < min(count, len(y)):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((y - y[chosen[-1]]) ** 2).sum(axis=1))
    return np.array(chosen)


def _require(z: Float32) -> None:
    if len(z) < 2 or not np.isfinite(z).all():
        raise ValueError(f"cannot fit a scorer to {len(z)} windows{'' if np.isfinite(z).all() else ' that are not finite'}")


def _finite(score: npt.NDArray[np.floating]) -> Float32:
    """A NaN compares as ordinary with every threshold; it is the strangest thing there is."""
    finite: Float32 = np.where(np.isnan(score), np.inf, score).astype(np.float32)
    return finite
