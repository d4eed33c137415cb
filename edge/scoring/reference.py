"""What ordinary running looks like, quantity by quantity: what drift is measured against, and a memory how near is near.

Fitted to the same normal windows as the calibration. Everything is told in *usual spreads*: a 3.29th of the distance from the
5 % to the 95 % quantile, which is the standard deviation of a Gaussian, and takes in the states between which a machine goes to
and fro.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np

from edge.scoring.backends import Outputs
from edge.scoring.ensemble import log_residual
from edge.signal import Float32, Float64, Int64

WATCHED = ("shape", "level", "movement")
"""What is followed of each channel: the residual, the mean, the energy."""
BLOCKS = 8
"""So many blocks the reference is cut into. What a machine does in turn within an eighth of the time is in every block."""
LONG = 2048
"""Windows that share no sample. A block that is longer is halved, as long as all that is done in turn evens out within one: a
month of recordings is not to mean that drift is told after a week."""
FEWEST = 16
"""Windows. With so few the blocks vary much, so much is allowed, and little is ever told."""
ALLOWED = 0.3
"""Usual spreads that a block may be off, if those of the reference do not vary more."""
CLIP = 3.0
"""Usual spreads; no window counts for more, so that a block is about most of its windows."""
_FLOOR = 0.1, 0.01, 0.1
"""Smallest usual spread of residual, level and energies. What never changed would otherwise be far off for a hair."""
_FARTHEST_GAP = 4096
"""Window lengths. A longer step in a reference is a break between recordings, which is no running."""
_NEIGHBOURS = 8


@dataclass(frozen=True, slots=True)
class Reference:
    """All float32. C channels, R = 3 + bands quantities of each, D embedding; Q = 2 + 3 C is what drift follows: the score, the
    `WATCHED` of each channel, the embedding; G = C + 1 is what a memory compares: the channels and the embedding."""

    centre: Float32
    """(R, C) medians,"""
    scale: Float32
    """(R, C) and usual spreads."""
    embedding: Float32
    """(2, D) the same of the embedding."""
    score: Float32
    """(3,) the same of the score, unsmoothed; and its 90 % quantile, below which nobody asks why."""
    offset: Float32
    """(Q,) mean of the blocks: where a median is not the mean."""
    allowance: Float32
    """(Q,) how far a block may be off, in usual spreads."""
    width: Float32
    """(Q,) standard deviation of single windows, in usual spreads: more than 1 where the tails are heavy."""
    block: Float32
    """(1,) length of a block in windows that share no sample."""
    limit: Float32
    """(G,) a window is ordinary in what it shows of a channel up to so many usual spreads,"""
    near: Float32
    """(G,) and so near is the nearest of a few other windows."""

    def __post_init__(self) -> None:
        rows, channels = self.centre.shape
        sizes = {"scale": (rows, channels), "embedding": (2, self.embedding.shape[-1]), "score": (3,), "block": (1,)}
        sizes |= dict.fromkeys(("offset", "allowance", "width"), (2 + len(WATCHED) * channels,))
        sizes |= dict.fromkeys(("limit", "near"), (channels + 1,))
        for name, shape in sizes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"the reference's {name} is {getattr(self, name).shape}, not {shape}")

    @classmethod
    def fit(cls, outputs: Outputs, score: Float32, position: Int64, window: float) -> Self:
        """From normal windows in the order of time, and the unsmoothed scores (n,) of scorers that did not learn from them.

        `position` (n,) says where each stands, in the unit of `window`, its length. Raises ValueError when they are too few.
        """
        if len(outputs) < FEWEST:
            raise ValueError(f"{len(outputs)} windows are no reference, at least {FEWEST} are needed")
        found = quantities(outputs)
        low, centre, high = np.quantile(found, (0.05, 0.5, 0.95), axis=0)
        floor = np.full((found.shape[1], 1), _FLOOR[2])
        floor[:2, 0] = _FLOOR[:2]
        scale = np.maximum((high - low) / 3.29, floor)
        finite = np.minimum(score, np.quantile(score, 0.999, method="lower"))  # the strangest score is a million
        low_s, middle_s, gate, high_s = np.quantile(finite, (0.05, 0.5, 0.9, 0.95))
        embedding = np.stack([np.median(outputs.embedding, axis=0), np.maximum(outputs.embedding.std(axis=0), 1e-4)])
        nothing, nowhere = np.zeros(2 + len(WATCHED) * found.shape[2], np.float32), np.zeros(found.shape[2] + 1, np.float32)
        reference = cls(
            centre.astype(np.float32),
            scale.astype(np.float32),
            embedding.astype(np.float32),
            np.array([middle_s, max((high_s - low_s) / 3.29, 0.05), gate], np.float32),
            offset=nothing,
            allowance=nothing,
            width=nothing,
            block=np.ones(1, np.float32),
            limit=nowhere,
            near=nowhere,
        )
        z, e = reference.watched(outputs, finite), reference.embedded(outputs)
        ran = _ran(position, window)
        count, means = BLOCKS, _block_means(z, e, ran, BLOCKS)
        while ran[-1] / window / count > LONG and len(ran) >= 2 * count * FEWEST:
            finer = _block_means(z, e, ran, 2 * count)
            if 2 * _wander(finer).max() > ALLOWED:
                break
            count, means = 2 * count, finer
        block = max(1.0, (ran[-1] + window) / window / count)
        spread = _wander(means) if len(means) > 1 else np.full(means.shape[1], ALLOWED)
        width = np.append(np.maximum(z.std(axis=0), 1), max(1.0, float(e.std())))
        limit, near = _nearness(reference, outputs)
        return replace(
            reference,
            offset=means.mean(axis=0).astype(np.float32),
            allowance=np.maximum(ALLOWED, 2 * spread).astype(np.float32),
            width=width.astype(np.float32),
            block=np.array([block], np.float32),
            limit=limit,
            near=near,
        )

    def watched(self, outputs: Outputs, score: Float32) -> Float32:
        """(B, Q − 1) in usual spreads: the score, and the `WATCHED` of each channel. Finite."""
        rows = len(WATCHED)
        found = np.empty((len(outputs), 1 + rows * self.centre.shape[1]), np.float32)
        found[:, 0] = (score - self.score[0]) / self.score[1]
        z = (quantities(outputs, rows) - self.centre[:rows]) / self.scale[:rows]
        found[:, 1:] = z.reshape(len(outputs), -1)
        return bounded(found)

    def embedded(self, outputs: Outputs) -> Float32:
        """(B, D) in usual spreads. Finite."""
        return bounded((outputs.embedding - self.embedding[0]) / self.embedding[1])

    def standardised(self, rows: Float32) -> Float32:
        """Quantities (B, R, C) in usual spreads. Finite."""
        return bounded((rows - self.centre) / self.scale)

    def arrays(self) -> dict[str, Float32]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Float32]) -> Self:
        """Raises KeyError for what is missing."""
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})


def quantities(outputs: Outputs, rows: int | None = None) -> Float32:
    """(B, R, C): the logarithm of the residual, the level, half the logarithm of the energy, in all and by band; the first
    `rows` of them."""
    energies = outputs.spectrum if rows is None else outputs.spectrum[:, : rows - 2]
    return np.concatenate([log_residual(outputs)[:, None], outputs.level[:, None], 0.5 * energies], axis=1)


def bounded(z: Float32) -> Float32:
    """No farther than a thousand spreads, and finite: what is not a number is as far as can be."""
    found: Float32 = np.fmin(np.fmax(z, np.float32(-1e3)), np.float32(1e3))  # they take the number where the other is NaN
    return found


def rms(z: Float32 | Float64) -> float:
    return float(np.sqrt(np.mean(np.square(z, dtype=np.float64))))


def _ran(position: Int64, window: float) -> Float64:
    """(n,) for how long it had run at each, in the unit of `position`."""
    step = np.clip(np.diff(position, prepend=position[:1]).astype(np.float64), 0, _FARTHEST_GAP * window)
    found: Float64 = np.cumsum(step)
    return found


def _block_means(z: Float32, e: Float32, ran: Float64, count: int) -> Float64:
    """(K, Q) of `count` blocks of equal time, without those that are nearly empty."""
    place = np.minimum((ran * count / (ran[-1] + 1e-9)).astype(np.int64), count - 1)
    size = np.bincount(place, minlength=count)
    kept = np.flatnonzero(size >= max(2, len(place) // (4 * count)))
    z, e = np.clip(z, -CLIP, CLIP), np.clip(e, -CLIP, CLIP)
    means = [np.append(z[place == i].mean(axis=0), rms(e[place == i].mean(axis=0))) for i in kept]
    return np.array(means, np.float64)


def _wander(means: Float64) -> Float64:
    """(K, Q) → (Q,) standard deviation of the blocks, from neighbours alone (von Neumann 1941, "Distribution of the ratio of
    the mean square successive difference to the variance"): a reference that drifted does not excuse that it drifts on."""
    found: Float64 = np.sqrt(np.square(np.diff(means, axis=0)).mean(axis=0) / 2)
    return found


def _nearness(reference: Reference, outputs: Outputs) -> tuple[Float32, Float32]:
    """`limit` and `near`. A person says of some few windows that they are ordinary; their like are those that lie as near to
    the nearest of them as normal windows lie to the nearest of so few others."""
    rng = np.random.default_rng(0)
    some = np.sort(rng.permutation(len(outputs))[:1024])
    z, e = reference.standardised(quantities(outputs.part(some))), reference.embedded(outputs.part(some))
    away = grouped(z, e)  # (n, G)
    # With many channels one of them is often a little out of the ordinary.
    limit = np.quantile(away, 1 - 0.05 / away.shape[1], axis=0)
    nearest = []
    for i in range(0, len(some), 8):
        others = rng.permutation(len(some))[: _NEIGHBOURS + 1]
        others = others[others != i][:_NEIGHBOURS]
        nearest.append(grouped(z[i] - z[others], e[i] - e[others]).min(axis=0))
    return limit.astype(np.float32), np.quantile(nearest, 0.9, axis=0).astype(np.float32)


def grouped(z: Float32, e: Float32) -> Float32:
    """Quantities (…, R, C) and embeddings (…, D) in usual spreads → (…, G): the largest of each channel's, one that is far off
    is not to drown among others; and the root mean square of the embedding, whose dimensions mean nothing by themselves."""
    rest = np.sqrt(np.einsum("...d,...d->...", e, e)[..., None] / np.float32(e.shape[-1]))
    found: Float32 = np.concatenate([np.abs(z).max(axis=-2), rest], axis=-1)
    return found
