"""Windows of an episode that are kept while it lasts: for whoever says later what it was."""

import numpy as np

from edge.signal import Bool, Float32

MOST = 24
"""Of eight windows a memory knows four fifths of what follows, of sixteen 96 %, of 64 all of it (the small model of the tests).
The strangest, and others evenly over the episode: the beginning of an anomaly often looks unlike the rest."""


class Evidence:
    """Of the episode that lasts, or of the last one. Costs nothing while nothing is strange."""

    def __init__(self) -> None:
        self._episode, self._gathered = _Few(), _Few()

    @property
    def x(self) -> Float32:
        """(n, C, N) as they came from the sensor, in that order; at most `MOST`. (0,) before the first episode."""
        return self._episode.array()

    def update(self, x: Float32, score: Float32, strange: Bool, active: Bool) -> None:
        """Windows (B, C, N) in order of time, as the alarm judged them."""
        if not self._gathered.seen and not strange.any():
            return
        for i in range(len(x)):
            if strange[i]:
                self._gathered.add(x[i], float(score[i]))
            elif not active[i] and self._gathered.seen:
                self._gathered = _Few()
            if active[i]:
                self._episode = self._gathered


class _Few:
    """Some of many windows, whose number nobody knows before, evenly: each so many-th, and when there are too many, one by one,
    only each twice as many-th."""

    def __init__(self) -> None:
        self.seen = 0
        self._every = 1
        self._kept: list[tuple[int, Float32]] = []  # number, window
        self._strangest: tuple[int, Float32] | None = None
        self._score = -np.inf

    def add(self, x: Float32, score: float) -> None:
        copy: Float32 | None = None
        if score > self._score:
            copy = x.copy()
            self._score, self._strangest = score, (self.seen, copy)
        if self.seen % self._every == 0:
            self._kept.append((self.seen, x.copy() if copy is None else copy))
            while len(self._kept) == MOST:
                odd = [i for i, (number, _) in enumerate(self._kept) if number % (2 * self._every)]
                if odd:
                    del self._kept[odd[0]]
                else:
                    self._every *= 2
        self.seen += 1

    def array(self) -> Float32:
        if self._strangest is None:
            return np.empty(0, np.float32)
        both = dict([*self._kept, self._strangest])
        return np.stack([both[number] for number in sorted(both)])
