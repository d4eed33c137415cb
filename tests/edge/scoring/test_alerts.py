from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.config import AlarmConfig
from edge.errors import ConfigError
from edge.event import Event
from edge.scoring.alerts import Alarm, AlarmPolicy
from edge.scoring.calibrate import Calibrator

HOP = 1_000_000_000
STRANGE, BETWEEN, ORDINARY = 0.001, 0.02, 0.5


def calibrated(windows: int) -> Calibrator:
    return Calibrator.fit(np.arange(windows, dtype=np.float32))


def alarm(**changes: float) -> Alarm:
    config = AlarmConfig(**({"p_value": 0.01, "pending_windows": 3, "clear_windows": 2, "cool_down_s": 0.0} | changes))  # type: ignore[arg-type]
    return Alarm(AlarmPolicy.of(config, calibrator=calibrated(999), length=4, hop=1), ("a", "b"), HOP, "model")


def feed(alarm: Alarm, p_values: list[float], start: int = 0, share: float = 0.75) -> list[Event]:
    n = len(p_values)
    end_ns = (np.arange(n, dtype=np.int64) + start) * HOP
    shares = np.tile(np.array([share, 1 - share], np.float32), (n, 1))
    events, _ = alarm.update(end_ns, -np.log(np.array(p_values, np.float32)), np.array(p_values), shares)
    return events


def feed_at(alarm: Alarm, seconds: list[float], p_values: list[float], causes: list[int]) -> list[Event]:
    """The channel numbered `cause` gets all of the blame."""
    end_ns = np.round(np.array(seconds) * 1e9).astype(np.int64)
    p = np.array(p_values)
    return alarm.update(end_ns, -np.log(p).astype(np.float32), p, np.eye(2, dtype=np.float32)[causes])[0]


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
    assert kinds(late) == [("started", 2), ("ended", 4), ("updated", 12)], "it was not over"
    assert {event.episode for event in late} == {1}
    assert late[-1].since_ns == late[0].since_ns, "it began when it began"


def test_an_episode_that_lasts_is_repeated_and_says_the_worst_so_far() -> None:
    events = feed(alarm(update_every_s=5.0), [STRANGE] * 3 + [0.0005] + [0.005] * 15)
    assert kinds(events) == [("started", 2), ("updated", 7), ("updated", 17)]
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


def test_an_alarm_that_is_on_when_the_clock_is_set_back_did_not_begin_in_the_future() -> None:
    subject = alarm(update_every_s=2.0)
    feed(subject, [STRANGE] * 3, start=1000)
    subject.clock_set_back()
    updated, ended = feed(subject, [STRANGE] * 2 + [ORDINARY] * 2)
    assert (updated.time_ns, updated.since_ns) == (0, -1 * HOP)
    assert (ended.time_ns, ended.since_ns) == (3 * HOP, -1 * HOP)


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
    with pytest.raises(ConfigError, match=r"0\.0001 cannot be told: .* 99 windows, .* 0\.01"):
        AlarmPolicy.of(AlarmConfig(p_value=0.0001), calibrator=calibrated(99), length=64, hop=16)


def test_by_default_two_strange_windows_share_no_sample() -> None:
    policy = AlarmPolicy.of(AlarmConfig(), calibrator=calibrated(9999), length=64, hop=16)
    assert policy.pending == 5
    assert policy.p_value == 0.001
    assert AlarmPolicy.of(AlarmConfig(), calibrator=calibrated(49), length=64, hop=16).p_value == 0.02


MINUTE, HOUR, DAY, WEEK = 60, 3600, 86400, 604800
RAW = {"pending_windows": 1, "clear_windows": 1, "clear_ratio": 1.0}
"""Nothing but the cool-down between the signal and the alerts."""


def started_s(events: list[Event]) -> list[int]:
    return [event.time_ns // HOP for event in events if event.type == "anomaly_started"]


def test_a_level_shift_that_stays_for_a_week_is_one_alert_and_few_updates() -> None:
    long = [STRANGE] * WEEK
    events = feed(alarm(cool_down_s=30.0), long)
    assert [event.type for event in events[:2]] == ["anomaly_started", "anomaly_updated"]
    assert started_s(events) == [2]
    assert len(events) <= 20
    waits = np.diff([event.time_ns // HOP for event in events])
    assert waits[:3].tolist() == [60, 120, 240]
    assert waits.max() == DAY
    assert len(feed(alarm(longest_update_s=60.0), long[:DAY])) == DAY // 60, "the control"


def flapping(seconds: int, causes: tuple[int, ...] = (0,)) -> tuple[list[float], list[float], list[int]]:
    """Strange and ordinary in turn, a second each; the causes take turns as well."""
    at = [float(t) for t in range(seconds)]
    return at, [STRANGE if t % 2 else ORDINARY for t in range(seconds)], [causes[t // 2 % len(causes)] for t in range(seconds)]


def test_a_flapping_channel_is_one_alert_and_told_ever_more_rarely() -> None:
    told = feed_at(alarm(**RAW, cool_down_s=30.0), *flapping(DAY))
    assert len(started_s(told)) == 1
    back = [event.time_ns // HOP for event in told if event.type == "anomaly_updated"]
    assert [b - a for a, b in pairwise(back)][:4] == pytest.approx([61, 121, 241, 481], abs=3)
    assert np.diff(back).max() == pytest.approx(HOUR, abs=3)
    assert len(back) <= 32
    assert {event.episode for event in told} == {1}
    storm = started_s(feed_at(alarm(**RAW, cool_down_s=0.0), *flapping(DAY)))
    assert len(storm) > 2000, "the control"


def test_what_a_person_has_ended_does_not_go_on() -> None:
    subject = alarm(cool_down_s=30.0)
    assert kinds(feed(subject, [STRANGE] * 3)) == [("started", 2)]
    assert subject.end(3 * HOP, "false alarm") is not None
    assert kinds(feed(subject, [STRANGE] * 40, start=3)) == [("started", 33)], "that he is told of again, as something new"
    subject = alarm(cool_down_s=30.0, longest_cool_down_s=100.0)
    feed(subject, [STRANGE] * 3)
    subject.end(3 * HOP, "false alarm", longest=True)
    assert kinds(feed(subject, [STRANGE] * 50, start=3)) == []
    assert kinds(feed(subject, [STRANGE] * 60, start=53)) == [("started", 103)]


def test_who_takes_a_false_alarm_back_is_told_after_the_usual_cool_down() -> None:
    subject = alarm(cool_down_s=30.0, longest_cool_down_s=100.0)
    feed(subject, [STRANGE] * 3)
    subject.end(3 * HOP, "false alarm", longest=True)
    feed(subject, [STRANGE] * 10, start=3)
    subject.relent()
    assert kinds(feed(subject, [STRANGE] * 40, start=13)) == [("started", 33)]


def test_what_was_away_for_long_is_another() -> None:
    subject = alarm(cool_down_s=30.0)
    feed(subject, [STRANGE] * 3 + [ORDINARY] * 100)
    assert kinds(feed(subject, [STRANGE] * 3, start=103)) == [("started", 105)]


def test_another_cause_is_told_at_once_and_the_same_one_when_its_time_has_come() -> None:
    def story(causes: list[int]) -> list[tuple[str, int]]:
        p_values = [STRANGE] * 3 + [ORDINARY] * 2 + [STRANGE] * 40
        return kinds(feed_at(alarm(cool_down_s=30.0), [float(t) for t in range(len(p_values))], p_values, causes))

    assert story([0] * 5 + [1] * 40) == [("started", 2), ("ended", 4), ("started", 7)]
    assert story([0] * 45) == [("started", 2), ("ended", 4), ("updated", 34)], "it persists, so it is told"


def test_after_a_quiet_day_a_cause_begins_anew() -> None:
    subject = alarm(**RAW, cool_down_s=30.0)
    feed_at(subject, *flapping(HOUR))
    quiet = float(HOUR + 2 * DAY)
    at, p_values, causes = flapping(200)
    told = feed_at(subject, [quiet + t for t in at], p_values, causes)
    assert len(started_s(told)) == 1
    back = [event.time_ns // HOP for event in told if event.type == "anomaly_updated"]
    assert [b - a for a, b in pairwise([started_s(told)[0], *back])][:2] == pytest.approx([31, 61], abs=3)


STORM = st.lists(
    st.tuples(
        st.integers(1, 40), st.sampled_from([STRANGE, BETWEEN, ORDINARY]), st.integers(0, 7), st.sampled_from([1, 60, HOUR])
    ),
    min_size=1,
    max_size=60,
)


@settings(deadline=None, max_examples=30)
@given(STORM)
def test_no_day_sees_more_alerts_than_stated_whatever_the_signal_does(story: list[tuple[int, float, int, int]]) -> None:
    """Eight channels, over and over: runs of so many windows, p-value, cause, and pause after it."""
    config = AlarmConfig(p_value=0.01, **RAW)  # type: ignore[arg-type]
    channels = tuple("abcdefgh")

    def alerts(config: AlarmConfig) -> list[int]:
        subject = Alarm(AlarmPolicy.of(config, calibrator=calibrated(999), length=4, hop=1), channels, HOP, "model")
        found: list[Event] = []
        at = 0
        for _ in range(15):
            for count, p, cause, pause in story:
                end_ns = (at + np.arange(count, dtype=np.int64)) * HOP
                p_value, blame = np.full(count, p), np.tile(np.eye(8, dtype=np.float32)[cause], (count, 1))
                found += subject.update(end_ns, -np.log(p_value).astype(np.float32), p_value, blame)[0]
                at += count + pause
        return started_s(found)

    most = AlarmPolicy.of(config, calibrator=calibrated(999), length=4, hop=1).alerts_at_most(DAY * HOP)
    assert most == 36
    times = np.array(alerts(config))
    assert all(int(np.searchsorted(times, t + DAY) - i) <= most for i, t in enumerate(times))


def test_causes_that_take_turns_are_rationed(monkeypatch: pytest.MonkeyPatch) -> None:
    def day() -> int:
        at, p_values, _ = flapping(DAY)
        end_ns = (np.array(at) * 1e9).astype(np.int64)
        p, causes = np.array(p_values), np.arange(DAY) // 600 % 8
        subject = Alarm(alarm(**RAW, cool_down_s=30.0).policy, tuple("abcdefgh"), HOP, "model")
        return len(started_s(subject.update(end_ns, -np.log(p).astype(np.float32), p, np.eye(8, dtype=np.float32)[causes])[0]))

    assert 30 <= day() <= 36
    monkeypatch.setattr("edge.scoring.alerts.BURST", 10**6)
    assert day() > 72, "the control: cool-downs alone"


def test_the_control_of_the_bound_without_a_cool_down_there_is_a_storm() -> None:
    assert len(started_s(feed_at(alarm(**RAW, cool_down_s=0.0), *flapping(HOUR, (0, 1))))) == HOUR // 2
    assert alarm(cool_down_s=0.0).policy.alerts_at_most(DAY * HOP) is None


def bursts(
    count: int, windows: int, every_s: float, p_value: float, start_s: float = 0.0
) -> tuple[list[float], list[float], list[int]]:
    at = [start_s + i * every_s + j for i in range(count) for j in range(windows)]
    return at, [p_value] * len(at), [0] * len(at)


def test_a_sensor_that_sleeps_after_every_window_can_raise_an_alert_and_end_it() -> None:
    def story(**settings: float) -> list[Event]:
        subject = alarm(**settings)
        found = feed_at(subject, *bursts(10, 1, MINUTE, ORDINARY))
        found += feed_at(subject, *bursts(4, 1, MINUTE, STRANGE, 600.0))
        return found + feed_at(subject, *bursts(3, 1, MINUTE, ORDINARY, 840.0))

    assert kinds(story()) == [("started", 720), ("updated", 780), ("ended", 900)]
    assert story(bridge_s=0.0) == [], "the control"


def test_one_burst_that_was_lost_is_bridged_and_a_sensor_that_was_away_is_not() -> None:
    usual_s = MINUTE - 1
    for away_s, raised in ((2 * usual_s, True), (2 * usual_s + 1, False), (HOUR, False)):
        subject = alarm()
        feed_at(subject, *bursts(10, 2, MINUTE, ORDINARY))
        found = feed_at(subject, *bursts(1, 2, MINUTE, STRANGE, 600.0))
        found += feed_at(subject, *bursts(1, 1, MINUTE, STRANGE, 601.0 + away_s))
        assert bool(found) is raised, away_s


def test_a_gap_joins_nothing_where_rows_are_long() -> None:
    """Also not when the gaps are as regular as those of a sensor that sleeps."""
    subject = alarm()
    for i in range(12):
        feed_at(subject, *bursts(1, 10, MINUTE, ORDINARY, i * 100.0))
        assert feed_at(subject, *bursts(1, 2, MINUTE, STRANGE, i * 100.0 + 10)) == []
        assert feed_at(subject, *bursts(1, 2, MINUTE, STRANGE, i * 100.0 + 30)) == [], "a gap between two and two"
    bridged = alarm(bridge_s=30.0)
    feed_at(bridged, *bursts(1, 2, MINUTE, STRANGE, 10.0))
    assert feed_at(bridged, *bursts(1, 2, MINUTE, STRANGE, 30.0)) != [], "the control, and what the setting is for"


JUMPS = st.lists(st.tuples(P_VALUES, st.sampled_from([-DAY, -HOUR, -5, 0, 3, MINUTE, HOUR, 10 * DAY])), max_size=12)


@given(JUMPS, st.booleans())
def test_a_clock_that_jumps_neither_opens_nor_closes_an_episode(parts: list[tuple[list[float], int]], told: bool) -> None:
    """An alert always stands behind so many strange windows, its end behind so many ordinary ones."""
    subject = alarm(cool_down_s=30.0)
    seen: list[float] = []
    at = 0.0
    for p_values, jump in parts:
        if jump < 0 and told:
            subject.clock_set_back()
        for p in p_values:
            for event in feed_at(subject, [at], [p], [0]):
                recent = [*seen, p]
                if event.type == "anomaly_started":
                    assert recent[-3:] == [STRANGE] * 3
                elif event.type == "anomaly_ended":
                    assert recent[-2:] == [ORDINARY] * 2
            seen.append(p)
            at += 1
        was = subject.active
        at += jump
        assert subject.active is was


def test_while_muted_nothing_starts_and_what_is_active_ends() -> None:
    subject = alarm()
    feed(subject, [STRANGE] * 4)
    assert subject.active
    ended = subject.mute()
    assert ended is not None
    assert (ended.type, ended.reason, ended.until_ns, ended.episode) == ("anomaly_ended", "maintenance", 3 * HOP, 1)
    assert subject.muted
    assert subject.mute() is None, "nothing is active any more"
    assert feed(subject, [STRANGE] * 16, start=4) == []
    subject.unmute()
    assert not subject.muted
    assert kinds(feed(subject, [STRANGE] * 5, start=20)) == [("started", 22)], "three windows after it, as ever"
    assert subject.since_ns == 19 * HOP, "what was muted does not count"


def test_maintenance_goes_on_when_the_clock_is_set_back_and_with_another_model() -> None:
    subject = alarm()
    assert subject.mute() is None, "before the first window"
    feed(subject, [ORDINARY] * 2, start=5000)
    subject.clock_set_back()
    assert feed(subject, [STRANGE] * 9, start=0) == []
    another = alarm()
    another.take_over(subject)
    assert feed(another, [STRANGE] * 9, start=9) == []
    another.unmute()
    assert kinds(feed(another, [STRANGE] * 3, start=18)) == [("started", 20)]


def test_others_may_end_an_episode_and_its_cause_then_cools_down() -> None:
    subject = alarm(cool_down_s=30.0)
    assert subject.end(0, "restart") is None
    feed(subject, [STRANGE] * 3)
    ended = subject.end(2 * HOP, "feedback")
    assert ended is not None
    assert (ended.type, ended.reason) == ("anomaly_ended", "feedback")
    assert not subject.active
    assert kinds(feed(subject, [STRANGE] * 40, start=3)) == [("started", 32)]


def test_a_new_policy_keeps_the_episode() -> None:
    subject = alarm()
    feed(subject, [STRANGE] * 3)
    subject.set_policy(alarm(p_value=0.0012).policy)
    events = feed(subject, [0.005] * 3, start=3)
    assert kinds(events) == [("ended", 4)]
    assert (events[0].episode, events[0].threshold) == (1, 0.0012)


def test_a_shorter_longest_cool_down_counts_at_once_for_what_was_spent_under_the_old_one() -> None:
    def policy(**settings: float) -> AlarmPolicy:
        return alarm(**RAW, **settings).policy

    def windows(subject: Alarm, first: int, cause: int, count: int = 1) -> list[int]:
        """Strange ones, half a minute apart, and an ordinary one behind each."""
        end_ns = (first + np.repeat(np.arange(count, dtype=np.int64) * 30, 2) + np.tile([0, 1], count)) * HOP
        p = np.tile([STRANGE, ORDINARY], count)
        shares = np.tile(np.eye(16, dtype=np.float32)[cause], (2 * count, 1))
        return started_s(subject.update(end_ns, -np.log(p).astype(np.float32), p, shares)[0])

    def spent() -> Alarm:
        subject = Alarm(policy(cool_down_s=30.0, longest_cool_down_s=5 * DAY), tuple("abcdefghijklmnop"), HOP, "model")
        told = [started for cause in range(14) for started in windows(subject, 60 * cause, cause)]
        assert len(told) == 12, "the ration"
        return subject

    assert windows(spent(), 900, 15, 240) == [], "the control"
    shorter = policy(cool_down_s=30.0, longest_cool_down_s=60.0)
    subject = spent()
    subject.set_policy(shorter)
    assert windows(subject, 900, 15, 240) != []
    subject = Alarm(shorter, tuple("abcdefghijklmnop"), HOP, "another")
    subject.take_over(spent())
    assert windows(subject, 900, 15, 240) != []
    subject = spent()
    subject.set_policy(policy(cool_down_s=0.0))
    assert windows(subject, 900, 15) == [900], "without a cool-down nothing waits"


def test_a_shorter_longest_cool_down_counts_for_a_false_alarm_too() -> None:
    subject = alarm(cool_down_s=30.0, longest_cool_down_s=10 * DAY)
    feed(subject, [STRANGE] * 3)
    subject.end(2 * HOP, "false alarm", longest=True)
    subject.set_policy(alarm(cool_down_s=30.0, longest_cool_down_s=100.0).policy)
    assert kinds(feed(subject, [STRANGE] * 120, start=3)) == [("started", 102)]


def test_a_false_alarm_outlives_a_new_policy_that_has_no_cool_down() -> None:
    subject = alarm(cool_down_s=0.0, longest_cool_down_s=100.0)
    feed(subject, [STRANGE] * 3)
    subject.end(2 * HOP, "false alarm", longest=True)
    subject.set_policy(alarm(cool_down_s=0.0, longest_cool_down_s=100.0).policy)
    assert kinds(feed(subject, [STRANGE] * 120, start=3)) == [("started", 102)]
