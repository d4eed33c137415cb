"""What stands between the encoder and the alarm: what counts as ordinary. Fitted when a bundle is packed, or on the device to
one machine's own running, without the training stack.

A field that may be absent is one that bundles of an earlier version do not hold; what it serves then stays silent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from edge.scoring.budget import Tail
from edge.scoring.calibrate import Calibrator
from edge.scoring.ensemble import Ensemble
from edge.scoring.explain import Explainer
from edge.scoring.reference import Reference
from edge.sensing.health import Usual
from edge.signal import Float32


@dataclass(frozen=True, slots=True)
class Head:
    scorer: Ensemble
    calibrator: Calibrator
    explainer: Explainer
    reference: Reference | None = None
    """What drift, settling and the memory of false alarms measure by."""
    usual: Usual | None = None
    """Without it sensors are not judged by their values."""
    tail: Tail | None = None
    """How often normal running is how strange for how long; without it a false-alarm budget cannot be kept."""

    def arrays(self) -> dict[str, Float32]:
        """Everything, as plain arrays: what head.npz holds."""
        parts = {
            "scorer.": self.scorer.arrays(),
            "calibrator.": self.calibrator.arrays(),
            "explain.": self.explainer.arrays(),
            "drift.": self.reference.arrays() if self.reference else {},
            "usual.": self.usual.arrays() if self.usual else {},
            "tail.": {} if self.tail is None else self.tail.arrays(),
        }
        return {prefix + name: array for prefix, arrays in parts.items() for name, array in arrays.items()}

    @classmethod
    def from_arrays(cls, scorer: str, arrays: Mapping[str, Float32]) -> Self:
        """`scorer` is its name in the manifest. Raises KeyError, TypeError or ValueError for what is missing or wrong."""
        reference = _part(arrays, "drift.")
        return cls(
            Ensemble.from_arrays(scorer, _part(arrays, "scorer.")),
            Calibrator(_part(arrays, "calibrator.")["scores"]),
            Explainer(**_part(arrays, "explain.")),
            Reference.from_arrays(reference) if reference else None,
            Usual.from_arrays(usual) if (usual := _part(arrays, "usual.")) else None,
            Tail.from_arrays(_part(arrays, "tail.")),
        )


def _part(arrays: Mapping[str, Float32], prefix: str) -> dict[str, Float32]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
