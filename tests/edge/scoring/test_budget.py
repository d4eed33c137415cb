"""Against processes of which the truth is known; docs/results-budget.md has the long version."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_bundle import build, normal

from edge.bundle import Bundle
from edge.config import WEEK_H, AlarmConfig, parse
from edge.errors import ConfigError
from edge.scoring.alerts import AlarmPolicy
from edge.scoring.budget import BLOCKS, Allowance, Tail, allowance, rate
from edge.scoring.calibrate import Calibrator
from edge.scoring.smoothing import Smoother
from edge.signal import Float32, Samples

WINDOW, SPAN_H = 4, 4 / 3600
"""A window of four samples, each sample a window and a second: what lasts four seconds is sustained."""


def correlated(n: int, seed: int, weight: float = 0.8) -> Float32:
    noise = np.random.default_rng(seed).standard_normal(n + 60) * math.sqrt(1 - weight**2)
    return np.convolve(noise, weight ** np.arange(60))[59 : n + 59].astype(np.float32)


def tail(score: Float32, **settings: int) -> Tail:
    return Tail.fit(score, np.arange(len(score)), Smoother(0, 1, WINDOW), hour=3600, **settings)


def episodes(score: Float32, threshold: float, span: int = WINDOW) -> int:
    lowest = np.lib.stride_tricks.sliding_window_view(score, span + 1).min(axis=1)
    above = lowest > threshold
    return int(np.count_nonzero(above[1:] & ~above[:-1]))


def test_the_rule_of_three() -> None:
    subject = tail(correlated(20_000, 0))
    above = float(subject.sustained(SPAN_H).max())
    hours = 20_000 / 3600
    assert subject.hours == pytest.approx(hours)
    assert subject.promised(above, SPAN_H, 0.9) == pytest.approx(-math.log(0.1) / hours * WEEK_H, rel=0.6)
    assert subject.promised(above, SPAN_H, 0.9) >= -math.log(0.1) / hours * WEEK_H * 0.999


def test_what_is_promised_and_what_is_estimated_holds_on_fresh_running_and_naive_counting_does_not() -> None:
    """Nine in ten calibrations at least are to hold. The control takes windows for independent."""
    fresh = correlated(500_000, 99)
    weeks = len(fresh) / 3600 / WEEK_H
    kept, naive = {"promised": 0, "estimated": 0}, 0
    for seed in range(20):
        score = correlated(20_000, seed)
        subject, calibrator = tail(score), Calibrator.fit(score)
        for basis, times in (("promised", 12), ("estimated", 0.1)):
            asked = times / subject.hours * WEEK_H
            found = allowance(AlarmConfig(false_alarms=asked), calibrator, subject, SPAN_H)
            assert found is not None
            assert (found.more_hours == 0) == (basis == "promised")
            kept[basis] += episodes(fresh, found.score) / weeks <= asked
        p = (0.1 / len(score)) ** (1 / (WINDOW + 1))
        naive += episodes(fresh, float(np.quantile(score, 1 - p))) / weeks <= 0.1 / subject.hours * WEEK_H
    assert kept["promised"] >= 18
    assert kept["estimated"] >= 18
    assert naive == 0


def test_swarms_cost_more_than_as_many_episodes_apart() -> None:
    rng = np.random.default_rng(1)
    apart, swarm = np.zeros(40_000, np.float32), np.zeros(40_000, np.float32)
    for at in rng.choice(1000, 40, replace=False) * 40:
        apart[at : at + 10] = 5
    for at in (8000, 24000):
        for i in range(20):
            swarm[at + 40 * i : at + 40 * i + 10] = 5
    one, other = (tail(score).promised(4, SPAN_H, 0.9) for score in (apart, swarm))
    assert other > 1.3 * one


def test_a_score_that_is_not_sustained_does_not_count() -> None:
    score = np.zeros(20_000, np.float32)
    score[::500] = 9
    assert tail(score).promised(5, SPAN_H, 0.9) < tail(score).promised(5, 0.0, 0.9) / 5, "the control: each window for itself"


def test_a_row_begins_anew_behind_a_gap() -> None:
    """Two halves of a span on both sides of a gap are not known to be short, so they count."""
    score = np.zeros(10_000, np.float32)
    score[4998:5003] = 9
    score[5000] = 0
    at = np.arange(10_000)
    subject = Tail.fit(score, at + 500 * (at >= 5001), Smoother(0, 1, WINDOW), hour=3600)
    assert subject.sustained(SPAN_H).max() == 9
    assert tail(score).sustained(SPAN_H).max() == 0, "the control: no gap"


def test_windows_closer_than_those_of_the_device_do_not_make_it_look_calmer() -> None:
    score = np.tile(np.array([9, 0], np.float32), 5000)
    close = Tail.fit(score, np.arange(10_000), Smoother(0, 1, 8), hour=3600)
    assert close.sustained(8 / 3600)[1:].max() == 0
    assert Tail.fit(score, np.arange(10_000), Smoother(0, 1, 8), stride=2, hour=3600).sustained(8 / 3600)[1:].max() == 9


def test_it_stays_small_however_long_it_was_fitted_for() -> None:
    subject = tail(correlated(100_000, 0))
    assert subject.maxima.shape[1] <= BLOCKS
    assert sum(array.nbytes for array in subject.arrays().values()) < 70_000
    assert subject.hours == pytest.approx(100_000 / 3600)
    again = Tail.from_arrays(subject.arrays())
    assert again is not None
    assert again.promised(1.5, SPAN_H, 0.9) == pytest.approx(subject.promised(1.5, SPAN_H, 0.9))


@given(st.integers(1, 400), st.integers(0, 1000), st.floats(0.01, 5000), st.floats(0.5, 0.999))
def test_whatever_was_seen_there_is_an_answer(n: int, seed: int, asked: float, confidence: float) -> None:
    score = np.random.default_rng(seed).gamma(0.5, size=n).astype(np.float32) * (seed % 3)
    subject, calibrator = tail(score), Calibrator.fit(score)
    found = allowance(AlarmConfig(false_alarms=asked, confidence=confidence), calibrator, subject, SPAN_H)
    assert found is not None
    assert 0 < found.p_value < 1 or n < 2
    assert found.promised > 0
    assert found.sentence()
    near = 1e-5 * (1 + abs(found.score))
    strange = calibrator.p_value(np.array([found.score - near, found.score + near], np.float32))
    assert (strange <= found.p_value).tolist() == [False, True], "above the score, and only there"


def test_more_patience_lowers_the_threshold_and_more_confidence_raises_it() -> None:
    score = correlated(20_000, 3)
    subject, calibrator = tail(score), Calibrator.fit(score)

    def threshold(asked: str, confidence: float = 0.9) -> float:
        found = allowance(AlarmConfig(false_alarms=asked, confidence=confidence), calibrator, subject, SPAN_H)
        assert found is not None
        return found.score

    patient = [threshold(asked) for asked in ("1/month", "1/week", "1/day", "1/hour", "20/hour")]
    assert patient == sorted(patient, reverse=True)
    assert threshold("1/week", 0.99) > threshold("1/week", 0.9) > threshold("1/week", 0.6)


def test_minutes_say_nothing_about_a_week_and_it_says_so() -> None:
    score = correlated(200, 0)
    found = allowance(AlarmConfig(false_alarms="1/week"), Calibrator.fit(score), tail(score), SPAN_H)
    assert found is not None
    assert found.estimated is None
    assert found.p_value == pytest.approx(1 / 201)
    assert found.more_hours is not None
    assert found.more_hours > 100
    assert "too few to estimate" in found.sentence()


def test_an_old_bundle_keeps_its_threshold_and_refuses_a_budget() -> None:
    calibrator = Calibrator.fit(np.arange(5000, dtype=np.float32))
    assert allowance(AlarmConfig(), calibrator, None, 0.0) is None
    assert AlarmPolicy.of(AlarmConfig(), calibrator=calibrator, length=4, hop=1).p_value == 0.001
    with pytest.raises(ConfigError, match=r"made before there were budgets .*amiss quantize"):
        allowance(AlarmConfig(false_alarms="1/week"), calibrator, None, 0.0)


@pytest.mark.parametrize(
    ("said", "per_week"),
    [
        ("1/week", 1),
        ("2/day", 14),
        ("3 / hour", 504),
        ("1 a month", 168 / 730.5),
        ("0.5 per week", 0.5),
        ("2", 2),
        (2, 2),
        (0.5, 0.5),
    ],
)
def test_what_may_be_asked_for(said: str | float, per_week: float) -> None:
    assert AlarmConfig(false_alarms=said).per_week == pytest.approx(per_week)


@pytest.mark.parametrize(
    "said", ["", "often", "0/week", 0, -1, "1/fortnight", "1/week/day", "1e9", "100/hour", float("nan"), "½/week"]
)
def test_what_may_not(said: str | float) -> None:
    with pytest.raises(ValueError, match=r'false_alarms = .*as in "1/week"'):
        AlarmConfig(false_alarms=said)


def test_two_ways_to_set_one_threshold_are_refused() -> None:
    with pytest.raises(ValueError, match="leave out one"):
        AlarmConfig(false_alarms="1/week", p_value=0.01)


@pytest.mark.parametrize(
    ("per_week", "said"), [(1, "1 a week"), (14, "2 a day"), (168, "1 an hour"), (0.23, "1 a month"), (0.02, "0.087 a month")]
)
def test_rates_are_said_as_a_person_would(per_week: float, said: str) -> None:
    assert rate(per_week) == said


def test_the_sentences() -> None:
    def said(**change: object) -> str:
        known = {"asked": 1.0, "confidence": 0.9, "p_value": 1e-5, "score": 4.0, "promised": 40.0, "estimated": 1.0}
        return Allowance(**(known | {"hours": 10.0, "more_hours": 377.0} | change)).sentence()  # type: ignore[arg-type]

    assert said() == (
        "at most 1 a week estimated from the tail of 10 hours of normal running; counting alone promises at most 5.7 a day "
        "(90% confidence); 377 hours more promise what is asked"
    )
    assert said(promised=0.9, more_hours=0.0, hours=400.0) == (
        "at most 1 a week promised with 90% confidence, counted in 400 hours of normal running"
    )


def test_a_bundle_keeps_its_tail_and_a_budget_changes_while_an_episode_lasts(tmp_path: Path) -> None:
    bundle = Bundle.open(build(tmp_path / "small.amiss"))
    pipeline = bundle.pipeline(AlarmConfig(false_alarms="1/week"))
    assert pipeline.policy.p_value < bundle.head.calibrator.floor, "rarer than can be counted"
    time_ns = np.arange(6000, dtype=np.int64) * 10_000_000
    x = normal(6000, 5)
    x[:, 4000:] += 9
    events = pipeline.feed(Samples(time_ns[:5000], x[:, :5000]))
    (started,) = [event for event in events if event.type == "anomaly_started"]
    assert started.since_ns >= time_ns[3980]
    assert started.p_value is not None
    assert started.threshold is not None
    assert started.p_value <= started.threshold == pipeline.policy.p_value
    pipeline.alarm.set_policy(bundle.policy(AlarmConfig(false_alarms="1/hour")))
    later = pipeline.feed(Samples(time_ns[5000:], x[:, 5000:]))
    assert [event.type for event in later if event.type == "anomaly_started"] == []
    assert pipeline.alarm.active, "the same episode"


def test_a_mistake_names_file_key_and_cure() -> None:
    smallest = {"node": "n", "bundle": "b", "streams": {"s": {"port": "p"}}}
    with pytest.raises(ConfigError, match=r"^device.toml: alarm: false_alarms = '1/fortnight': expected .* \"1/week\""):
        parse(smallest | {"alarm": {"false_alarms": "1/fortnight"}}, "device.toml")
    with pytest.raises(ConfigError, match=r"^device.toml: alarm: false_alarms and p_value .* leave out one"):
        parse(smallest | {"alarm": {"false_alarms": 1, "p_value": 0.01}}, "device.toml")
