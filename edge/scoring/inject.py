"""Faults put into normal windows, to see what a model does with them. Never to train a threshold on.

Each function takes one window x (C, N), the usual spread of each channel (C,) and a random generator, and returns a new
window; the input stays as it is. Sizes are in spreads, so that the faults fit any sensor.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edge.signal import Float32

Injection = Callable[[Float32, Float32, np.random.Generator], Float32]


def spike(x: Float32, spread: Float32, rng: np.random.Generator) -> Float32:
    """One to three single samples, 5 to 20 spreads off."""
    y = x.copy()
    for _ in range(rng.integers(1, 4)):
        channel = rng.integers(len(x))
        y[channel, rng.integers(x.shape[1])] += _sign(rng) * rng.uniform(5, 20) * spread[channel]
    return y


def level_shift(x: Float32, spread: Float32, rng: np.random.Generator) -> Float32:
    """From some sample on, some channels are 2 to 10 spreads off."""
    y = x.copy()
    start = rng.integers(x.shape[1])
    for channel in _some_channels(x, rng):
        y[channel, start:] += _sign(rng) * rng.uniform(2, 10) * spread[channel]
    return y


def trend(x: Float32, spread: Float32, rng: np.random.Generator) -> Float32:
    """Some channels wander off, by 2 to 10 spreads at the end."""
    y = x.copy()
    ramp = np.linspace(0, 1, x.shape[1])
    for channel in _some_channels(x, rng):
        y[channel] += (_sign(rng) * rng.uniform(2, 10) * spread[channel] * ramp).astype(np.float32)
    return y


def stuck(x: Float32, spread: Float32, rng: np.random.Generator) -> Float32:
    """From some sample in the first half on, some channels repeat their last value."""
    y = x.copy()
    start = rng.integers(max(1, x.shape[1] // 2))
    for channel in _some_channels(x, rng):
        y[channel, start:] = y[channel, start]
    return y


def noise(x: Float32, spread: Float32, rng: np.random.Generator) -> Float32:
    """Some channels get noise of 1 to 5 spreads on top."""
    y = x.copy()
    for channel in _some_channels(x, rng):
        y[channel] += (rng.standard_normal(x.shape[1]) * rng.uniform(1, 5) * spread[channel]).astype(np.float32)
    return y


def warp(x: Float32, spread: Float32, rng: np.random.Generator) -> Float32:
    """Everything runs 1.3 to 2 times as fast, or as slow; where the window ends it turns round."""
    n = x.shape[1]
    factor = rng.uniform(1.3, 2.0) ** _sign(rng)
    at = np.abs((np.arange(n) * factor + n - 1) % (2 * (n - 1)) - (n - 1))  # a triangle between 0 and n − 1
    return np.stack([np.interp(at, np.arange(n), row) for row in x]).astype(np.float32)


def swap(x: Float32, spread: Float32, rng: np.random.Generator) -> Float32:
    """Two channels exchange what they do, each around its own level and in its own size; one channel runs backwards."""
    if len(x) == 1:
        return np.ascontiguousarray(x[:, ::-1])
    y = x.copy()
    a, b = rng.choice(len(x), 2, replace=False)
    level = x.mean(axis=1)
    ratio = spread[a] / max(float(spread[b]), 1e-12)
    y[a] = (x[b] - level[b]) * ratio + level[a]
    y[b] = (x[a] - level[a]) / max(float(ratio), 1e-12) + level[b]
    return y


INJECTIONS: dict[str, Injection] = {
    "spike": spike,
    "level_shift": level_shift,
    "trend": trend,
    "stuck": stuck,
    "noise": noise,
    "warp": warp,
    "swap": swap,
}


def inject(windows: Float32, spread: Float32, rng: np.random.Generator) -> Float32:
    """(B, C, N) → (B, C, N): one fault in each window, the kinds in turn."""
    kinds = list(INJECTIONS.values())
    return np.stack([kinds[i % len(kinds)](x, spread, rng) for i, x in enumerate(windows)])


def usual_spread(windows: Float32) -> Float32:
    """(B, C, N) → (C,): how far each channel usually moves within a window; 1 for one that never moves at all."""
    spread = np.median(windows.std(axis=2, dtype=np.float64), axis=0)
    spread = np.where(spread > 0, spread, windows.std(axis=(0, 2), dtype=np.float64))
    return np.where(spread > 0, spread, 1.0).astype(np.float32)


def _sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


def _some_channels(x: Float32, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """One channel to all of them."""
    return rng.choice(len(x), rng.integers(1, len(x) + 1), replace=False)
