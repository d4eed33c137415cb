"""What flows between the sensor and the score: arrays, never one object per sample.

Letters, everywhere in this project: B batch, C channels, N samples per window, D embedding, T steps after the encoder.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Samples:
    """Some consecutive samples of one stream; none is a valid number of them."""

    time_ns: Int64
    """(n,) when each was taken, on the stream's own clock: monotonic while the stream lives, of arbitrary zero."""
    x: Float32
    """(C, n) values in the units of the channels; NaN is a missing value."""
    arrived_ns: int | None = None
    """When the last one arrived, on the host's monotonic clock; known only where the stamps are of another clock."""

    def __post_init__(self) -> None:
        if self.x.ndim != 2 or self.time_ns.shape != (self.x.shape[1],):
            raise ValueError(f"time_ns {self.time_ns.shape} does not fit x {self.x.shape}")

    def __len__(self) -> int:
        return len(self.time_ns)

    @classmethod
    def empty(cls, channels: int) -> "Samples":
        return cls(np.empty(0, np.int64), np.empty((channels, 0), np.float32))


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch in which nothing usable arrived and which was too long to fill."""

    start_ns: int
    """Time of the last good sample before it."""
    end_ns: int | None
    """Time of the first good sample after it; None while it lasts."""
    reason: str
    """`silence`: no samples; `missing`: a channel had no value for too long; `backwards`: the stream's clock jumped back."""
    position: int = field(default=0, compare=False)
    """How many samples of the stream had come when this was known."""


@dataclass(frozen=True, slots=True)
class Windows:
    """A batch of windows without any hidden gap, oldest first."""

    start_ns: Int64
    """(B,) time of the first sample."""
    end_ns: Int64
    """(B,) time of the last sample."""
    x: Float32
    """(B, C, N), finite, read-only."""
    fresh: Bool
    """(B,) first behind a start or a gap; every other one begins a hop behind the one before it."""
    gaps: tuple[Gap, ...] = ()
    """What was lost before, between or after them, oldest first."""
    position: Int64 = field(default_factory=lambda: np.empty(0, np.int64))
    """(B,) how many samples of the stream had come, good or bad, when it was complete; left out where there is no stream."""

    def __len__(self) -> int:
        return len(self.start_ns)
