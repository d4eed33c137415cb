"""What repeats itself in a recording, and how long a window should be to hold it."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from edge.sensing.recordings import find_recordings, read_parts
from edge.signal import Float32
from trainer import quality
from trainer.recipe import Recipe

FILES_LISTENED_TO = 8
PERIODS = 8
"""In a suggested window: enough to see one of them differ from the others."""
CLEAR = 0.3
"""Autocorrelation from which something is a rhythm."""
SHORTEST_SUGGESTED, LONGEST_SUGGESTED = 32, 512
ROWS_PER_WINDOW = 25
"""A recording has at least so many times the rows of a window, or nothing much is left to calibrate with."""


def suggest_window(paths: Iterable[Path], recipe: Recipe) -> tuple[int, str]:
    """A window for these recordings, and why: `PERIODS` of the strongest rhythm in them, as far as they are long enough."""
    longest, rhythms = 0, []
    for file in find_recordings(paths)[:FILES_LISTENED_TO]:
        part = next(read_parts(file, raw=True))
        longest = max(longest, len(part.time_ns))
        if len(part.time_ns) < 64 or not part.rate_hz > 0:
            continue
        per_row = recipe.rate_hz / part.rate_hz if recipe.rate_hz and recipe.resample.method != "none" else 1.0
        for channel, values in zip(part.channels, part.x, strict=True):
            period, strength = rhythm(values)
            rhythms.append((strength, period * per_row, f"{channel} of {file.name}"))
    strength, period, where = max(rhythms, default=(0.0, 0.0, ""))
    window, why = Recipe().window, "nothing in them clearly repeats itself"
    if strength >= CLEAR:
        window = int(min(max(8 * math.ceil(PERIODS * period / 8), SHORTEST_SUGGESTED), LONGEST_SUGGESTED))
        why = f"{where} repeats itself every {period:.3g} samples (autocorrelation {strength:.2f})"
    most = max(16, longest // ROWS_PER_WINDOW // 8 * 8)
    if window > most:
        window, why = most, f"{why}, and a longer one would leave too few windows"
    return window, why


def rhythm(values: Float32) -> tuple[float, float]:
    """(n,) → samples after which it repeats itself, and the autocorrelation there; (0, 0) when it does not.

    That is the highest peak after the autocorrelation has first been negative: before that every slow thing is like itself.
    """
    x = np.where(np.isfinite(values) & (np.abs(values) < quality.ABSURD), values, np.nan).astype(np.float64)
    if not np.isfinite(x).sum() > len(x) / 2:
        return 0.0, 0.0
    x = np.nan_to_num(x - np.nanmedian(x))
    row = np.arange(len(x))
    x -= np.polyval(np.polyfit(row, x, 1), row)
    spectrum = np.fft.rfft(x, 2 * len(x))
    power = np.fft.irfft(np.abs(spectrum) ** 2)[: len(x) // 4]
    if not power[0] > 0:
        return 0.0, 0.0
    likeness = power / power[0] * len(x) / (len(x) - np.arange(len(power)))
    negative = np.flatnonzero(likeness < 0)
    if not len(negative):
        return 0.0, 0.0
    at = int(negative[0]) + int(likeness[negative[0] :].argmax())
    # A multiple of the period may be a hair higher than the period itself.
    peaks = np.flatnonzero((likeness[1:-1] >= likeness[:-2]) & (likeness[1:-1] >= likeness[2:])) + 1
    first = peaks[(peaks >= negative[0]) & (likeness[peaks] >= 0.9 * likeness[at])]
    at = int(first[0]) if len(first) else at
    return float(at), float(likeness[at])
