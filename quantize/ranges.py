"""Representative windows → activation ranges.

Ranges from normal windows alone clip exactly what the model is for: an anomaly drives activations where normal operation never
does, and int8 cuts them off there. It is the biggest single error of int8 anomaly detection, so half of the windows that
ranges are collected on have a fault injected.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from edge.scoring.inject import inject, usual_spread
from edge.signal import Float32
from quantize.fitting import thinned

COUNT = 512
BATCH = 64


class Range(NamedTuple):
    """Of an int8 activation: real value = (whole number from 0 to 255 − zero_point) · scale."""

    scale: float
    zero_point: int


def representative(windows: Float32, seed: int = 0, count: int = COUNT) -> Float32:
    """Normal windows (n, C, N) → at most `count` windows, evenly spaced normal ones and as many with a fault in them."""
    normal = windows[np.linspace(0, len(windows) - 1, min(len(windows), count // 2)).astype(np.int64)]
    return np.concatenate([normal, inject(normal, usual_spread(thinned(windows)), np.random.default_rng(seed))])


class WindowReader:
    """What `onnxruntime.quantization` calls a calibration data reader; here *calibration* means something else."""

    def __init__(self, windows: Float32, name: str = "window") -> None:
        self._batches: Iterator[dict[str, Any]] = iter(
            [{name: np.ascontiguousarray(windows[at : at + BATCH])} for at in range(0, len(windows), BATCH)]
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)
