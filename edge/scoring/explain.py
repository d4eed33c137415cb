"""Which channels are to blame: whose shape or level is out of the ordinary, in units of what is ordinary for it."""

from typing import Self

import numpy as np

from edge.scoring.backends import Outputs
from edge.signal import Float32


class Explainer:
    """Shares of blame, made to add up to 1.

    Per channel: how far the logarithm of its residual lies above its normal median, plus how far its level lies from its
    normal median on either side, both in spreads (quartile distances) and both only beyond the first spread.
    """

    def __init__(self, centre: Float32, scale: Float32) -> None:
        self._centre, self._scale = centre, scale  # (2, C) each: residual, level

    @classmethod
    def fit(cls, outputs: Outputs) -> Self:
        low, centre, high = np.quantile(_quantities(outputs), (0.25, 0.5, 0.75), axis=0)
        # What hardly ever changes would turn the smallest change into all of the blame.
        floor = np.array([[0.1], [0.01]])
        return cls(centre.astype(np.float32), np.maximum(high - low, floor).astype(np.float32))

    def shares(self, outputs: Outputs) -> Float32:
        """(B, C), each row adds up to 1; equal shares where no channel stands out."""
        away = (_quantities(outputs) - self._centre) / self._scale  # (B, 2, C)
        # fmax and fmin, unlike maximum and minimum, take the number where the other one is NaN.
        excess = np.fmin(np.fmax(away[:, 0] - 1, 0) + np.fmax(np.abs(away[:, 1]) - 1, 0), 1e6)
        total = excess.sum(axis=1, keepdims=True)
        shares: Float32 = np.where(total > 0, excess / np.maximum(total, 1e-12), 1 / excess.shape[1]).astype(np.float32)
        return shares

    def arrays(self) -> dict[str, Float32]:
        return {"centre": self._centre, "scale": self._scale}


def _quantities(outputs: Outputs) -> Float32:
    """(B, 2, C)"""
    return np.stack([np.log(outputs.residual + 1e-6), outputs.level], axis=1)
