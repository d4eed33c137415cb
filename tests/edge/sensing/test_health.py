"""The sensor is blamed for what is the sensor's, and for nothing else, however its samples come."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.sensing.health import Fault, SensorHealth, Usual
from edge.sensing.simulate import RATE_HZ, simulate
from edge.signal import Float32, Int64, Samples

RATE, WINDOW = 100.0, 16
PERIOD = 10_000_000
MINUTE = 6000


def noise(n: int, seed: int = 0, channels: int = 2) -> Float32:
    return np.random.default_rng(seed).normal(size=(channels, n)).astype(np.float32)


def windows(x: Float32, length: int = WINDOW) -> Float32:
    n = x.shape[1] // length
    return x[:, : n * length].reshape(len(x), n, length).transpose(1, 0, 2).copy()


USUAL = Usual.fit(windows(noise(40_000)))


def stamps(n: int, period: float = PERIOD) -> Int64:
    return np.rint(np.arange(n) * period).astype(np.int64)


def made(usual: Usual | None = USUAL, channels: int = 2, rate_hz: float = RATE, window: int = WINDOW) -> SensorHealth:
    return SensorHealth(usual, channels, rate_hz, window)


def feed(health: SensorHealth, x: Float32, time_ns: Int64 | None = None, cuts: tuple[int, ...] = ()) -> list[Fault]:
    time_ns = stamps(x.shape[1]) if time_ns is None else time_ns
    edges = [0, *sorted(min(cut, x.shape[1]) for cut in cuts), x.shape[1]]
    return [fault for a, b in pairwise(edges) for fault in health.feed(Samples(time_ns[a:b], x[:, a:b]))]


def kinds(faults: list[Fault]) -> list[tuple[str, int | None, bool]]:
    return [(fault.kind, fault.channel, fault.until_ns is not None) for fault in faults]


def broken(kind: str, x: Float32, part: slice, channel: int = 1) -> Float32:
    x = x.copy()
    if kind == "stuck":
        x[channel, part] = x[channel, part.start]
    elif kind == "dropout":
        x[channel, part] = np.nan
    elif kind == "dead":
        x[channel, part] = 30.0
    elif kind == "spikes":
        x[channel, part][5::50] += 60
    elif kind == "range":
        x[channel, part][::20] = 1e6
    return x


@pytest.mark.parametrize(
    ("kind", "told"),
    [("stuck", "stuck"), ("dropout", "dropout"), ("dead", "dropout"), ("spikes", "spikes"), ("range", "range")],
)
def test_a_fault_is_told_when_it_begins_and_when_it_is_over(kind: str, told: str) -> None:
    x = broken(kind, noise(4 * MINUTE, seed=1), slice(1000, 3000))
    begun, over = feed(made(), x)
    assert kinds([begun, over]) == [(told, 1, False), (told, 1, True)]
    assert begun.since_ns == over.since_ns
    assert 1000 <= begun.since_ns // PERIOD <= 1010
    assert over.until_ns is not None
    assert 2940 <= over.until_ns // PERIOD < 3000
    assert begun.time_ns // PERIOD < 1000 + (330 if kind == "dropout" else 150)
    assert over.time_ns > over.until_ns


def test_what_comes_and_goes_is_one_fault_of_each_channel() -> None:
    x = noise(5 * MINUTE, seed=1)
    for at in range(1000, 9000, 500):
        x = broken("stuck", broken("stuck", x, slice(at, at + 100), 0), slice(at + 50, at + 150), 1)
    health = made()
    found = feed(health, x)
    assert sorted(kinds(found)) == sorted([("stuck", c, over) for c in (0, 1) for over in (False, True)])
    assert health.open == ()
    health = made()
    feed(health, x[:, :5000])
    assert health.open == (("stuck", 0), ("stuck", 1))


def test_noise_is_no_fault_and_neither_is_one_spike_a_short_hole_or_a_sensor_that_sleeps() -> None:
    x = noise(10 * MINUTE, seed=2)
    x[0, 4000] += 60
    x[1, 9000:9200] = np.nan
    time_ns = stamps(x.shape[1]) + np.repeat(np.arange(30), x.shape[1] // 30) * 10**10
    assert feed(made(), x, time_ns) == []


@pytest.mark.parametrize(
    "x",
    [
        np.round(noise(60_000, 3)),  # coarse steps: half of the neighbours are equal
        np.round(noise(60_000, 3) * 0.2),  # most are
        np.repeat(noise(6_000, 3), 10, axis=1),  # sampled more often than it is measured
        np.where(noise(60_000, 3).cumsum(axis=1) % 50 < 10, noise(60_000, 4), np.float32(0)),  # often off
        np.zeros((2, 60_000), np.float32),
        np.round(np.sin(np.arange(60_000) / 300), 1)[None].repeat(2, axis=0).astype(np.float32),  # slow, in coarse steps
        np.random.default_rng(0).standard_t(2.5, (2, 60_000)).astype(np.float32),  # heavy tails
    ],
    ids=["coarse", "very coarse", "repeated", "often off", "constant", "slow", "heavy tails"],
)
def test_what_a_channel_always_did_is_no_fault(x: Float32) -> None:
    usual = Usual.fit(windows(x[:, :30_000], 64))
    assert feed(made(usual, window=64), x[:, 30_000:]) == []


def test_quantised_sensors_of_the_simulated_machine_are_sound() -> None:
    recording = simulate(240, seed=3)
    x = np.round(recording.x / np.array([[0.1], [0.1], [0.05], [0.5], [5.0]])).astype(np.float32)
    usual = Usual.fit(windows(x[:, :48_000], 256))
    assert (usual.run > 0).any()
    assert feed(made(usual, 5, RATE_HZ, 256), x[:, 48_000:], recording.time_ns[48_000:]) == []


def test_one_window_in_a_hundred_spoils_nothing() -> None:
    good = windows(noise(40_000))
    for spoil in (1e6, np.nan):
        x = good.copy()
        bad = x[:: len(x) // 24][:24]
        if np.isnan(spoil):
            bad[:] = bad[:, :, :1]
        else:
            bad[:, 1, 7] = spoil
        usual = Usual.fit(x)
        for kind in ("dead", "spikes", "range", "stuck"):
            found = feed(made(usual), broken(kind, noise(MINUTE, seed=1), slice(1000, 3000)))
            assert [fault.channel for fault in found] == [1], (spoil, kind)


def test_a_rate_that_is_not_the_models_is_told_within_a_minute_and_excuses_at_once() -> None:
    for rate_hz, expected in ((RATE * 1.08, "rate"), (RATE * 0.92, "rate"), (RATE * 1.03, None), (RATE / 2, "rate")):
        time_ns = np.concatenate([stamps(1000), 1000 * PERIOD + stamps(2 * MINUTE, 1e9 / rate_hz)])
        health = made()
        found = feed(health, noise(len(time_ns), seed=5)[:, :1200], time_ns[:1200])
        shares = np.array([[0.5, 0.5]], np.float32)
        assert health.excuses(np.array([1100]), shares).tolist() == [expected is not None]
        assert health.excuses(np.array([1000]), shares).tolist() == [False]
        found += feed(health, noise(len(time_ns), seed=6)[:, 1200:], time_ns[1200:])
        assert kinds(found) == ([("rate", None, False)] if expected else [])
        if expected:
            assert (found[0].time_ns - 1000 * PERIOD) / 1e9 < 125  # a minute of samples, of which half as many may come


def skewed(skew: float, jitter_s: float = 0.1) -> tuple[SensorHealth, list[Fault]]:
    """Six minutes, by the host, of a sensor whose clock runs so much fast and whose samples come late by chance."""
    rng = np.random.default_rng(0)
    health, found = made(), []
    n = 6 * MINUTE
    x, own = noise(n, seed=5), stamps(n)
    for at in range(0, n, 20):
        arrived = int(own[at + 19] / (1 + skew) + rng.uniform(0, jitter_s) * 1e9)
        found += health.feed(Samples(own[at : at + 20], x[:, at : at + 20], arrived_ns=arrived))
    return health, found


def test_a_clock_that_runs_off_is_told_and_excuses_nothing() -> None:
    for skew in (0.01, -0.01, 0.03):
        health, found = skewed(skew)
        assert kinds(found) == [("clock", None, False)]
        assert not health.excuses(np.array([5 * MINUTE]), np.array([[0.5, 0.5]], np.float32)).any()
    assert skewed(0.002)[1] == []
    assert kinds(skewed(0.1)[1]) == [("clock", None, False)], "a far one too: it must not excuse all that comes"


def test_a_sensor_that_starts_again_is_no_fault_and_one_that_does_so_all_the_time_is() -> None:
    def restarts(count: int) -> list[Fault]:
        time_ns = stamps(MINUTE)
        for i in range(count):
            time_ns[1000 + 300 * i :] -= 50 * PERIOD
        return feed(made(), noise(MINUTE, seed=5), time_ns)

    assert restarts(1) == restarts(2) == []
    assert kinds(restarts(4)) == [("clock", None, False)]


def test_only_windows_near_what_was_wrong_are_excused_and_only_where_it_has_the_blame() -> None:
    health = made()
    feed(health, broken("stuck", noise(1000, seed=1), slice(400, 500)))
    position = np.arange(16, 1000, dtype=np.int64)
    guilty = health.excuses(position, np.tile(np.float32([0.4, 0.6]), (len(position), 1)))
    assert not guilty[position < 416].any()
    assert guilty[(position >= 424) & (position < 500 + WINDOW)].all()
    assert not guilty[position > 500 + 2 * WINDOW].any()
    assert not health.excuses(position, np.tile(np.float32([0.6, 0.4]), (len(position), 1))).any()


def test_slow_samples_are_not_judged_for_spikes() -> None:
    x = broken("spikes", noise(3000, seed=1), slice(500, 2500))
    assert feed(made(rate_hz=1.0), x, stamps(3000, 1e9)) == []


def test_without_usual_only_what_is_missing_and_when_it_came_is_judged() -> None:
    for kind in ("stuck", "dead", "spikes", "range"):
        assert feed(made(None), broken(kind, noise(MINUTE, seed=1), slice(1000, 3000))) == []
    assert kinds(feed(made(None), broken("dropout", noise(MINUTE, seed=1), slice(1000, 3000)))) == [("dropout", 1, False)]


def test_arrays_come_back_and_nonsense_is_refused() -> None:
    again = Usual.from_arrays(USUAL.arrays())
    for name, array in USUAL.arrays().items():
        np.testing.assert_array_equal(array, again.arrays()[name])
        assert np.isfinite(array).all()
    with pytest.raises(ValueError, match="has 3"):
        SensorHealth(USUAL, 3, RATE, WINDOW)
    with pytest.raises(ValueError, match="one number for each channel"):
        Usual.from_arrays(USUAL.arrays() | {"low": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="do not show"):
        Usual.fit(np.empty((0, 2, 16), np.float32))


@st.composite
def streams(draw: Any) -> tuple[Float32, Int64]:
    """Noise of two minutes, with faults of all kinds anywhere in it."""
    n = 2 * MINUTE
    x, time_ns = noise(n, draw(st.integers(0, 5))), stamps(n)
    for _ in range(draw(st.integers(0, 4))):
        at, length = draw(st.integers(0, n - 50)), draw(st.integers(20, 3000))
        kind = draw(st.sampled_from(["stuck", "dropout", "dead", "spikes", "range", "back", "hole", "slow"]))
        if kind == "back":
            time_ns[at:] -= 100 * PERIOD
        elif kind == "hole":
            time_ns[at:] += 100 * PERIOD
        elif kind == "slow":
            time_ns[at:] += np.minimum(np.arange(n - at), length) * PERIOD // 10
        else:
            x = broken(kind, x, slice(at, at + length), draw(st.integers(0, 1)))
    return x, time_ns


@settings(max_examples=40, deadline=None)
@given(streams(), st.lists(st.integers(0, 2 * MINUTE), max_size=30), st.sets(st.integers(16, 2 * MINUTE), max_size=8))
def test_how_samples_are_split_and_who_asks_when_never_matters(
    stream: tuple[Float32, Int64], cuts: list[int], asked: set[int]
) -> None:
    x, time_ns = stream
    shares = np.tile(np.float32([0.3, 0.7]), (len(asked), 1))
    whole, position = made(), np.array(sorted(asked), np.int64)
    expected = feed(whole, x, time_ns)
    excused = whole.excuses(position, shares).tolist() if len(position) else []
    parts, found, said = made(), [], []
    edges = sorted({0, x.shape[1], *cuts, *asked})
    for a, b in pairwise(edges):
        found += parts.feed(Samples(time_ns[a:b], x[:, a:b]))
        if b in asked:
            said += parts.excuses(np.array([b]), shares[:1]).tolist()
    assert found == expected
    assert said == excused
