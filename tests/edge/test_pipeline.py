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
    with pytest.raises(ConfigError, match="can never be reached"):
        bundle.pipeline(AlarmConfig(p_value=1e-6))
