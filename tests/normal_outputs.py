"""What a model might say of a machine with two channels that runs as it always does."""

import numpy as np

from edge.scoring.backends import Outputs
from edge.scoring.reference import Reference
from edge.signal import Float32

CHANNELS = ("vibration", "current")
HOP_NS = 1_000_000_000


def running(n: int, seed: int = 0, level: float | Float32 = 0.0, channel: int = 1) -> Outputs:
    """`level` (or one for each window) is added to the level of one channel; usual is a spread of 1."""
    rng = np.random.default_rng(seed)
    levels = rng.normal(size=(n, 2))
    levels[:, channel] += level
    shapes = [rng.normal(size=(n, 4)), np.exp(rng.normal(size=(n, 2))), levels, rng.normal(size=(n, 3, 2))]
    arrays = [*shapes, np.zeros((n, 2, 4)), np.zeros((n, 4, 2))]
    return Outputs(*(array.astype(np.float32) for array in arrays))


def scores(outputs: Outputs) -> Float32:
    """0 is ordinary."""
    found: Float32 = (np.abs(outputs.level).max(axis=1) - 1).astype(np.float32)
    return found


def reference(n: int = 800) -> Reference:
    normal = running(n, seed=100)
    return Reference.fit(normal, scores(normal), np.arange(n) * HOP_NS, HOP_NS)
