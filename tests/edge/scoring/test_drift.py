import itertools
import pickle

import numpy as np
import pytest
from normal_outputs import CHANNELS, HOP_NS, reference, running, scores

from edge.event import Event
from edge.scoring import drift as module
from edge.scoring.backends import Outputs
from edge.scoring.drift import Drift, Settling
from edge.scoring.reference import FEWEST, Reference
from edge.signal import Float32

BLOCK = 100
"""Windows: an eighth of the reference."""


def drifting() -> Drift:
    return Drift(reference(), CHANNELS, HOP_NS, HOP_NS, "m", itertools.count(1).__next__)


def feed(drift: Drift, outputs: Outputs, start: int = 0, ordinary: bool = True) -> list[Event]:
    events: list[Event] = []
    at = 0
    while at < len(outputs):
        part = outputs.part(slice(at, at + drift.room))
        end_ns = (start + at + np.arange(len(part))) * HOP_NS
        events += drift.update(end_ns, part, scores(part), np.full(len(part), ordinary))
        at += len(part)
    return events


def stationary(windows: int) -> int:
    drift = drifting()
    return sum(len(feed(drift, running(20_000, seed), 20_000 * seed)) for seed in range(windows // 20_000))


def test_normal_running_does_not_drift() -> None:
    assert stationary(80_000) == 0


@pytest.mark.soak
def test_normal_running_does_not_drift_for_a_year_of_windows_a_second() -> None:
    assert stationary(31_540_000) == 0


def test_without_its_threshold_normal_running_would_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    monkeypatch.setattr(module, "THRESHOLD", 0.1)
    monkeypatch.setattr("edge.scoring.reference.ALLOWED", 0.0)
    assert stationary(80_000) > 0


def ramp(n: int, per_block: float) -> Float32:
    return (np.arange(n) / BLOCK * per_block).astype(np.float32)


@pytest.mark.parametrize("channel", [0, 1])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_channel_that_wanders_off_is_named_and_so_is_its_return(channel: int, sign: int) -> None:
    drift = drifting()
    feed(drift, running(1000, 1))
    (event,) = feed(drift, running(3000, 2, sign * ramp(3000, 0.1), channel), 1000)
    assert event.type == "drift"
    assert event.until_ns is None
    assert event.reason.startswith(f"level of {CHANNELS[channel]}: {'+' if sign > 0 else '-'}")
    assert event.channels[0].channel == CHANNELS[channel]
    assert 1000 * HOP_NS <= event.since_ns < event.time_ns <= (1000 + 15 * BLOCK) * HOP_NS
    assert drift.reason == event.reason
    (over,) = feed(drift, running(3000, 3), 4000)
    assert (over.episode, over.since_ns, over.reason) == (event.episode, event.since_ns, event.reason)
    assert over.until_ns == over.time_ns
    assert not drift.active


def test_the_embedding_alone_may_drift() -> None:
    drift, moving = drifting(), running(3000, 2)
    moving.embedding[:] += ramp(3000, 0.1)[:, None]
    (event,) = feed(drift, moving)
    assert event.reason.startswith("embedding: +")
    assert event.channels == ()


def test_some_wild_windows_are_no_drift() -> None:
    drift, wild = drifting(), running(20_000, 4)
    some = np.random.default_rng(0).random(20_000) < 0.05
    wild.level[some] = 1e6
    wild.embedding[some] = np.nan
    assert feed(drift, wild) == []


def test_what_is_no_ordinary_running_does_not_count() -> None:
    moved = running(3000, 2, 2.0)
    assert feed(drifting(), moved, ordinary=False) == []
    assert feed(drifting(), moved), "the control: as ordinary running it drifts"


def test_a_machine_that_goes_to_and_fro_within_the_time_of_the_reference_does_not_drift() -> None:
    def swinging(n: int, seed: int) -> Outputs:
        return running(n, seed, (2 * np.sin(np.arange(n) / 300 * 2 * np.pi)).astype(np.float32))

    normal = swinging(800, 100)
    fitted = Reference.fit(normal, scores(normal), np.arange(800) * HOP_NS, HOP_NS)
    drift = Drift(fitted, CHANNELS, HOP_NS, HOP_NS, "m", itertools.count(1).__next__)
    assert feed(drift, swinging(50_000, 1)) == []
    assert feed(drifting(), swinging(50_000, 1)), "the control: for a machine that never did that, it does"


@pytest.mark.parametrize(("cycle", "blocks"), [(50, 1 / 16), (8000, 1 / 8)])
def test_a_block_of_a_long_reference_is_no_longer_than_what_is_done_in_turn(cycle: int, blocks: float) -> None:
    n = 32_000
    normal = running(n, 1, (2 * np.sin(np.arange(n) / cycle * 2 * np.pi)).astype(np.float32))
    fitted = Reference.fit(normal, scores(normal), np.arange(n) * HOP_NS, HOP_NS)
    assert float(fitted.block[0]) == pytest.approx(n * blocks, rel=0.01)


def test_a_reference_that_drifted_does_not_excuse_that_it_drifts_on() -> None:
    x = running(2400, 1, ramp(2400, 0.1))
    normal, later = x.part(slice(0, 800)), x.part(slice(800, None))
    fitted = Reference.fit(normal, scores(normal), np.arange(800) * HOP_NS, HOP_NS)
    drift = Drift(fitted, CHANNELS, HOP_NS, HOP_NS, "m", itertools.count(1).__next__)
    assert [event.type for event in feed(drift, later)] == ["drift"]


def test_a_clock_that_is_set_back_makes_no_drift_that_began_later() -> None:
    drift = drifting()
    moving = running(6000, 2, ramp(6000, 0.1))
    assert feed(drift, moving.part(slice(0, 450)), 10**6) == []
    drift.clock_set_back()
    event = feed(drift, moving.part(slice(450, None)), 0)[0]
    assert 0 <= event.since_ns <= event.time_ns


def test_memory_does_not_grow_with_the_rate_or_with_time() -> None:
    fast = Drift(reference(), CHANNELS, 1000.0, 1, "m", itertools.count(1).__next__)  # a thousand windows to a window length
    feed(fast, running(1000, 1))
    before = len(pickle.dumps(fast.__dict__ | {"_new_episode": None}))
    for seed in range(20):
        feed(fast, running(10_000, seed))
    assert len(pickle.dumps(fast.__dict__ | {"_new_episode": None})) < before + 100


def test_too_few_windows_are_no_reference() -> None:
    few = running(FEWEST - 1)
    with pytest.raises(ValueError, match="at least"):
        Reference.fit(few, scores(few), np.arange(len(few)), 1)
    some = running(FEWEST)
    fitted = Reference.fit(some, scores(some), np.arange(len(some)), 1)
    again = Reference.from_arrays(fitted.arrays())
    assert all(np.array_equal(a, again.arrays()[name]) for name, a in fitted.arrays().items())
    assert all(a.dtype == np.float32 and np.isfinite(a).all() for a in fitted.arrays().values())
    with pytest.raises(KeyError):
        Reference.from_arrays({name: a for name, a in fitted.arrays().items() if name != "block"})
    with pytest.raises(ValueError, match="allowance"):
        Reference.from_arrays(fitted.arrays() | {"allowance": np.zeros(3, np.float32)})


SETTLE_S = 800.0


def started(at: int, episode: int = 1) -> Event:
    return Event(type="anomaly_started", episode=episode, time_ns=at * HOP_NS, since_ns=(at - 1) * HOP_NS)


class Watched:
    """A settling, and the alarms that it hears of."""

    def __init__(self) -> None:
        self.settling = Settling(reference(), CHANNELS, HOP_NS, HOP_NS, "m", SETTLE_S)
        self.at = self.episode = 0

    def feed(self, outputs: Outputs, *, active: bool, new: bool = False) -> list[Event]:
        events: list[Event] = []
        self.episode += new
        alerts = [started(self.at, self.episode)] if new else []
        at = 0
        while at < len(outputs):
            part = outputs.part(slice(at, at + self.settling.room))
            end_ns = (self.at + at + np.arange(len(part))) * HOP_NS
            given = [event for event in alerts if end_ns[0] <= event.time_ns <= end_ns[-1]]
            events += self.settling.update(end_ns, part, scores(part), np.full(len(part), active), given)[0]
            at += len(part)
        self.at += len(outputs)
        return events


def test_a_shift_that_stays_is_asked_about_once_when_it_has_settled() -> None:
    watched = Watched()
    assert watched.feed(running(500), active=False) == []
    (event,) = watched.feed(running(10_000, 1, 6.0), active=True, new=True)
    assert event.type == "new_normal"
    assert event.episode == 1
    assert event.since_ns == 499 * HOP_NS
    assert SETTLE_S - 1 <= event.time_ns / HOP_NS - 500 <= 2 * SETTLE_S
    assert event.reason.startswith("level of current: +6")
    assert event.channels[0].channel == "current"


@pytest.mark.parametrize("per_block", [0.5, -2.0, 10.0])
def test_what_still_evolves_is_not_asked_about_before_it_has_stopped(per_block: float) -> None:
    watched, wander = Watched(), 6 + ramp(4000, per_block)
    assert watched.feed(running(4000, 1, wander), active=True, new=True) == []
    assert len(watched.feed(running(4000, 2, float(wander[-1])), active=True)) == 1


def test_what_grows_wilder_has_not_settled() -> None:
    watched, wild = Watched(), running(1600, 1, 6.0)
    wild.level[:, 1] += np.random.default_rng(5).normal(size=1600) * np.exp(np.arange(1600) / 400)
    assert watched.feed(wild, active=True, new=True) == []


def test_an_alarm_that_goes_on_and_off_asks_once_and_another_state_is_another_question() -> None:
    watched = Watched()
    found: list[Event] = []
    for i in range(40):
        found += watched.feed(running(60, 2 * i, 3.0), active=True, new=True)
        found += watched.feed(running(40, 2 * i + 1, 3.0), active=False)
    assert len(found) == 1
    assert watched.feed(running(2000), active=False) == []
    assert watched.feed(running(3000, 1, 3.0), active=True, new=True) == [], "the same state was asked about before"
    assert watched.feed(running(2000), active=False) == []
    assert len(watched.feed(running(3000, 1, 9.0), active=True, new=True)) == 1


def test_an_episode_that_is_over_early_is_not_asked_about() -> None:
    watched = Watched()
    assert watched.feed(running(700, 1, 6.0), active=True, new=True) == []
    assert watched.feed(running(5000, 2), active=False) == []
