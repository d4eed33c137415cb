import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.config import AlarmConfig
from edge.errors import ConfigError
from edge.event import Event
from edge.scoring.alerts import Alarm, AlarmPolicy

HOP = 1_000_000_000
STRANGE, BETWEEN, ORDINARY = 0.001, 0.02, 0.5


def alarm(**settings: float) -> Alarm:
    config = AlarmConfig(**({"p_value": 0.01, "pending_windows": 3, "clear_windows": 2, "cool_down_s": 0.0} | settings))  # type: ignore[arg-type]
    return Alarm(AlarmPolicy.of(config, floor=0.001, length=4, hop=1), ("a", "b"), HOP, "model")


def feed(alarm: Alarm, p_values: list[float], start: int = 0, share: float = 0.75) -> list[Event]:
    n = len(p_values)
    end_ns = (np.arange(n, dtype=np.int64) + start) * HOP
    shares = np.tile(np.array([share, 1 - share], np.float32), (n, 1))
    events, _ = alarm.update(end_ns, -np.log(np.array(p_values, np.float32)), np.array(p_values), shares)
    return events


def kinds(events: list[Event]) -> list[tuple[str, int]]:
    return [(event.type.removeprefix("anomaly_"), event.time_ns // HOP) for event in events]


def test_an_episode_from_start_to_end() -> None:
    events = feed(alarm(), [ORDINARY] * 2 + [STRANGE] * 5 + [ORDINARY] * 4)
    assert kinds(events) == [("started", 4), ("ended", 8)]
    assert {event.episode for event in events} == {1}
    assert events[0].since_ns == 1 * HOP, "the first sample that was new in the first strange window"
    assert events[1].until_ns == 8 * HOP
    assert [(s.channel, s.share) for s in events[0].channels] == [("a", 0.75), ("b", 0.25)]
    assert events[0].p_value == STRANGE
    assert events[0].threshold == 0.01


def test_fewer_strange_windows_than_pending_are_no_alert() -> None:
    assert feed(alarm(), ([STRANGE] * 2 + [ORDINARY]) * 20) == []
    assert feed(alarm(pending_windows=2), ([STRANGE] * 2 + [ORDINARY]) * 20) != [], "the control"


def test_hysteresis_a_score_around_the_threshold_is_one_episode() -> None:
    events = feed(alarm(), [STRANGE] * 3 + [BETWEEN, STRANGE] * 20)
    assert kinds(events) == [("started", 2)]
    without = feed(alarm(clear_ratio=1.0, clear_windows=1, pending_windows=1), [STRANGE] * 3 + [BETWEEN, STRANGE] * 20)
    assert len(without) > 20, "the control"


def test_cool_down_delays_and_never_loses() -> None:
    train = [STRANGE] * 3 + [ORDINARY] * 2 + [STRANGE] * 12
    assert kinds(feed(alarm(), train)) == [("started", 2), ("ended", 4), ("started", 7)]
    late = feed(alarm(cool_down_s=8.0), train)
    assert kinds(late) == [("started", 2), ("ended", 4), ("started", 12)]
    assert late[-1].since_ns == 4 * HOP, "it began when it began"


def test_an_episode_that_lasts_is_repeated_and_says_the_worst_so_far() -> None:
    events = feed(alarm(update_every_s=5.0), [STRANGE] * 3 + [0.0005] + [0.005] * 10)
    assert kinds(events) == [("started", 2), ("updated", 7), ("updated", 12)]
    assert events[-1].p_value == 0.0005


def test_a_gap_breaks_the_row_but_ends_no_episode() -> None:
    subject = alarm()
    assert feed(subject, [STRANGE] * 2) == []
    assert feed(subject, [STRANGE] * 2, start=100) == []
    assert kinds(feed(subject, [STRANGE], start=102)) == [("started", 102)]
    assert subject.active
    assert kinds(feed(subject, [ORDINARY], start=200)) == [("updated", 200)]
    assert subject.active


def test_a_clock_that_is_set_back_does_not_leave_the_alarm_deaf() -> None:
    subject = alarm(cool_down_s=1000.0)
    feed(subject, [STRANGE] * 3 + [ORDINARY] * 3, start=100_000)
    assert feed(subject, [STRANGE] * 5) == [], "the control: still in its cool-down"
    subject.clock_set_back()
    assert kinds(feed(subject, [STRANGE] * 3, start=50)) == [("started", 52)]


P_VALUES = st.lists(st.sampled_from([STRANGE, BETWEEN, ORDINARY]), max_size=80)


@given(P_VALUES, st.integers(1, 7))
def test_how_windows_are_split_into_calls_never_matters(p_values: list[float], size: int) -> None:
    whole = feed(alarm(update_every_s=4.0, cool_down_s=3.0), p_values)
    subject = alarm(update_every_s=4.0, cool_down_s=3.0)
    parts = [event for at in range(0, len(p_values), size) for event in feed(subject, p_values[at : at + size], start=at)]
    assert parts == whole


@given(P_VALUES)
def test_every_episode_starts_once_and_ends_at_most_once(p_values: list[float]) -> None:
    events = feed(alarm(update_every_s=4.0), p_values)
    for episode in {event.episode for event in events}:
        story = [event.type for event in events if event.episode == episode]
        assert story[0] == "anomaly_started"
        assert set(story[1:-1]) <= {"anomaly_updated"}
        assert story.count("anomaly_started") == 1
        assert story.count("anomaly_ended") <= 1


def test_a_threshold_that_can_never_be_reached_is_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"0\.0001 can never be reached: .* 99 windows, .* 0\.01"):
        AlarmPolicy.of(AlarmConfig(p_value=0.0001), floor=0.01, length=64, hop=16)


def test_by_default_two_strange_windows_share_no_sample() -> None:
    policy = AlarmPolicy.of(AlarmConfig(), floor=0.0001, length=64, hop=16)
    assert policy.pending == 5
    assert policy.p_value == 0.001
    assert AlarmPolicy.of(AlarmConfig(), floor=0.02, length=64, hop=16).p_value == 0.02
