"""Every topic and payload that leaves the device. Pure: values in, bytes out.

    amiss/<node>/availability            retained, QoS 1   `online` / `offline`, the latter also as last will
    amiss/<node>/info                    retained, QoS 1   `InfoPayload`
    amiss/<node>/health                  retained, QoS 0   `HealthPayload`
    amiss/<node>/update                  retained, QoS 1   `edge.updating.workflow.Progress`, with an `[update]` section
    amiss/<node>/<stream>/availability   retained, QoS 1   `online` / `offline`
    amiss/<node>/<stream>/state          retained, QoS 0   `StatePayload`
    amiss/<node>/<stream>/event          QoS 1             `EventPayload`, through the outbox
    amiss/<node>/<stream>/events         QoS 1             array of `EventPayload`: what waited, several in one message, if so
                                                           configured (`mqtt.batch_records`); never an anomaly
    amiss/<node>/request/<verb>          to the device     an object, of which `transaction` comes back with the answer
    amiss/<node>/response/<verb>         QoS 1             `Response`
    amiss/<node>/request/ack             to the device     `AckRequest`, with `mqtt.ack = "application"`
    amiss-models/<repo>/metadata/<file>  retained, QoS 1   of a signed repository of models; to all devices, from who publishes
    amiss-models/<repo>/targets/<file>   retained, QoS 1   its bundles up to 256 kB

Payloads are JSON. A time is there twice: RFC 3339 in UTC for people, epoch nanoseconds (`…_ns`) for programs. A field that
has nothing to say is left out; one that is always there has no default below.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec

from edge.event import Event, EventType, Excerpt, Share

ONLINE, OFFLINE = b"online", b"offline"


Known = tuple[str, int]
"""A start of the computer, and what added to its monotonic clock makes epoch time, now that somebody has set its clock."""


def availability(node: str) -> str:
    return _topic(node, "availability")


def info(node: str) -> str:
    return _topic(node, "info")


def health(node: str) -> str:
    return _topic(node, "health")


def stream_availability(node: str, stream: str) -> str:
    return _topic(node, stream, "availability")


def state(node: str, stream: str) -> str:
    return _topic(node, stream, "state")


def event(node: str, stream: str) -> str:
    return _topic(node, stream, "event")


def batch(event_topic: str) -> str:
    """Where several events of one stream go at once."""
    return f"{event_topic}s"


def models(repository: str, folder: str, file: str) -> str:
    """A file of a repository of models; `folder` is `metadata` or `targets`."""
    return f"amiss-models/{repository}/{folder}/{file}"


def update(node: str) -> str:
    return _topic(node, "update")


def of_all(*rest: str) -> str:
    """What all devices say under such a topic; to be subscribed to."""
    return "/".join(("amiss", "+", *rest))


def requests(node: str) -> str:
    """What the device subscribes to."""
    return f"{_topic(node, 'request')}/+"


def request(node: str, verb: str) -> str:
    return _topic(node, "request", verb)


def verb_of(node: str, topic: str) -> str | None:
    """The verb of a request; None for every other topic."""
    start = _topic(node, "request") + "/"
    return topic.removeprefix(start) if topic.startswith(start) else None


def response(node: str, verb: str) -> str:
    return _topic(node, "response", verb)


def stream_of(topic: str) -> str:
    """The stream that a topic is about; empty for one about the whole node."""
    parts = topic.split("/")
    return parts[2] if len(parts) == 4 else ""


TimeQuality = Literal["synced", "unsynced", "corrected"]


class EventPayload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One `edge.event.Event` on its way to a person."""

    id: str
    """Of the episode: started, updated and ended of one anomaly share it."""
    record: str
    """Of this very message. Delivery is at least once: whoever counts, counts distinct `record`s."""
    type: EventType
    stream: str
    time: str
    time_ns: int
    """Last sample of the window that led to it."""
    since: str
    since_ns: int
    """When it began."""
    duration_s: float
    """`until` − `since` when it is over, else `time` − `since`."""
    historical: bool
    """Delivered long after it happened, or from a replay: worth recording, too late to act on."""
    until: str | None = None
    until_ns: int | None = None
    stream_ns: int | None = None
    since_stream_ns: int | None = None
    """`time` and `since` on the stream's own clock, to find the place in a recording."""
    score: float | None = None
    p_value: float | None = None
    threshold: float | None = None
    channels: tuple[Share, ...] = ()
    """Most responsible first."""
    model: str = ""
    """Digest (hex SHA-256) of the bundle that judged."""
    reason: str = ""
    """For a gap: `silence`, `missing`, `backwards` (samples) or `outbox_full`, `disk_budget` (records). For a sensor fault:
    `clock`, `dropout`, `range`, `rate`, `spikes` or `stuck`."""
    time_quality: TimeQuality | None = None
    """`unsynced`: nobody had set this computer's clock; `corrected`: nor had they then, but it was put right before this left.
    Absent where the system does not tell."""
    boot: str = ""
    """While unsynced: which start of the computer,"""
    clock_offset_ns: int | None = None
    """and what was added to its monotonic clock. `health.clock` of the same boot says what it should have been."""
    excerpt: Excerpt | None = None
    """A glance at the signal, on the stream's own clock."""
    count: int | None = None
    """For a gap in the records: how many were dropped."""


class StatePayload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a stream is doing now."""

    time: str
    time_ns: int
    anomaly: bool
    score: float | None
    p_value: float | None
    threshold: float
    """The p-value at or below which a window counts as strange."""
    model: str
    since: str | None = None
    """Start of the anomaly that lasts."""
    top_channels: tuple[str, ...] = ()
    """Most responsible first."""
    time_quality: TimeQuality | None = None
    """`unsynced` while nobody has set this computer's clock; left out where the system does not tell."""
    maintenance: bool = False
    """Somebody works on the machine: strange windows are judged and raise no alert."""
    latency_ms: float | None = None
    """From the arrival of the window's last sample to its verdict."""


class MqttHealth(msgspec.Struct, frozen=True, kw_only=True):
    connected: bool
    queued: int
    """Records that wait in the outbox."""
    published: int
    """Records that the broker has acknowledged since the agent started."""
    dropped: int
    """Records that the budget cost, ever."""
    parked: int
    """Records that the broker refused and that are kept."""
    awaiting: int = 0
    """Of the queued ones: alerts that the broker has and the application has not acknowledged."""
    written_bytes_today: int = 0
    """What the outbox has written to the disk since midnight (UTC)."""


class StreamHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Counted since the agent started."""

    online: bool
    samples: int
    windows: int
    events: int
    filled: int
    """Values filled."""
    lost: int
    """Samples lost in gaps."""
    reopened: int
    rejected: int = 0
    """Frames or lines that made no sense."""
    commissioned: str | None = None
    """When this machine's own head was fitted; left out while the bundle's serves."""
    learning: float | None = None
    """Share of a commissioning that is done."""
    faults: tuple[str, ...] = ()
    """What is wrong with the sensor now, for a person: `current: stuck`."""
    alarms: int = 0
    """Of the events: anomalies that started."""
    latency_ms: float | None = None
    """That a window takes, the median of late."""


class ClockHealth(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    synced: bool
    boot: str = ""
    """Which start of the computer,"""
    offset_ns: int | None = None
    """and what added to its monotonic clock makes epoch time."""


class HealthPayload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The device itself, once a minute."""

    time: str
    time_ns: int
    uptime_s: float
    mqtt: MqttHealth
    streams: dict[str, StreamHealth]
    clock: ClockHealth | None = None
    """Left out where the system does not tell."""
    cpu: float | None = None
    """Share of one core, 0 … number of cores."""
    rss: int | None = None
    """Bytes of memory of the agent."""
    temperature: float | None = None
    """Of the processor, °C."""
    disk_written_bytes: int | None = None


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    digest: str
    name: str
    version: str


class ChannelInfo(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    unit: str


class InfoPayload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What runs here; sent when the agent starts and when it changes."""

    node: str
    versions: dict[str, str]
    """`amiss`, `python` and the libraries that matter."""
    model: ModelInfo
    channels: tuple[ChannelInfo, ...]
    config: dict[str, Any]
    """Without secrets."""
    latest_model: ModelInfo | None = None
    """The newest model that is offered, once it is another than `model`."""
    false_alarms_per_week: float | None = None
    """What `alarm.false_alarms` asks for, whatever unit of time it is given in."""
    backend: str | None = None
    provider: str | None = None
    """What computes, as found and not as configured: `cpu`, `cuda` …"""
    machine: str | None = None
    """Architecture, as `uname -m` says it."""
    board: str | None = None
    config_schema: dict[str, Any] | None = None


class AckRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The application has these records for good: the device need not keep them."""

    records: Annotated[tuple[str, ...], msgspec.Meta(max_length=1000)]
    transaction: str | int | None = None
    token: str | None = None


class Response(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of a request."""

    status: Literal["ok", "error"]
    data: Any = None
    error: str = ""
    """Cause and cure in one line."""
    transaction: str | int | None = None
    """As it was in the request."""


Payload = EventPayload | StatePayload | HealthPayload | InfoPayload | Response


def encode(payload: Payload) -> bytes:
    return msgspec.json.encode(payload)


def rfc3339(time_ns: int) -> str:
    """Epoch nanoseconds → `2024-05-01T12:00:00.250Z`: milliseconds, cut and not rounded, so order is kept."""
    seconds, rest_ns = divmod(time_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest_ns // 1_000_000:03d}Z"


def event_payload(
    event: Event, *, stream: str, episode_id: str, record: str, offset_ns: int, historical: bool = False
) -> EventPayload:
    """`offset_ns` is what added to the stream's clock makes epoch time. What began, or was last seen, before that clock was set
    back did so later, as it counts now: nothing is told of the future, nor has it lasted less than no time."""
    until_stream_ns = None if event.until_ns is None else min(event.until_ns, event.time_ns)
    since_stream_ns = min(event.since_ns, event.time_ns if until_stream_ns is None else until_stream_ns)
    time_ns, since_ns = event.time_ns + offset_ns, since_stream_ns + offset_ns
    until_ns = None if until_stream_ns is None else until_stream_ns + offset_ns
    return EventPayload(
        id=episode_id,
        record=record,
        type=event.type,
        stream=stream,
        time=rfc3339(time_ns),
        time_ns=time_ns,
        since=rfc3339(since_ns),
        since_ns=since_ns,
        duration_s=((time_ns if until_ns is None else until_ns) - since_ns) / 1e9,
        historical=historical,
        until=None if until_ns is None else rfc3339(until_ns),
        until_ns=until_ns,
        stream_ns=event.time_ns,
        since_stream_ns=since_stream_ns,
        score=event.score,
        p_value=event.p_value,
        threshold=event.threshold,
        channels=event.channels,
        model=event.model,
        reason=event.reason,
        excerpt=event.excerpt,
    )


def dropped_payload(*, stream: str, record: str, count: int, first_ns: int, last_ns: int, reason: str) -> EventPayload:
    """The gap that `count` records leave which had to be dropped; they were put from `first_ns` to `last_ns` (epoch)."""
    return EventPayload(
        id=record,
        record=record,
        type="gap",
        stream=stream,
        time=rfc3339(last_ns),
        time_ns=last_ns,
        since=rfc3339(first_ns),
        since_ns=first_ns,
        duration_s=(last_ns - first_ns) / 1e9,
        historical=True,
        until=rfc3339(last_ns),
        until_ns=last_ns,
        reason=reason,
        count=count,
    )


def corrected(event: EventPayload, boot: str, offset_ns: int) -> EventPayload:
    """Its times set right, if it was stamped unsynced in the same boot; `offset_ns` makes epoch time of the monotonic clock."""
    if event.time_quality != "unsynced" or event.boot != boot or event.clock_offset_ns is None:
        return event
    shift_ns = offset_ns - event.clock_offset_ns
    until_ns = None if event.until_ns is None else event.until_ns + shift_ns
    return msgspec.structs.replace(
        event,
        time=rfc3339(event.time_ns + shift_ns),
        time_ns=event.time_ns + shift_ns,
        since=rfc3339(event.since_ns + shift_ns),
        since_ns=event.since_ns + shift_ns,
        until=None if until_ns is None else rfc3339(until_ns),
        until_ns=until_ns,
        time_quality="corrected",
        boot="",
        clock_offset_ns=None,
    )


def leaving(payload: bytes, *, put_ns: int, now_ns: int, history_ns: int, known: Known | None = None) -> bytes:
    """An event as it leaves at `now_ns`: its times set right where they can be, and marked as history when it was put more than
    `history_ns` ago. `put_ns` is by the clock of that time. What is no event of ours comes back as it is."""
    old = now_ns - put_ns > history_ns
    if not old and (known is None or b'"unsynced"' not in payload):
        return payload  # as nearly always, without a look inside
    try:
        event = msgspec.json.decode(payload, type=EventPayload)
    except msgspec.DecodeError:
        return payload
    right = event if known is None else corrected(event, *known)
    if right is not event:
        old = now_ns - (put_ns + right.time_ns - event.time_ns) > history_ns
    if old and not right.historical:
        right = msgspec.structs.replace(right, historical=True)
    return payload if right is event else encode(right)


def _topic(node: str, *rest: str) -> str:
    parts = ("amiss", node, *rest)
    if any(not part or any(mark in part for mark in "+/#\0") for part in parts):
        raise ValueError(f"{parts!r} make no MQTT topic: no part may be empty or hold + / #")
    return "/".join(parts)
