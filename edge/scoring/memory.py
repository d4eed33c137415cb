"""What a person called ordinary: windows like those of a forgiven episode score as ordinary ones do, at once and reversibly.

A prototype is a window of that episode, as quantities of its channels (`edge.scoring.reference`) and its embedding. A window
is like it when, in usual spreads,

- every channel in which the prototype is out of the ordinary is near it there,
- every other channel is ordinary, or near it too,
- and so is the embedding.

So a door that slams is forgiven, and what else happens while it slams is not. Near is as near as normal windows lie to the
nearest of a few others, and a little more. Two faults that show the same at times (a hot winding at an ordinary load) forgive
each other in part: docs/results-drift.md.

Cases as plain as these, added and taken away one by one, are what case-based novelty detection calls prototypes (Salganicoff
1993, "Density-adaptive learning and forgetting"). Nothing is fitted anew, so every other score, and its p-value, stays.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from edge.scoring.backends import Outputs
from edge.scoring.reference import Reference, grouped, quantities
from edge.scoring.scorers import k_centre
from edge.signal import Bool, Float32

MOST = 128
MOST_EACH = 16
"""Prototypes of one name: those that lie farthest apart stand for the others."""
WIDER = 1.4
"""Times as far as normal windows lie apart counts as near: an episode is wilder than normal running, and has few windows."""
MOST_FORGIVEN = 0.05
"""Share of the faults on trial that one name may cover: a person who forgives one thing is not to turn the detector off. Of a
machine with five channels a fault of its own covers less than 1 %; of one with two, a shift of one of them covers 3 %, and
rightly so, since three in a hundred faults on trial are just that."""


@dataclass(frozen=True, slots=True)
class _Prototypes:
    """Of one name, as they were seen: another reference may measure them anew."""

    quantities: Float32
    """(P, R, C)"""
    embedding: Float32
    """(P, D)"""

    def __len__(self) -> int:
        return len(self.embedding)


class Memory:
    """Prototypes by name, the oldest first. Empty it costs nothing; full, one comparison a window while scores are ordinary."""

    def __init__(self, reference: Reference | None, faults: Callable[[], Outputs] | None = None, *, most: int = MOST) -> None:
        """`faults` gives outputs of windows with faults in them, on which what is to be forgiven is tried; it is called when
        first needed. Without a reference nothing can be remembered."""
        self._reference, self._faults, self._most = reference, faults, most
        self._known: dict[str, _Prototypes] = {}
        self._trial: Outputs | None = None
        self._ready: _Ready | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Oldest first."""
        return tuple(self._known)

    def __len__(self) -> int:
        """Prototypes, of all names."""
        return sum(map(len, self._known.values()))

    def add(self, name: str, outputs: Outputs) -> int:
        """Remember windows of an episode under `name`, in place of what is there; returns how many prototypes came of it.

        When there are more than `most` of them the oldest names go. Raises ValueError, with the reason, and changes nothing,
        when the windows are like ordinary ones or so wide that faults would be forgiven too.
        """
        if self._reference is None:
            raise ValueError("this model holds no reference of ordinary running; commission it, or quantize it again")
        found = _Prototypes(quantities(outputs), outputs.embedding)
        z, e = self._reference.standardised(found.quantities), self._reference.embedded(outputs)
        strange = (grouped(z, e) > self._reference.limit).any(axis=1)
        if not strange.any():
            raise ValueError(
                "these windows show nothing out of the ordinary in any channel by itself, so what is like them cannot be told "
                "from faults; commission anew if this is how the machine runs"
            )
        index = np.flatnonzero(strange)
        flat = np.concatenate([z[index].reshape(len(index), -1), e[index]], axis=1)
        chosen = index[np.sort(k_centre(flat, min(MOST_EACH, self._most)))]
        added = _Prototypes(found.quantities[chosen], found.embedding[chosen])
        if (share := self._forgiven(added)) > MOST_FORGIVEN:
            raise ValueError(
                f"{share:.1%} of the faults on trial look like these, at most {MOST_FORGIVEN:.0%} may; allow more false "
                "alarms, or commission anew if this is how the machine runs"
            )
        self._known.pop(name, None)
        self._known[name] = added
        while len(self) > self._most:
            del self._known[next(iter(self._known))]
        self._prepare()
        return len(added)

    def remove(self, name: str) -> bool:
        """Forget it; whether there was anything to forget."""
        there = self._known.pop(name, None) is not None
        self._prepare()
        return there

    def adjust(self, outputs: Outputs, score: Float32) -> Float32:
        """(B,) → (B,): 0, which is ordinary, for windows like a prototype; all others as they are."""
        if self._ready is None or self._reference is None:
            return score
        above = score > self._reference.score[2]
        if not above.any():
            return score
        asked = np.flatnonzero(above)
        known = self._ready.like(self._reference, outputs if len(asked) == len(score) else outputs.part(asked))
        if not known.any():
            return score
        found = score.copy()
        found[asked[known]] = 0.0
        return found

    def arrays(self) -> dict[str, Float32]:
        """Everything that is remembered, as plain arrays; their order does not matter."""
        found = {}
        for i, (name, one) in enumerate(self._known.items()):
            found[f"{i:03}.quantities.{name}"], found[f"{i:03}.embedding.{name}"] = one.quantities, one.embedding
        return found

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, Float32],
        reference: Reference | None,
        faults: Callable[[], Outputs] | None = None,
        *,
        most: int = MOST,
    ) -> Self:
        """See `load`."""
        memory = cls(reference, faults, most=most)
        memory.load(arrays)
        return memory

    def load(self, arrays: Mapping[str, Float32]) -> None:
        """Remember this and nothing else. Raises KeyError or ValueError, and changes nothing, for what is missing or does not
        fit: another encoder sees other things."""
        known: dict[str, _Prototypes] = {}
        for key in sorted(arrays):
            number, kind, name = key.split(".", 2)
            if kind == "quantities":
                one = _Prototypes(arrays[key], arrays[f"{number}.embedding.{name}"])
                if self._reference is not None and (
                    one.quantities.shape[1:] != self._reference.centre.shape
                    or one.embedding.shape != (len(one.quantities), self._reference.embedding.shape[1])
                ):
                    raise ValueError(f"{name}: remembered of another model")
                known[name] = one
        self._known = known
        while len(self) > self._most:
            del self._known[next(iter(self._known))]
        self._prepare()

    def _forgiven(self, added: _Prototypes) -> float:
        """Share of the faults on trial, of those that are told from ordinary running by themselves."""
        if self._faults is None or self._reference is None:
            return 0.0
        if self._trial is None:
            self._trial = self._faults()
        trial = self._trial
        away = grouped(self._reference.standardised(quantities(trial)), self._reference.embedded(trial))
        strange = np.flatnonzero((away > self._reference.limit).any(axis=1))
        if not len(strange):
            return 0.0
        return float(_Ready.of(self._reference, [added]).like(self._reference, trial.part(strange)).mean())

    def _prepare(self) -> None:
        there = self._reference is not None and self._known
        self._ready = _Ready.of(self._reference, list(self._known.values())) if there and self._reference else None


@dataclass(frozen=True, slots=True)
class _Ready:
    """All prototypes, measured by one reference."""

    z: Float32
    """(P, R, C)"""
    e: Float32
    """(P, D)"""
    untouched: Bool
    """(P, G) in which it is ordinary."""

    @classmethod
    def of(cls, reference: Reference, names: list[_Prototypes]) -> Self:
        z, e = (np.concatenate(parts) for parts in zip(*(_measured(reference, one) for one in names), strict=True))
        return cls(z, e, grouped(z, e) <= reference.limit)

    def like(self, reference: Reference, outputs: Outputs) -> Bool:
        """(B,) whether each window is like one of them."""
        e = reference.embedded(outputs)
        found = np.zeros(len(e), bool)
        size = np.float32(e.shape[1])
        squares = (WIDER * reference.near[-1]) ** 2 * size
        calm = np.sqrt(np.einsum("bd,bd->b", e, e) / size) <= reference.limit[-1]
        near: list[tuple[int, npt.NDArray[np.intp]]] = []  # windows, and the prototypes whose embedding is near
        for i in range(len(e)):  # one by one, or a burst would take as much memory as prototypes times windows
            away = self.e - e[i]
            close = np.einsum("pd,pd->p", away, away) <= squares
            if calm[i]:
                close |= self.untouched[:, -1]
            if close.any():
                near.append((i, np.flatnonzero(close)))
        if not near:
            return found  # as nearly always, and the channels need not be looked at
        z = reference.standardised(quantities(outputs))
        limit, ordinary = WIDER * reference.near[:-1], np.abs(z).max(axis=1) <= reference.limit[:-1]
        for i, some in near:
            close = np.abs(self.z[some] - z[i]).max(axis=1) <= limit
            found[i] = (close | (self.untouched[some, :-1] & ordinary[i])).all(axis=1).any()
        return found


def _measured(reference: Reference, one: _Prototypes) -> tuple[Float32, Float32]:
    nothing = np.empty((len(one), 0), np.float32)
    outputs = Outputs(one.embedding, nothing, nothing, nothing, nothing, nothing)
    return reference.standardised(one.quantities), reference.embedded(outputs)
