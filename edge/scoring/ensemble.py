"""Several scorers, each with a view of its own on what the model gives, heard as one.

Which scorer is right differs from machine to machine, and nobody has labels to find out. So each one's score is put in
spreads of what it says of normal windows, and the mean of them is taken. What is strange to one only is still heard.
"""

import re
from collections.abc import Callable, Mapping
from typing import Self

import numpy as np
import numpy.typing as npt

from edge.scoring.backends import Outputs
from edge.scoring.scorers import SCORERS, Scorer
from edge.signal import Float32, Float64

View = Callable[[Outputs], Float32]

DEFAULT_SCORER = "subspace(trace) + knn(signal)"


def features(outputs: Outputs) -> Float32:
    """(B, D + 2 C): the embedding, the logarithm of the residuals, which spread over decades, and the levels."""
    return np.concatenate([outputs.embedding, log_residual(outputs), outputs.level], axis=1)


def signal(outputs: Outputs) -> Float32:
    """(B, C (2 + K)): the levels and the energies, in all and by band. Nothing in it is learned."""
    return np.concatenate([outputs.level, _flat(outputs.spectrum)], axis=1)


def everything(outputs: Outputs) -> Float32:
    """(B, D + C (3 + K))"""
    return np.concatenate([features(outputs), _flat(outputs.spectrum)], axis=1)


def log_residual(outputs: Outputs) -> Float32:
    found: Float32 = np.log(outputs.residual + 1e-6)
    return found


VIEWS: dict[str, View] = {
    "features": features,
    "signal": signal,
    "everything": everything,
    "embedding": lambda outputs: outputs.embedding,
    "residual": log_residual,
    "level": lambda outputs: outputs.level,
    "trace": lambda outputs: _flat(outputs.trace),
    "map": lambda outputs: _flat(outputs.map),
}
"""What a scorer can be given: outputs → (B, K)."""

STRANGEST = 1e6
"""No score is higher: averages over time and sums over scorers stay finite, and one end at last."""
_NARROWEST = 0.02
"""Of the logarithm of a score. Where all normal windows score alike, the smallest difference would be beyond belief."""


class Ensemble:
    """Stouffer's combination: the mean of the members' z; 0 is ordinary, and a few are rare.

    Stouffer et al. (1949), "The American Soldier", vol. 1, appendix. A member's z is how far the logarithm of its score lies
    from the median of normal windows, in their spread above it: the p-value of a location-scale family, which unlike an
    empirical one tells strange from stranger. The members are not independent, so the mean is only a score; the p-value that
    counts is the `Calibrator`'s, made from it.
    """

    def __init__(self, name: str, scorers: tuple[Scorer, ...], centre: Float32, scale: Float32) -> None:
        self.name, self._scorers = name, scorers
        self._views = tuple(VIEWS[view] for _, view in parse(name))
        self._centre, self._scale = centre, scale  # (M,): of the logarithms of normal scores

    @classmethod
    def fit(cls, name: str, outputs: Outputs, held_back: Outputs) -> Self:
        """Fitted to `outputs`, and put in relation by `held_back`: normal windows that no member was fitted to.

        Raises ValueError when they are too few or not finite, or for a name that `parse` refuses.
        """
        scorers = fit_members(name, outputs)
        return cls.related(name, scorers, log_scores(name, scorers, held_back))

    @classmethod
    def related(cls, name: str, scorers: tuple[Scorer, ...], normal: Float64) -> Self:
        """From fitted members and the logarithms (M, n) of what they say of normal windows."""
        if not normal.shape[1]:
            raise ValueError("cannot relate scores to each other on 0 windows")
        centre, high = np.quantile(normal, (0.5, 0.9), axis=1)
        scale = np.maximum((high - centre) / 1.2816, _NARROWEST)  # the 90 % quantile of a Gaussian of unit spread
        return cls(name, scorers, centre.astype(np.float32), scale.astype(np.float32))

    def score(self, outputs: Outputs) -> Float32:
        """(B,), higher is stranger, at most `STRANGEST`; not finite in, strangest out."""
        return self.combined(log_scores(self.name, self._scorers, outputs))

    def combined(self, logs: Float64) -> Float32:
        """Logarithms of the members' scores (M, B) → (B,)."""
        z = (logs - self._centre[:, None]) / self._scale[:, None]
        score: Float32 = np.minimum(np.nan_to_num(z, nan=STRANGEST).mean(axis=0), STRANGEST).astype(np.float32)
        return score

    def arrays(self) -> dict[str, Float32]:
        found = {f"{i}.{key}": array for i, scorer in enumerate(self._scorers) for key, array in scorer.arrays().items()}
        return found | {"centre": self._centre, "scale": self._scale}

    @classmethod
    def from_arrays(cls, name: str, arrays: Mapping[str, npt.NDArray[np.float32]]) -> Self:
        """Raises KeyError for what is missing."""
        scorers = []
        for i, (kind, _) in enumerate(parse(name)):
            mine = {key.removeprefix(f"{i}."): array for key, array in arrays.items() if key.startswith(f"{i}.")}
            scorers.append(SCORERS[kind].from_arrays(mine))
        return cls(name, tuple(scorers), np.asarray(arrays["centre"]), np.asarray(arrays["scale"]))


def parse(name: str) -> tuple[tuple[str, str], ...]:
    """`subspace(trace) + knn(signal)` → its members, each a key of `SCORERS` and one of `VIEWS`; raises ValueError."""
    members = []
    for part in name.split("+"):
        found = re.fullmatch(r"\s*(\w+)(?:\((\w+)\))?\s*", part)
        kind, view = (found[1], found[2] or "features") if found else ("", "")
        if kind not in SCORERS or view not in VIEWS:
            raise ValueError(
                f"scorer {part.strip()!r}: expected scorer(view), scorers are {', '.join(SCORERS)}, views {', '.join(VIEWS)}; "
                f"several are joined by +, as in {DEFAULT_SCORER}"
            )
        members.append((kind, view))
    return tuple(members)


def fit_members(name: str, outputs: Outputs) -> tuple[Scorer, ...]:
    return tuple(SCORERS[kind].fit(VIEWS[view](outputs)) for kind, view in parse(name))


def log_scores(name: str, scorers: tuple[Scorer, ...], outputs: Outputs) -> Float64:
    """(M, B), one row a member."""
    views = (VIEWS[view] for _, view in parse(name))
    # The constant keeps a distance of 0, which a window that is remembered has from itself, in sight of the others.
    rows = [np.log(scorer.score(view(outputs)).astype(np.float64) + 1e-3) for scorer, view in zip(scorers, views, strict=True)]
    return np.stack(rows)


def _flat(array: Float32) -> Float32:
    return array.reshape(len(array), -1)
