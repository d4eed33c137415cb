"""Which channels are to blame: each one's reconstruction error, in units of what is usual for it."""

from typing import Self

import numpy as np

from edge.scoring.backends import Outputs
from edge.signal import Float32


class Explainer:
    """Shares of blame from the log-residuals: how many spreads each lies above its own normal median, made to add up to 1."""

    def __init__(self, centre: Float32, scale: Float32) -> None:
        self._centre, self._scale = centre, scale  # (C,), (C,)

    @classmethod
    def fit(cls, outputs: Outputs) -> Self:
        low, centre, high = np.quantile(np.log(outputs.residual + 1e-6), (0.25, 0.5, 0.75), axis=0)
        # A channel that is always reconstructed alike would turn the smallest change into all of the blame.
        return cls(centre.astype(np.float32), np.maximum(high - low, 0.1).astype(np.float32))

    def shares(self, outputs: Outputs) -> Float32:
        """(B, C), each row adds up to 1; equal shares where no channel stands out."""
        excess = np.maximum((np.log(outputs.residual + 1e-6) - self._centre) / self._scale, 0)
        excess = np.nan_to_num(excess, nan=0.0, posinf=1e6)
        total = excess.sum(axis=1, keepdims=True)
        channels = excess.shape[1]
        shares: Float32 = np.where(total > 0, excess / np.maximum(total, 1e-12), 1 / channels).astype(np.float32)
        return shares

    def arrays(self) -> dict[str, Float32]:
        return {"centre": self._centre, "scale": self._scale}
