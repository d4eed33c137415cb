"""Counted samples and a shaky clock → stamps whose only holes are real ones.

A host learns late, and unevenly late, that a sample exists: the serial driver hands over bytes in lumps of 1 to 100 ms.
Stamps taken from those moments jitter by more than a few lost samples, so whoever compares neighbours either sees holes that
are none or misses those that are. The *number* of samples does not jitter. So stamps follow the count, one period after
the other, and the clock only steers them:

- samples that follow each other are 0.9 to 1.1 periods apart: the clock's error is spread over them, which also follows a
  sensor whose own rate is a little off (1 % is usual, 10 % is a wrong setting and ought to show);
- a hole that the count knows of (sequence numbers, a damaged line) is exactly as wide as the samples that it lacks;
- an error beyond the tolerance is no jitter: something was lost that nobody counted. The stamps start anew from the clock,
  which leaves a hole before them;
- stamps of arrival never go back. Should too many samples arrive for the time that has passed (a clock that runs more
  than 10 % fast, a backlog), they are squeezed. Stamps of a sensor that starts again do go back, as its clock does.

What comes out needs no `MissingPolicy.jitter_s`: neighbours are as regular as the sensor.
"""

import numpy as np

from edge.sensing.decoders.layout import Clock
from edge.signal import Int64

STEER = 0.1
"""Share of a period by which the distance of two neighbours may be off so as to follow the clock."""


class StreamClock:
    """Gives stamps to samples that are counted.

    `tolerance_ns` is how far the clock may be off before a hole is inferred; half a period is always granted.
    """

    def __init__(self, period_ns: float, tolerance_ns: float, clock: Clock) -> None:
        if not period_ns > 0:
            raise ValueError(f"a period of {period_ns} ns")
        self.period_ns = period_ns
        self.tolerance_ns = max(tolerance_ns, period_ns / 2)
        self.forward = clock == "arrival"
        self._index: int | None = None  # count of the newest stamped sample; None: the next one starts anew
        self._ns: int | None = None  # its stamp

    @property
    def running(self) -> bool:
        """Whether stamps can go on without a clock."""
        return self._index is not None

    def restart(self) -> None:
        """Nobody knows how much is missing here: the next stamps start anew, behind a hole that cannot be overlooked."""
        self._index = None

    def stamp(self, index: Int64, time_ns: int | None, at: int) -> Int64:
        """Stamps for samples number `index` (n,) ≥ 1, which increase; the clock says `time_ns` for sample number `at`.

        Without `time_ns` the stamps go on as before.
        """
        period = self.period_ns
        if self._index is None or self._ns is None:
            if time_ns is None:
                raise ValueError("the first stamp needs a clock")
            return self._anew(index, time_ns, at)
        error = 0.0 if time_ns is None else time_ns - self._ns - (at - self._index) * period
        if error > self.tolerance_ns or (error < -self.tolerance_ns and not self.forward):
            assert time_ns is not None
            return self._anew(index, time_ns, at)
        ahead = (index - self._index) * period
        if int(index[-1]) - self._index == len(index):  # none is missing, as nearly always
            places, neighbours = index - self._index, len(index)
        else:
            next_to = np.diff(index, prepend=self._index) == 1
            places, neighbours = np.cumsum(next_to), int(np.count_nonzero(next_to))
        if error and neighbours:
            steer = float(np.clip(error / neighbours, -STEER * period, STEER * period))
            if error < -self.tolerance_ns:
                steer = max(min(steer, (error + self.tolerance_ns) / neighbours), -period)
            ahead += places * steer
        return self._keep(index, self._ns + np.rint(ahead).astype(np.int64))

    def _anew(self, index: Int64, time_ns: int, at: int) -> Int64:
        stamps = time_ns + np.rint((index - at) * self.period_ns).astype(np.int64)
        if self.forward and self._ns is not None:
            # After a restart the clock may seem to leave no hole, because what came before was stamped late.
            least = self._ns + self.tolerance_ns + 2 * self.period_ns if self._index is None else self._ns
            stamps += max(0, round(least) - int(stamps[0]))
        return self._keep(index, stamps)

    def _keep(self, index: Int64, stamps: Int64) -> Int64:
        self._index, self._ns = int(index[-1]), int(stamps[-1])
        return stamps
