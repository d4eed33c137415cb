"""Windows of an episode that are kept while it lasts: for whoever says later what it was."""

import numpy as np

from edge.signal import Bool, Float32, Int64

MOST = 24
"""Of eight windows a memory knows four fifths of what follows, of sixteen 96 %, of 64 all of it (the small model of the tests).
The strangest, and others evenly over the episode: the beginning of an anomaly often looks unlike the rest."""


class Evidence:
    """Of the episode that lasts, or of the last one. Costs nothing while nothing is strange."""

    def __init__(self) -> None:
        self._episode, self._gathered = _Few(), _Few()

    @property
    def x(self) -> Float32:
        """(n, C, N) as they came from the sensor, in the order of time; at most `MOST`. (0,) before the first episode."""
        return self._episode.arrays()[1]

    @property
    def end_ns(self) -> Int64:
        """(n,)"""
        return self._episode.arrays()[0]

    def update(self, end_ns: Int64, x: Float32, score: Float32, strange: Bool, active: Bool) -> None:
        """Windows (B, C, N) in order of time, as the alarm judged them."""
        if not self._gathered.seen and not strange.any():
            return
        for i in range(len(end_ns)):
            if strange[i]:
                self._gathered.add(int(end_ns[i]), x[i], float(score[i]))
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
        self._kept: list[tuple[int, int, Float32]] = []  # number, time, window
        self._strangest: tuple[int, Float32] | None = None
        self._score = -np.inf

    def add(self, end_ns: int, x: Float32, score: float) -> None:
        copy: Float32 | None = None
        if score > self._score:
            copy = x.copy()
            self._score, self._strangest = score, (end_ns, copy)
        if self.seen % self._every == 0:
            self._kept.append((self.seen, end_ns, x.copy() if copy is None else copy))
            while len(self._kept) == MOST:
                odd = [i for i, (number, _, _) in enumerate(self._kept) if number % (2 * self._every)]
                if odd:
                    del self._kept[odd[0]]
                else:
                    self._every *= 2
        self.seen += 1

    def arrays(self) -> tuple[Int64, Float32]:
        if self._strangest is None:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        both = dict([*(one[1:] for one in self._kept), self._strangest])
        times = sorted(both)
        return np.array(times, np.int64), np.stack([both[time] for time in times])
