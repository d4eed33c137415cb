import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from small_bundle import build, normal

from edge.bundle import Bundle
from edge.config import AlarmConfig
from edge.errors import ConfigError
from edge.event import Event
from edge.head import Head
from edge.scoring.commission import fit_head
from edge.scoring.evidence import MOST
from edge.signal import Float32, Samples

PERIOD = 10_000_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(build(tmp_path_factory.mktemp("bundle") / "small.amiss"))


def stream(x: Float32, start: int = 0) -> Samples:
    return Samples((np.arange(x.shape[1], dtype=np.int64) + start) * PERIOD, x)


def with_fault(n: int = 3000, at: int = 2000) -> Float32:
    x = normal(n, seed=7)
    x[1, at:] += 4
    return x


def feed(bundle: Bundle, samples: Samples, cuts: Iterable[int] = ()) -> list[Event]:
    pipeline = bundle.pipeline()
    edges = [0, *cuts, len(samples)]
    return [
        event for a, b in itertools.pairwise(edges) for event in pipeline.feed(Samples(samples.time_ns[a:b], samples.x[:, a:b]))
    ]


def test_a_fault_is_raised_soon_after_it_begins_and_blamed_on_its_channel(bundle: Bundle) -> None:
    (event,) = feed(bundle, stream(with_fault()))
    assert event.type == "anomaly_started"
    assert 2000 <= event.time_ns // PERIOD <= 2000 + 3 * 16
    assert abs(event.since_ns // PERIOD - 2000) <= 16
    assert event.channels[0].channel == "current"
    assert event.channels[0].share > 0.7
    assert event.p_value is not None
    assert event.threshold is not None
    assert event.p_value <= event.threshold
    assert event.model == bundle.digest


def test_normal_running_is_quiet(bundle: Bundle) -> None:
    assert feed(bundle, stream(normal(20_000, seed=9))) == []


def test_how_samples_are_split_into_calls_never_changes_the_events(bundle: Bundle) -> None:
    x = with_fault()
    x[0, 500:503] = np.nan
    x[0, 900:950] = np.nan
    whole = feed(bundle, stream(x))
    assert [event.type for event in whole] == ["gap", "gap", "anomaly_started"]
    rng = np.random.default_rng(0)
    for _ in range(5):
        assert feed(bundle, stream(x), sorted(rng.integers(0, x.shape[1], 40).tolist())) == whole
    assert feed(bundle, stream(x), range(1, x.shape[1])) == whole


def test_a_gap_is_an_event_and_never_an_anomaly(bundle: Bundle) -> None:
    x = normal(4000, seed=3)
    time_ns = np.arange(4000, dtype=np.int64) * PERIOD
    time_ns[1500:] += 100 * PERIOD
    time_ns[3000:] -= 2000 * PERIOD  # the sensor restarted
    events = feed(bundle, Samples(time_ns, x))
    assert [(event.type, event.reason) for event in events] == [("gap", "silence"), ("gap", "backwards")]
    assert events[0].until_ns is not None
    assert events[0].until_ns - events[0].since_ns == 101 * PERIOD


def test_a_channel_that_dies_is_told_when_it_dies_and_when_it_is_back(bundle: Bundle) -> None:
    x = normal(1000, seed=3)
    x[0, 400:600] = np.nan
    first, second = feed(bundle, stream(x))
    assert (first.until_ns, second.until_ns) == (None, 600 * PERIOD)
    assert first.episode == second.episode


def test_values_that_are_not_numbers_never_reach_the_model_as_ordinary(bundle: Bundle) -> None:
    """Infinite in, and a score that is not finite would be strange; here the windower holds it back as missing."""
    x = normal(1000, seed=3)
    x[0, 500:] = np.inf
    assert [(event.type, event.reason) for event in feed(bundle, stream(x))] == [
        ("gap", "missing"),
        ("sensor_fault", "dropout"),
    ]


def test_hop_of_one_sample_gives_one_window_a_sample(bundle: Bundle) -> None:
    verdicts = bundle.pipeline(hop=1).judge(stream(normal(100)))
    assert len(verdicts) == 100 - 16 + 1
    assert verdicts.shares.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_a_threshold_out_of_reach_is_refused_when_built(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be told"):
        bundle.pipeline(AlarmConfig(p_value=1e-6))


def slams(n: int, *at: int, channel: int = 0, seed: int = 7) -> Float32:
    """A door that slams: for a second, one channel is elsewhere."""
    x = normal(n, seed)
    for start in at:
        x[channel, start : start + 100] += 5
    return x


def test_what_was_forgiven_is_silent_and_everything_else_is_told_and_undone_it_alerts_again(bundle: Bundle) -> None:
    pipeline = bundle.pipeline(AlarmConfig(cool_down_s=1.0))
    assert [event.type for event in pipeline.feed(stream(slams(3000, 1000)))] == ["anomaly_started", "anomaly_ended"]
    assert 0 < len(pipeline.evidence.x) <= MOST
    assert (pipeline.evidence.x[:, 0].max(axis=1) > normal(3000, 7)[0].max() + 1).all()
    pipeline.memory.add("door", pipeline.outputs(pipeline.evidence.x))
    again = slams(8000, 4000, 7500, seed=8)  # later than the cool-down, which doubles
    assert pipeline.feed(stream(again, 3000)) == []
    other = pipeline.feed(stream(slams(3000, 1000, channel=1, seed=9), 11_000))
    assert [event.type for event in other] == ["anomaly_started", "anomaly_ended"]
    assert other[0].channels[0].channel == "current"
    pipeline.memory.remove("door")
    undone = pipeline.feed(stream(again, 14_000))
    assert [event.type for event in undone] == 2 * ["anomaly_started", "anomaly_ended"]


def test_an_episode_that_is_too_like_ordinary_running_is_not_forgiven(bundle: Bundle) -> None:
    pipeline = bundle.pipeline()
    quiet = normal(64, 5).reshape(2, 4, 16).transpose(1, 0, 2).copy()
    with pytest.raises(ValueError, match="nothing out of the ordinary"):
        pipeline.memory.add("nothing", pipeline.outputs(quiet))


def test_slow_change_is_told_as_drift_and_before_any_alert(bundle: Bundle) -> None:
    x = normal(60_000, seed=11)
    x[1] += np.linspace(0, 0.6, 60_000, dtype=np.float32)
    first = next(event for event in feed(bundle, stream(x)) if event.until_ns is None)
    assert first.type == "drift"
    assert first.reason.startswith("level of current: +")
    assert first.model == bundle.digest


def test_a_shift_that_stays_is_one_alert_one_question_and_no_drift(bundle: Bundle) -> None:
    x = with_fault(80_000, 5000)
    events = [event for event in feed_with(bundle, x) if event.type != "anomaly_updated"]
    assert [event.type for event in events] == ["anomaly_started", "new_normal"]
    started, question = events
    assert (question.episode, question.since_ns) == (started.episode, started.since_ns)
    assert question.time_ns - started.since_ns >= 60e9


def feed_with(bundle: Bundle, x: Float32) -> list[Event]:
    pipeline = bundle.pipeline(AlarmConfig(settle_s=60.0))
    return [event for at in range(0, x.shape[1], 1000) for event in pipeline.feed(stream(x[:, at : at + 1000], at))]


def test_drift_and_questions_come_in_the_same_order_however_samples_are_split(bundle: Bundle) -> None:
    x = normal(30_000, seed=11)
    x[1, :12_000] += np.linspace(0, 0.8, 12_000, dtype=np.float32)
    x[0, 15_000:24_000] += 5
    samples, config = stream(x), AlarmConfig(settle_s=10.0)
    whole = bundle.pipeline(config).feed(samples)
    assert {"drift", "anomaly_started", "new_normal", "anomaly_ended"} <= {event.type for event in whole}
    rng = np.random.default_rng(0)
    for count in (3, 40, 900):
        edges = [0, *sorted(rng.integers(0, 30_000, count).tolist()), 30_000]
        pipeline = bundle.pipeline(config)
        parts = [Samples(samples.time_ns[a:b], samples.x[:, a:b]) for a, b in itertools.pairwise(edges)]
        assert [event for part in parts for event in pipeline.feed(part)] == whole


def stuck(n: int = 30_000) -> Float32:
    """On a value that a window of noise may well have for its mean; no single window of it is strange enough for an excuse."""
    x = normal(n, seed=21)
    x[0, 8000:20_000] = 0.7
    return x


def test_a_sensor_that_is_stuck_is_no_drift_however_samples_are_split(bundle: Bundle) -> None:
    samples = stream(stuck())
    whole = bundle.pipeline().feed(samples)
    assert {event.type for event in whole} == {"sensor_fault"}
    rng = np.random.default_rng(1)
    for count in (3, 40, 900):
        assert feed(bundle, samples, sorted(rng.integers(0, len(samples), count).tolist())) == whole


def test_what_is_done_to_a_machine_in_maintenance_is_no_drift(bundle: Bundle) -> None:
    x = normal(30_000, seed=22)
    x[1, 6000:14_000] += 3
    for maintained in (True, False):  # the control: without maintenance it is an anomaly
        pipeline = bundle.pipeline()
        told = pipeline.feed(stream(x[:, :5000]))
        if maintained:
            assert pipeline.alarm.mute() is None
        for at in range(5000, 30_000, 700):
            if at >= 15_000:
                pipeline.alarm.unmute()
            told += pipeline.feed(stream(x[:, at : at + 700], at))
        assert (told == []) == maintained


def test_an_alert_shows_the_signal_that_led_to_it(bundle: Bundle) -> None:
    (event,) = feed(bundle, stream(with_fault()))
    assert event.excerpt is not None
    assert next(iter(event.excerpt.channels)) == "current"
    assert event.excerpt.start_ns == event.time_ns - 15 * PERIOD
    assert event.excerpt.step_ns == PERIOD
    at = event.excerpt.start_ns // PERIOD
    assert event.excerpt.channels["current"] == pytest.approx(with_fault()[1, at : at + 16], rel=1e-4)


def test_a_bundle_without_a_reference_is_silent_about_slow_change(bundle: Bundle) -> None:
    x = normal(60_000, seed=11)
    x[1] += np.linspace(0, 0.6, 60_000, dtype=np.float32)
    pipeline = bundle.pipeline()
    pipeline.adopt(dataclasses.replace(bundle.head, reference=None))
    assert (pipeline.drift, pipeline.settling) == (None, None)
    assert not [event for event in pipeline.feed(stream(x)) if event.type == "drift"]
    with pytest.raises(ValueError, match="holds no reference"):
        pipeline.memory.add("door", pipeline.outputs(np.ones((4, 2, 16), np.float32)))


def test_a_head_may_be_replaced_while_it_runs(bundle: Bundle, tmp_path: Path) -> None:
    shifted = normal(20_000, seed=12) + np.float32(3)
    windows = shifted.reshape(2, -1, 16).transpose(1, 0, 2).copy()
    pipeline = bundle.pipeline()
    assert [event.type for event in pipeline.feed(stream(slams(3000, 1000, seed=7)))] == ["anomaly_started", "anomaly_ended"]
    pipeline.memory.add("door", pipeline.outputs(pipeline.evidence.x))
    strange = pipeline.feed(stream(shifted[:, :4000], 3000))
    assert strange[0].type == "anomaly_started"
    outputs, position = pipeline.outputs(windows), np.arange(len(windows)) * 16 * PERIOD
    fitted = fit_head("mahalanobis", outputs, position, bundle.smoother(16), 1, trusted=True)
    head = Head(fitted.scorer, fitted.calibrator, fitted.explainer, fitted.reference)
    policy = bundle.policy(head=head)
    assert pipeline.adopt(head, policy) == []
    after = pipeline.feed(stream(normal(20_000, seed=13) + np.float32(3), 7000))
    assert [event.type for event in after] == ["anomaly_ended"]
    assert pipeline.memory.names == ("door",)
    assert "anomaly_started" in {event.type for event in pipeline.feed(stream(normal(2000, seed=14), 27_000))}


def test_a_drift_that_is_on_is_over_when_the_head_is_replaced(bundle: Bundle) -> None:
    pipeline = bundle.pipeline()
    x = normal(40_000, seed=11)
    x[1] += np.linspace(0, 0.5, 40_000, dtype=np.float32)
    (begun, *_) = [event for event in pipeline.feed(stream(x)) if event.type == "drift"]
    (over,) = pipeline.adopt(bundle.head)
    assert (over.episode, over.until_ns) == (begun.episode, pytest.approx(40_000 * PERIOD, abs=16 * PERIOD))


def faulty(n: int = 4000, at: int = 2000, until: int = 3000) -> Float32:
    """Its sensor of the current is stuck, far from where it mostly is."""
    x = normal(n, seed=7)
    x[1, at:until] = 2.5
    return x


def told(events: Iterable[Event]) -> list[tuple[str, str]]:
    return [(event.type, event.reason) for event in events]


def run(bundle: Bundle, x: Float32, *, health: bool = True) -> list[Event]:
    """And so much more that everything is told."""
    return bundle.pipeline(health=health).feed(stream(np.concatenate([x, normal(8000, seed=11)], axis=1)))


def test_a_sensor_that_is_stuck_is_blamed_in_place_of_the_machine(bundle: Bundle) -> None:
    """With its control: without health the machine is."""
    begun, over = run(bundle, faulty())
    assert told([begun, over]) == [("sensor_fault", "stuck")] * 2
    assert begun.episode == over.episode
    assert begun.channels[0].channel == "current"
    assert (begun.since_ns // PERIOD, begun.until_ns) == (2000, None)
    assert over.until_ns == 2999 * PERIOD
    assert told(run(bundle, faulty(), health=False)) == [("anomaly_started", ""), ("anomaly_ended", "")]
    verdicts = bundle.pipeline().judge(stream(faulty()))
    assert verdicts.excused.any()
    assert not verdicts.alarm.any()
    assert (verdicts.p_value[verdicts.excused] < 0.01).all(), "what is excused stays visible"


def test_faults_that_last_are_named_for_health(bundle: Bundle) -> None:
    pipeline = bundle.pipeline()
    pipeline.feed(stream(faulty()[:, :2900]))
    assert pipeline.faults == ("current: stuck",)
    assert bundle.pipeline(health=False).faults == ()


def test_an_anomaly_of_another_channel_is_raised_beside_a_fault(bundle: Bundle) -> None:
    x = faulty(until=4000)
    x[1, 2000:] = 0.3  # stuck where it often is: little blame
    x[0, 2500:] += 8
    events = run(bundle, x)
    assert [event.type for event in events if event.until_ns is None] == ["sensor_fault", "anomaly_started"]
    assert events[1].channels[0].channel == "vibration"


def test_an_anomaly_that_was_there_before_the_fault_was_known_stays_one_episode(bundle: Bundle) -> None:
    x = faulty()
    x[1, 1800:2000] += 6  # it wanders off before it sticks
    events = [event for event in run(bundle, x) if event.type.startswith("anomaly")]
    assert [event.type for event in events] == ["anomaly_started", "anomaly_ended"]


def test_faults_gaps_and_anomalies_keep_their_order_and_numbers_however_samples_are_split(bundle: Bundle) -> None:
    x = np.concatenate([faulty(), with_fault(), normal(8000, seed=4)], axis=1)
    x[0, 900:950] = np.nan
    x[0, 2500:2950] = np.nan
    x[0, 6500:6900] = np.nan
    whole = feed(bundle, stream(x))
    assert {event.type for event in whole} == {"gap", "sensor_fault", "anomaly_started", "anomaly_ended"}
    rng = np.random.default_rng(0)
    for _ in range(5):
        assert feed(bundle, stream(x), sorted(rng.integers(0, x.shape[1], 40).tolist())) == whole
    assert feed(bundle, stream(x), range(1, x.shape[1])) == whole
