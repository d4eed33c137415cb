import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.delivery import topics
from edge.event import Event, Share

EVENT = Event(
    type="anomaly_ended",
    episode=3,
    time_ns=90_000_000_000,
    since_ns=30_000_000_000,
    until_ns=80_500_000_000,
    score=4.5,
    p_value=0.001,
    threshold=0.01,
    channels=(Share("x", 0.75), Share("y", 0.25)),
    model="ab" * 32,
)
EPOCH_NS = 1_700_000_000_000_000_000


def payload(event: Event = EVENT) -> topics.EventPayload:
    return topics.event_payload(event, stream="pump", episode_id="e-3", record="r-9", offset_ns=EPOCH_NS)


def test_topics_are_those_of_the_documentation() -> None:
    assert topics.availability("n") == "amiss/n/availability"
    assert topics.info("n") == "amiss/n/info"
    assert topics.health("n") == "amiss/n/health"
    assert topics.stream_availability("n", "s") == "amiss/n/s/availability"
    assert topics.state("n", "s") == "amiss/n/s/state"
    assert topics.event("n", "s") == "amiss/n/s/event"
    assert topics.stream_of("amiss/n/s/event") == "s"
    assert topics.stream_of("amiss/n/health") == ""


@pytest.mark.parametrize("bad", ["", "a/b", "+", "a#", "\0"])
def test_a_name_that_would_change_the_topic_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="no MQTT topic"):
        topics.event("n", bad)
    with pytest.raises(ValueError, match="no MQTT topic"):
        topics.health(bad)


def test_an_event_keeps_everything_and_knows_both_clocks() -> None:
    made = payload()
    assert (made.id, made.record, made.type, made.stream) == ("e-3", "r-9", "anomaly_ended", "pump")
    assert (made.time_ns, made.since_ns, made.until_ns) == (
        EPOCH_NS + 90_000_000_000,
        EPOCH_NS + 30_000_000_000,
        EPOCH_NS + 80_500_000_000,
    )
    assert (made.time, made.since, made.until) == (
        "2023-11-14T22:14:50.000Z",
        "2023-11-14T22:13:50.000Z",
        "2023-11-14T22:14:40.500Z",
    )
    assert (made.stream_ns, made.since_stream_ns) == (EVENT.time_ns, EVENT.since_ns)
    assert made.duration_s == 50.5
    assert (made.score, made.p_value, made.threshold, made.model) == (4.5, 0.001, 0.01, "ab" * 32)
    assert made.channels == EVENT.channels


def test_what_lasts_has_lasted_until_now() -> None:
    assert payload(msgspec.structs.replace(EVENT, type="anomaly_updated", until_ns=None)).duration_s == 60.0


def test_what_an_event_cannot_say_is_left_out_and_what_it_must_say_is_there() -> None:
    bare = Event(type="gap", episode=1, time_ns=2, since_ns=1, reason="silence")
    keys = set(msgspec.json.decode(topics.encode(payload(bare))))
    assert keys == {
        "id",
        "record",
        "type",
        "stream",
        "time",
        "time_ns",
        "since",
        "since_ns",
        "duration_s",
        "historical",
        "stream_ns",
        "since_stream_ns",
        "reason",
    }


TIMES = st.integers(0, 253_402_300_799_999_999_999)  # 1970 … 9999


@given(TIMES, TIMES)
def test_times_sort_as_text(a: int, b: int) -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", topics.rfc3339(a))
    assert topics.rfc3339(min(a, b)) <= topics.rfc3339(max(a, b))


FINITE = st.floats(allow_nan=False, allow_infinity=False)
EVENTS = st.builds(
    Event,
    type=st.sampled_from(["anomaly_started", "anomaly_updated", "anomaly_ended", "sensor_fault", "drift", "gap"]),
    episode=st.integers(1),
    time_ns=st.integers(0, 10**18),
    since_ns=st.integers(0, 10**18),
    until_ns=st.none() | st.integers(0, 10**18),
    score=st.none() | FINITE,
    p_value=st.none() | FINITE,
    threshold=st.none() | FINITE,
    channels=st.lists(st.builds(Share, st.text(), FINITE), max_size=3).map(tuple),
    model=st.text(),
    reason=st.text(),
)


@given(EVENTS)
def test_an_event_survives_the_wire(event: Event) -> None:
    made = payload(event)
    assert msgspec.json.decode(topics.encode(made), type=topics.EventPayload, strict=True) == made


@given(EVENTS)
def test_nothing_lasts_less_than_no_time_or_began_in_the_future(event: Event) -> None:
    """Also where the stream's clock was set back meanwhile."""
    made = payload(event)
    assert made.duration_s >= 0
    assert (
        made.since_ns <= (made.time_ns if made.until_ns is None else made.until_ns) <= made.time_ns == event.time_ns + EPOCH_NS
    )
    assert made.since_stream_ns == made.since_ns - EPOCH_NS


def test_the_other_payloads_survive_the_wire() -> None:
    for made in (
        topics.StatePayload(
            time="t",
            time_ns=1,
            anomaly=True,
            score=1.0,
            p_value=None,
            threshold=0.01,
            model="m",
            since="s",
            top_channels=("x", "y"),
            time_quality="synced",
        ),
        topics.HealthPayload(
            time="t",
            time_ns=1,
            uptime_s=2.0,
            mqtt=topics.MqttHealth(connected=True, queued=1, published=2, dropped=3, parked=4),
            streams={
                "pump": topics.StreamHealth(
                    online=True, samples=1, windows=2, events=3, filled=4, lost=5, reopened=6, rejected=7
                )
            },
            clock=topics.ClockHealth(synced=True),
            cpu=0.1,
            rss=5,
            temperature=40.0,
            disk_written_bytes=6,
        ),
        topics.InfoPayload(
            node="n",
            versions={"amiss": "1"},
            model=topics.ModelInfo(digest="d", name="m", version="1"),
            channels=(topics.ChannelInfo(name="x", unit="g"),),
            config={"a": 1},
        ),
    ):
        assert msgspec.json.decode(topics.encode(made), type=type(made)) == made


HOUR_NS = 3600 * 10**9


def leave(event: topics.EventPayload | bytes, put_ns: int, now_ns: int, known: topics.Known | None = None) -> bytes:
    data = event if isinstance(event, bytes) else topics.encode(event)
    return topics.leaving(data, put_ns=put_ns, now_ns=now_ns, history_ns=HOUR_NS, known=known)


def test_late_is_marked_late_and_nothing_else_changes() -> None:
    now = topics.encode(payload())
    assert leave(payload(), 0, HOUR_NS) == now
    late = leave(payload(), 0, HOUR_NS + 1)
    assert msgspec.json.decode(late, type=topics.EventPayload) == msgspec.structs.replace(payload(), historical=True)
    assert leave(late, 0, 2 * HOUR_NS) == late
    assert leave(b"not ours", 0, 2 * HOUR_NS) == b"not ours"


def test_what_was_stamped_before_the_clock_was_set_leaves_with_the_right_time_and_is_no_history() -> None:
    """A board that woke up in 1970, and learned a minute later what year it is."""
    now_ns, monotonic_ns = EPOCH_NS, 100 * 10**9
    put_ns = 40 * 10**9  # 1970
    early = msgspec.structs.replace(
        payload(), time_ns=put_ns, since_ns=put_ns, until_ns=None, time_quality="unsynced", boot="b", clock_offset_ns=0
    )
    known = ("b", now_ns - monotonic_ns)
    right = msgspec.json.decode(leave(early, put_ns, now_ns, known), type=topics.EventPayload)
    assert right.time_ns == now_ns - 60 * 10**9
    assert (right.time_quality, right.historical) == ("corrected", False)
    assert leave(early, put_ns, put_ns) == topics.encode(early), "while nobody knows the time it leaves as it is, and says so"
    another = msgspec.json.decode(leave(early, put_ns, now_ns, ("c", 0)), type=topics.EventPayload)
    assert (another.time_quality, another.historical) == ("unsynced", True), "of another start of the computer nothing is known"
    hours = msgspec.json.decode(leave(early, put_ns, now_ns + 2 * HOUR_NS, known), type=topics.EventPayload)
    assert (hours.time_quality, hours.historical) == ("corrected", True)


def test_a_loss_is_told_as_a_gap() -> None:
    gap = topics.dropped_payload(
        stream="pump", record="r", count=7, first_ns=EPOCH_NS, last_ns=EPOCH_NS + 2_000_000_000, reason="outbox_full"
    )
    assert (gap.type, gap.reason, gap.count, gap.duration_s, gap.id) == ("gap", "outbox_full", 7, 2.0, "r")
