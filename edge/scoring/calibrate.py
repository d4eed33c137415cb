"""Score → p-value: how rare is a score this high on the good machine?"""

from typing import Self

import numpy as np
import numpy.typing as npt

from edge.signal import Float32, Float64


class Calibrator:
    """Split conformal p-values: (1 + normal windows at least as strange) / (1 + normal windows).

    Vovk, Gammerman & Shafer (2005), "Algorithmic Learning in a Random World", ch. 2. On windows that are exchangeable with
    the calibration windows, P(p ≤ α) ≤ α, whatever the scorer. Overlapping windows are not independent, so rare values come
    in clusters; the share of time they take is as promised. The rarest value that n windows can tell is 1 / (n + 1).
    """

    def __init__(self, scores: Float32) -> None:
        self._scores = scores  # (n,) ascending

    @classmethod
    def fit(cls, scores: npt.NDArray[np.floating]) -> Self:
        """From the scores of normal windows that neither the encoder nor the scorer was fitted on; ValueError if none."""
        if not len(scores) or not np.isfinite(scores).all():
            raise ValueError(f"cannot calibrate on {len(scores)} scores, or on scores that are not finite")
        return cls(np.sort(scores).astype(np.float32))

    @property
    def windows(self) -> int:
        """How many windows it was fitted on."""
        return len(self._scores)

    @property
    def floor(self) -> float:
        """The smallest p-value it can give."""
        return 1 / (len(self._scores) + 1)

    def p_value(self, scores: Float32) -> Float64:
        """(B,) → (B,), in [floor, 1]."""
        at_least = len(self._scores) - self._scores.searchsorted(scores)
        return (1 + at_least) / (len(self._scores) + 1)

    def score_at(self, p_value: float) -> float:
        """The lowest score whose p-value is at most `p_value`, to draw a threshold; infinite below the floor."""
        allowed = int(np.floor(p_value * (len(self._scores) + 1) + 1e-9)) - 1
        if allowed < 0:
            return float("inf")
        return (
            float(np.nextafter(self._scores[-1 - allowed], np.float32(np.inf)))
            if allowed < len(self._scores)
            else -float("inf")
        )

    def arrays(self) -> dict[str, Float32]:
        return {"scores": self._scores}
