"""Which channels are to blame: whose shape, level or movement is out of the ordinary, in units of what is ordinary for it; and
a glance at their signal."""

from collections.abc import Sequence
from typing import Self

import numpy as np

from edge.event import Excerpt, Share
from edge.scoring.backends import Outputs
from edge.scoring.reference import quantities
from edge.signal import Float32


class Explainer:
    """Shares of blame, made to add up to 1.

    Per channel: how far the logarithm of its residual, its level and the logarithm of its movement lie from their normal
    medians, on either side, in spreads (quartile distances), and only beyond the first spread. Of the residual's distance the
    root is taken. A channel that wanders off spoils the reconstruction of those that usually go with it, so the residual alone
    often blames the wrong one of the two, while the movement is the channel's own; and a sensor that is stuck has less
    residual than usual, not more.
    """

    def __init__(self, centre: Float32, scale: Float32) -> None:
        if len(centre) != 3 or centre.shape != scale.shape:
            raise ValueError(f"blame is told by three quantities, here are {len(centre)}; quantize again with this version")
        self._centre, self._scale = centre, scale  # (3, C) each: residual, level, movement

    @classmethod
    def fit(cls, outputs: Outputs) -> Self:
        """From normal windows."""
        low, centre, high = np.quantile(quantities(outputs, 3), (0.25, 0.5, 0.75), axis=0)
        # What hardly ever changes would turn the smallest change into all of the blame.
        floor = np.array([[0.1], [0.01], [0.1]])
        return cls(centre.astype(np.float32), np.maximum(high - low, floor).astype(np.float32))

    def shares(self, outputs: Outputs) -> Float32:
        """(B, C), each row adds up to 1; equal shares where no channel stands out."""
        away = np.abs(quantities(outputs, 3) - self._centre) / self._scale  # (B, 3, C)
        # fmax and fmin, unlike maximum and minimum, take the number where the other one is NaN.
        beyond = np.fmin(np.fmax(away - 1, 0), 1e6)
        excess = np.sqrt(beyond[:, 0]) + beyond[:, 1] + beyond[:, 2]
        total = excess.sum(axis=1, keepdims=True)
        shares: Float32 = np.where(total > 0, excess / np.maximum(total, 1e-12), 1 / excess.shape[1]).astype(np.float32)
        return shares

    def arrays(self) -> dict[str, Float32]:
        return {"centre": self._centre, "scale": self._scale}


MOST_CHANNELS, MOST_VALUES = 3, 64
MOST_BYTES = 4096
"""Of an event on the wire, excerpt included."""
_BESIDE = 1200
"""Bytes that everything else in an event takes at most, without the names of the channels."""
_FEWEST_VALUES = 8


def excerpt(x: Float32, start_ns: int, period_ns: float, channels: tuple[str, ...], blamed: Sequence[Share]) -> Excerpt | None:
    """Of one window (C, N) that begins at `start_ns`: the channels that are `blamed` most, thinned.

    None where the names of very many channels leave no room for it.
    """
    room = MOST_BYTES - _BESIDE - sum(len(share.channel.encode()) + 30 for share in blamed)
    for count in range(min(MOST_CHANNELS, len(blamed)), 0, -1):
        most = min(MOST_VALUES, room // count // 12)  # -1.2345e-05, and a comma
        if most >= min(_FEWEST_VALUES, x.shape[1]):
            each = -(-x.shape[1] // most)
            shown = [share.channel for share in blamed[:count]]
            values = {name: tuple(float(f"{v:.5g}") for v in thinned(x[channels.index(name)], each)) for name in shown}
            return Excerpt(start_ns, round(each * period_ns), values)
    return None


def thinned(values: Float32, each: int) -> Float32:
    """(N,) → (⌈N / each⌉,): of every `each` values the one that lies farthest from their mean, so that a spike stays."""
    whole = len(values) // each * each
    bins = [*values[:whole].reshape(-1, each), *([values[whole:]] if whole < len(values) else [])]
    return np.array([one[np.abs(one - one.mean(dtype=np.float64)).argmax()] for one in bins], np.float32)
