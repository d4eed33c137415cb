"""How strange is what the encoder saw? Higher is stranger. Fitted on normal windows only, on the device too: plain numpy."""

from collections.abc import Mapping
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from edge.signal import Float32

Arrays = Mapping[str, npt.NDArray[np.float32]]


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

    def __init__(self, mean: Float32, scale: Float32, prototypes: Float32) -> None:
        self._mean, self._scale, self._prototypes = mean, scale, prototypes  # (K,), (K,), (P, K)

    @classmethod
    def fit(cls, z: Float32) -> Self:
        _require(z)
        mean, scale = (a.astype(np.float32) for a in _standardiser(z))
        y = _scaled(z, mean, scale)
        # Quadratic in n: what is far more than the memory holds is thinned evenly in time first.
        y = y[:: max(1, len(y) // (8 * cls.PROTOTYPES))]
        return cls(mean, scale, y[k_centre(y, cls.PROTOTYPES)])

    def score(self, z: Float32) -> Float32:
        squares = _squares(_scaled(z, self._mean, self._scale), self._prototypes)
        return _of(z, np.sqrt(np.maximum(squares.min(axis=1, initial=np.inf), 0) / z.shape[1]))

    def arrays(self) -> dict[str, Float32]:
        return {"mean": self._mean, "scale": self._scale, "prototypes": self._prototypes}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        return cls(*(np.asarray(arrays[name]) for name in ("mean", "scale", "prototypes")))


class KMeansScorer:
    """Distance to the nearest of at most `CENTRES` centres of normal features.

    Between one blob and a memory of single windows: the centres are means, so what was seen once leaves no trace. Lloyd (1982),
    "Least squares quantization in PCM", from the points that lie farthest apart.
    """

    CENTRES = 10
    _ROUNDS = 50
    _MOST = 4096

    def __init__(self, mean: Float32, scale: Float32, centres: Float32) -> None:
        self._mean, self._scale, self._centres = mean, scale, centres  # (K,), (K,), (P, K)

    @classmethod
    def fit(cls, z: Float32) -> Self:
        _require(z)
        mean, scale = (a.astype(np.float32) for a in _standardiser(z))
        y = _scaled(_thinned(z, cls._MOST), mean, scale)
        centres = y[k_centre(y, cls.CENTRES)]
        for _ in range(cls._ROUNDS):
            nearest = _squares(y, centres).argmin(axis=1)
            # A centre that lost all of its points stays where it is.
            moved = np.stack([y[nearest == i].mean(axis=0) if (nearest == i).any() else c for i, c in enumerate(centres)])
            if np.allclose(moved, centres):
                break
            centres = moved
        return cls(mean, scale, centres)

    def score(self, z: Float32) -> Float32:
        squares = _squares(_scaled(z, self._mean, self._scale), self._centres)
        return _of(z, np.sqrt(np.maximum(squares.min(axis=1, initial=np.inf), 0) / z.shape[1]))

    def arrays(self) -> dict[str, Float32]:
        return {"mean": self._mean, "scale": self._scale, "centres": self._centres}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        return cls(*(np.asarray(arrays[name]) for name in ("mean", "scale", "centres")))


class SubspaceScorer:
    """What is left of a window beside the directions in which normal windows differ, in spreads.

    Jackson & Mudholkar (1979), "Control procedures for residuals associated with principal component analysis": Q, as a root
    mean square. It keeps the directions that hold nine tenths of the variance. Features may be many more than windows.
    """

    EXPLAINED = 0.9
    MOST_DIRECTIONS = 128
    _MOST = 1024
    """Windows to fit to: the cost grows with the cube of windows or features, whichever are fewer."""

    def __init__(self, mean: Float32, scale: Float32, basis: Float32) -> None:
        self._mean, self._scale, self._basis = mean, scale, basis  # (K,), (K,), (K, Q)

    @classmethod
    def fit(cls, z: Float32) -> Self:
        _require(z)
        mean, scale = _standardiser(z)
        y = _scaled(_thinned(z, cls._MOST), mean, scale).astype(np.float64)
        centre = y.mean(axis=0)
        y -= centre
        wide = y.shape[1] > len(y)
        values, vectors = np.linalg.eigh(y @ y.T if wide else y.T @ y)  # ascending
        values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
        share = np.cumsum(values) / max(values.sum(), 1e-30)
        kept = min(int(np.searchsorted(share, cls.EXPLAINED)) + 1, cls.MOST_DIRECTIONS, len(y) - 1)
        kept = int((values[:kept] > 1e-9 * max(values[0], 1e-30)).sum())  # directions that are there at all
        basis = y.T @ vectors[:, :kept] / np.sqrt(values[:kept]) if wide else vectors[:, :kept]
        return cls((mean + scale * centre).astype(np.float32), scale.astype(np.float32), basis.astype(np.float32))

    def score(self, z: Float32) -> Float32:
        y = _scaled(z, self._mean, self._scale)
        left = y - (y @ self._basis) @ self._basis.T
        return _of(z, np.sqrt(np.einsum("bk,bk->b", left, left) / y.shape[1]))

    def arrays(self) -> dict[str, Float32]:
        return {"mean": self._mean, "scale": self._scale, "basis": self._basis}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        return cls(*(np.asarray(arrays[name]) for name in ("mean", "scale", "basis")))


class MarginalScorer:
    """How far the features lie above what is usual for each of them alone, on average.

    Blind to what features do together, and so in need of few windows. Only upwards: it is meant for residuals.
    """

    def __init__(self, centre: Float32, scale: Float32) -> None:
        self._centre, self._scale = centre, scale  # (K,), (K,): median, and from there to the 95 % quantile

    @classmethod
    def fit(cls, z: Float32) -> Self:
        _require(z)
        centre, high = np.quantile(z, (0.5, 0.95), axis=0)
        return cls(centre.astype(np.float32), np.where(high - centre < 1e-6, 1.0, high - centre).astype(np.float32))

    def score(self, z: Float32) -> Float32:
        excess = np.maximum(_scaled(z, self._centre, self._scale), 0)
        return _of(z, np.sqrt(np.einsum("bk,bk->b", excess, excess) / z.shape[1]))

    def arrays(self) -> dict[str, Float32]:
        return {"centre": self._centre, "scale": self._scale}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        return cls(np.asarray(arrays["centre"]), np.asarray(arrays["scale"]))


SCORERS: dict[str, type[Scorer]] = {
    "mahalanobis": MahalanobisScorer,
    "knn": NearestNeighbourScorer,
    "kmeans": KMeansScorer,
    "subspace": SubspaceScorer,
    "marginal": MarginalScorer,
}
FARTHEST = 20.0
"""Spreads. A feature that hardly moved while normal would else outvote all others when it moves at last."""


def _scaled(z: Float32, mean: npt.NDArray[np.floating], scale: npt.NDArray[np.floating]) -> Float32:
    """In spreads, none farther than `FARTHEST`."""
    with np.errstate(over="ignore", invalid="ignore"):
        y = (z - mean) / scale
    found: Float32 = np.clip(np.nan_to_num(y, nan=FARTHEST), -FARTHEST, FARTHEST).astype(np.float32)
    return found


def _of(z: Float32, score: npt.NDArray[np.floating]) -> Float32:
    """The score, infinite where a feature is not finite."""
    found: Float32 = np.where(np.isfinite(z).all(axis=1), score, np.inf).astype(np.float32)
    return found


def _squares(y: Float32, points: Float32) -> Float32:
    """(B, K) and (P, K) → squared distances (B, P); rounding may leave them slightly negative."""
    found: Float32 = np.einsum("bk,bk->b", y, y)[:, None] - 2 * (y @ points.T) + np.einsum("pk,pk->p", points, points)
    return found


def _thinned(z: Float32, most: int) -> Float32:
    """At most so many of the windows, evenly in time."""
    return z if len(z) <= most else z[np.linspace(0, len(z) - 1, most).astype(np.int64)]


def _standardiser(z: Float32) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and spread of each feature; one that never moved keeps a spread of 1, so that it counts when it moves at last."""
    spread = z.std(axis=0, dtype=np.float64)
    return z.mean(axis=0, dtype=np.float64), np.where(spread < 1e-6, 1.0, spread)


def k_centre(y: Float32, count: int) -> npt.NDArray[np.int64]:
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
