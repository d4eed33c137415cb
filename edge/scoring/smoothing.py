"""Scores averaged over time: what is slightly strange for long counts as much as what is very strange for a moment.

A moving average of the score, as control charts have it (Roberts 1959, "Control chart tests based on geometric moving
averages"). It never reaches across a gap.
"""

import math
from itertools import pairwise

import numpy as np

from edge.signal import Bool, Float32, Float64, Int64


class Smoother:
    """The mean over the newest window and those that end at most `reach` before it, in an unbroken row."""

    def __init__(self, reach: float, hop: float, window: float) -> None:
        """All in one unit, that of the positions. With a reach of 0 each window stands for itself."""
        # Rounded up: with a wider hop than that of the calibration, a mean of fewer windows would vary more than was promised.
        self.count = 1 + math.ceil(reach / hop - 1e-6)
        self.hop, self.window = hop, window
        self._sums: Float64
        self._last: int | None
        self.restart()

    def restart(self) -> None:
        """As if nothing had been seen yet: what follows are scores of another scorer."""
        self._last = None
        self._restart()

    def feed(self, position: Int64, score: Float32) -> tuple[Float32, Int64]:
        """Score (B,) at `position` (B,) → mean (B,), and of how many windows in a row, at most `count`.

        How they are split into calls never matters.
        """
        if self.count == 1:
            return score, np.ones(len(score), np.int64)
        step = np.diff(position, prepend=position[:1] if self._last is None else self._last)
        breaks = np.flatnonzero(self.breaks(step)).tolist()
        means, seen = np.empty(len(score)), np.empty(len(score), np.int64)
        for start, stop in pairwise(sorted({0, *breaks, len(score)})):
            if start in breaks:
                self._restart()
            seen[start:stop] = np.minimum(np.arange(self._seen, self._seen + stop - start) + 1, self.count)
            means[start:stop] = self._means(score[start:stop].astype(np.float64), seen[start:stop])
            self._seen += stop - start
        if len(position):
            self._last = int(position[-1])
        return means.astype(np.float32), seen

    def breaks(self, step: Int64) -> Bool:
        """From one position to the next: is there a gap between?"""
        # Behind a gap a window has to fill up before there is a next one. Stamps jitter by less than that.
        found: Bool = (step > self.hop + self.window / 2) | (step <= 0)
        return found

    def _means(self, score: Float64, seen: Int64) -> Float64:
        # Differences of a running sum cost one addition a window, whatever the count. The sum is carried on one by one, so the
        # same windows give the same means to the bit.
        sums: Float64 = np.concatenate([self._sums, np.cumsum(np.concatenate([self._sums[-1:], score]))[1:]])
        self._sums = sums[-self.count - 1 :]
        found: Float64 = sums[self.count + 1 :] - sums[1 : len(score) + 1]
        # What has not been seen yet counts as ordinary, whose score is 0: the mean of a few varies more than that of many, and
        # a start is not to raise alarms.
        means: Float64 = np.minimum(found / self.count, found / seen)
        return means

    def _restart(self) -> None:
        self._sums = np.zeros(self.count + 1)
        self._seen = 0


def smoothed(smoother: Smoother, position: Int64, score: Float32) -> tuple[Float32, Int64]:
    """The means of which all windows were seen, and where they stand; where no row is long enough for one, those there are."""
    means, seen = smoother.feed(position, score)
    full = seen == smoother.count
    return (means[full], position[full]) if full.any() else (means, position)
