"""What the page, the metrics and the requests may see of a running agent, and how they ask it for something.

The agent implements `View`; whoever shows something is given one and knows nothing of the agent. Every method may be called
from any thread, and answers from what is in memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from edge.delivery.topics import EventPayload, HealthPayload, InfoPayload, Response, StatePayload
from edge.signal import Bool, Float32, Float64, Int64


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


class View(Protocol):
    @property
    def node(self) -> str: ...

    def info(self) -> InfoPayload: ...

    def health(self) -> HealthPayload: ...

    def states(self) -> dict[str, StatePayload]:
        """By stream; without those that have not judged a window yet."""
        ...

    def history(self, stream: str) -> History | None:
        """None for a stream that there is not, or that has not judged a window yet."""
        ...

    def episodes(self) -> list[EventPayload]:
        """The newest event of each of the last hundred episodes (gaps, faults and drift included), newest first."""
        ...

    def request(self, verb: str, body: Mapping[str, Any]) -> Response:
        """The answer to the same request over MQTT; blocks for some seconds at most. The caller has checked who asks."""
        ...
