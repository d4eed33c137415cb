"""Score → p-value: how rare is a score this high on the good machine?"""

from typing import Self

import numpy as np
import numpy.typing as npt

from edge.signal import Float32, Float64

DEFAULT_P_VALUE = 0.001
"""The `usual_p_value` of calibrations that can tell it."""
TOP = 0.1
"""Share of the scores whose excess says how fast the tail falls off."""
SHAPE = 0.2
"""Of the tail beyond all scores. As heavy as that they were nowhere, so that nothing is called rarer than it is."""
RAREST = 1e-60
"""Not 0: strangest is not impossible."""


class Calibrator:
    """Split conformal p-values: (1 + normal windows at least as strange) / (1 + normal windows).

    Vovk, Gammerman & Shafer (2005), "Algorithmic Learning in a Random World", ch. 2. On windows that are exchangeable with
    the calibration windows, P(p ≤ α) ≤ α, whatever the scorer. Overlapping windows are not independent, so rare values come
    in clusters; the share of time they take is as promised. The rarest value that n windows can tell is 1 / (n + 1), the
    floor. Beyond the highest of their scores a generalised Pareto tail goes on from there, to tell strange from stranger: an
    estimate, no promise.
    """

    def __init__(self, scores: Float32) -> None:
        """Raises ValueError for scores that `fit` does not make."""
        if scores.ndim != 1 or not len(scores) or (np.diff(scores) < 0).any():
            raise ValueError(f"the calibration is of the shape {scores.shape}, or its scores do not ascend")
        self._scores = scores  # (n,) ascending
        top = scores[-max(2, round(TOP * len(scores))) :].astype(np.float64)
        self._highest, self._scale = float(top[-1]), max(float((top - top[0]).mean()), 1e-3)

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
        """The smallest p-value that is promised."""
        return 1 / (len(self._scores) + 1)

    @property
    def usual_p_value(self) -> float:
        """At or below it a window is strange, where nothing else is said."""
        return max(DEFAULT_P_VALUE, self.floor)

    def p_value(self, scores: Float32) -> Float64:
        """(B,) → (B,), in (0, 1]; never rises with the score."""
        at_least = len(self._scores) - self._scores.searchsorted(scores)
        found: Float64 = (1 + at_least) / (len(self._scores) + 1)
        if not at_least.all():
            beyond = np.maximum(scores.astype(np.float64) - self._highest, 0)
            found *= np.maximum((1 + SHAPE * beyond / self._scale) ** (-1 / SHAPE), RAREST)
        return found

    def score_at(self, p_value: float) -> float:
        """The lowest score whose p-value is at most `p_value`, to draw a threshold."""
        allowed = int(np.floor(p_value * (len(self._scores) + 1) + 1e-9)) - 1
        if allowed < 0:
            exact = self._highest + self._scale / SHAPE * ((self.floor / p_value) ** SHAPE - 1)
            score = np.float32(exact)
            return float(score if float(score) >= exact else np.nextafter(score, np.float32(np.inf)))
        return (
            float(np.nextafter(self._scores[-1 - allowed], np.float32(np.inf)))
            if allowed < len(self._scores)
            else -float("inf")
        )

    def beyond(self, score: float) -> float:
        """The p-value at or below which windows have a higher score than this one; among the calibration windows' scores, than
        the next of them that is not lower."""
        at = min(int(self._scores.searchsorted(np.float32(score))), len(self._scores) - 1)
        limit = max(np.float32(score), self._scores[at])
        return float(self.p_value(np.array([np.nextafter(limit, np.float32(np.inf))]))[0])

    def arrays(self) -> dict[str, Float32]:
        return {"scores": self._scores}
