"""What leaves the device because somebody or something should know. Times are on the stream's own clock."""

from typing import Literal

import msgspec

EventType = Literal["anomaly_started", "anomaly_updated", "anomaly_ended", "sensor_fault", "drift", "new_normal", "gap"]
"""`new_normal` is a question: an anomaly has lasted, and the machine has settled in it. Is this how it runs from now on?"""


class Share(msgspec.Struct, frozen=True):
    """How much one channel contributes."""

    channel: str
    share: float
    """0 … 1; the shares of all channels add up to 1."""


class Excerpt(msgspec.Struct, frozen=True):
    """A glance at the signal: the window that led to an event, few channels of it, thinned."""

    start_ns: int
    """Time of the first value."""
    step_ns: int
    """From one value to the next."""
    channels: dict[str, tuple[float, ...]]
    """Values in the channel's own unit, most responsible channel first."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing worth telling, as the pipeline says it: no wall clock, no topic, no identity of the device."""

    type: EventType
    episode: int
    """Counts from 1 within one pipeline; started, updated and ended of one episode share it. A gap is its own episode."""
    time_ns: int
    """Last sample of the window that led to it."""
    since_ns: int
    """When it began: for an anomaly the first sample that was new in the first strange window."""
    until_ns: int | None = None
    """When it was over, once that is known."""
    score: float | None = None
    """Raw, higher is stranger. For `updated` and `ended` the highest of the episode, like `p_value` its rarest."""
    p_value: float | None = None
    """Share of windows of the good machine that are at least this strange; estimated where none of them was."""
    threshold: float | None = None
    """The p-value at or below which a window counts as strange."""
    channels: tuple[Share, ...] = ()
    """Most responsible first."""
    model: str = ""
    """Digest of the bundle that judged, as `sha256sum` prints it for the file."""
    reason: str = ""
    """For a gap: see `edge.signal.Gap`; for a sensor fault, drift and the end of an anomaly what kind or why."""
    excerpt: Excerpt | None = None
