"""What the page, the metrics and the requests may see of a running agent, and how they ask it for something.

The agent implements `View`; whoever shows something is given one and knows nothing of the agent. Every method may be called
from any thread, and answers from what is in memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from edge.delivery.topics import EventPayload, HealthPayload, InfoPayload, Response, StatePayload
from edge.signal import Bool, Float32, Float64, Int64

EPISODES = 100
"""That are shown at most, of all streams together."""


@dataclass(frozen=True, slots=True)
class History:
    """The last minutes of one stream, oldest first. At most a few hundred points: several windows may share one."""

    time_ns: Int64
    """(P,) epoch."""
    score: Float32
    """(P,) the highest in each."""
    p_value: Float64
    """(P,) the rarest in each."""
    anomaly: Bool
    """(P,) an episode was active."""
    threshold_score: float
    """The score from which windows count as strange now; infinite when none does."""
    signal_ns: Int64
    """(S,) epoch, of the newest window or a little more."""
    signal: Float32
    """(C, S) in the units of the channels; NaN where nothing was measured."""


@dataclass(frozen=True, slots=True)
class Learning:
    """One stream's commissioning on the device: under way, or how the last one ended."""

    running: bool
    progress: float
    """0 … 1."""
    left_s: float
    """Until enough is collected; 0 when it is over."""
    outcome: str = ""
    """What came of it, or what holds it up, in one line."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What people have asked of one stream, and when it last said something."""

    last_sample_ns: int | None = None
    """Epoch; None before the first."""
    maintenance_until_ns: int | None = None
    """Epoch; None when alerts are not held back."""
    learning: Learning | None = None
    can_roll_back: bool = False
    """An earlier head is kept."""


class View(Protocol):
    @property
    def node(self) -> str: ...

    def info(self) -> InfoPayload: ...

    def health(self) -> HealthPayload: ...

    def states(self) -> dict[str, StatePayload]:
        """By stream; without those that have not judged a window yet."""
        ...

    def situations(self) -> dict[str, Situation]:
        """Of every stream that is configured, in that order."""
        ...

    def history(self, stream: str) -> History | None:
        """None for a stream that there is not, or that has not judged a window yet."""
        ...

    def episodes(self) -> list[EventPayload]:
        """The newest event of each of the last `EPISODES` episodes (gaps, faults and drift included), newest first."""
        ...

    def verdicts(self) -> dict[str, str]:
        """What people have said of an episode and not taken back: its id → `false_alarm`, `confirmed` or `new_normal`."""
        ...

    def request(self, verb: str, body: Mapping[str, Any]) -> Response:
        """The answer to the same request over MQTT; blocks for some seconds at most. The caller has checked who asks."""
        ...
