import numpy as np
import pytest

from edge.delivery import topics
from edge.event import Event, Share
from edge.scoring.backends import Outputs
from edge.scoring.explain import MOST_BYTES, Explainer, excerpt
from edge.signal import Float32

CHANNELS = 5


def seen(n: int, seed: int = 0) -> Outputs:
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=(n, 8)), rng.gamma(2.0, size=(n, CHANNELS)), rng.normal(size=(n, CHANNELS))]
    arrays += [2 * rng.normal(size=(n, 3, CHANNELS)), np.zeros((n, CHANNELS, 4)), np.zeros((n, 4, 4))]
    return Outputs(*(array.astype(np.float32) for array in arrays))


def blamed(found: Outputs, normal: Outputs | None = None) -> Float32:
    return Explainer.fit(normal or seen(500)).shares(found)


@pytest.mark.parametrize("channel", range(CHANNELS))
@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("residual", lambda v: v * 1e6),
        ("residual", lambda v: v * 1e-6),  # a sensor that is stuck is easier to reconstruct than one that lives
        ("level", lambda v: v + 8),
        ("level", lambda v: v - 8),
        ("movement", lambda v: v + 16),
        ("movement", lambda v: v - 16),
    ],
)
def test_the_channel_that_changed_is_blamed_whatever_changed(channel: int, what: str, change: object) -> None:
    found = seen(200, seed=1)
    array = found.spectrum[:, 0] if what == "movement" else getattr(found, what)
    before = blamed(found)[:, channel].mean()
    array[:, channel] = change(array[:, channel])  # type: ignore[operator]
    shares = blamed(found)
    assert (shares.argmax(axis=1) == channel).mean() > 0.95
    assert shares[:, channel].mean() > before + 0.2, "the control: nothing but the change put the blame there"
    assert shares.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_a_spoiled_reconstruction_does_not_outweigh_the_channel_that_moved() -> None:
    found = seen(200, seed=1)
    found.spectrum[:, 0, 2] += 8
    found.residual[:, [2, 4]] *= 30  # both go wrong: one was reconstructed from the other
    found.residual[:, 4] *= 3
    assert (blamed(found).argmax(axis=1) == 2).mean() > 0.9


def test_nothing_out_of_the_ordinary_is_nobodys_fault() -> None:
    ordinary = seen(500)
    middle = Outputs(*(np.median(array, axis=0, keepdims=True) for array in ordinary.arrays().values()))
    assert blamed(middle)[0] == pytest.approx(1 / CHANNELS)


def test_a_channel_that_was_always_the_same_takes_not_all_of_the_blame_for_a_hair() -> None:
    still = seen(500)
    still.level[:, 0] = 0.0
    found = seen(1, seed=2)
    found.level[:, 0], found.level[:, 3] = 0.005, 9.0
    assert blamed(found, still)[0].argmax() == 3


def test_values_that_are_not_finite_still_add_up() -> None:
    found = seen(3)
    found.residual[0, 1], found.residual[1, 2], found.spectrum[2, 0, 3] = np.inf, np.nan, np.inf
    shares = blamed(found)
    assert np.isfinite(shares).all()
    assert shares[0].argmax() == 1
    assert shares[2].argmax() == 3


def test_arrays_of_an_earlier_version_are_refused_when_they_are_read() -> None:
    normal = seen(50)
    arrays = Explainer.fit(normal).arrays()
    Explainer(**arrays)
    with pytest.raises(ValueError, match="quantize again"):
        Explainer(**{name: array[:2] for name, array in arrays.items()})


def shares(channels: tuple[str, ...]) -> tuple[Share, ...]:
    return tuple(Share(channel, 0.1) for channel in channels)


@pytest.mark.parametrize("at", [0, 500, 999])
def test_a_spike_of_a_single_sample_stays_in_the_excerpt(at: int) -> None:
    x = np.random.default_rng(1).normal(size=(2, 1000)).astype(np.float32)
    x[1, at] = -30.0
    found = excerpt(x, 5, 10.0, ("a", "b"), shares(("b", "a")))
    assert found is not None
    assert min(found.channels["b"]) == -30.0
    assert (x[1].reshape(-1, 8).mean(axis=1) > -10).all(), "the control: a mean would have hidden it"
    assert list(found.channels) == ["b", "a"]
    assert (found.start_ns, found.step_ns) == (5, 160)
    assert len(found.channels["b"]) == 63


@pytest.mark.parametrize("count", [1, 3, 38, 60, 200])
def test_an_event_with_its_excerpt_stays_below_its_size(count: int) -> None:
    names = tuple(f"channel_with_a_name_{i:03}" for i in range(count))
    x = (-1.23456789e-5 * np.random.default_rng(1).normal(size=(count, 4096))).astype(np.float32)
    found = excerpt(x, 10**18, 10.0, names, shares(names))
    if count > 60:
        assert found is None, "no room at all"
        return
    event = Event(
        type="anomaly_started",
        episode=123456,
        time_ns=10**18,
        since_ns=10**18,
        score=1.2345678901234e-5,
        p_value=1.2345678901234e-5,
        threshold=1.2345678901234e-5,
        channels=shares(names),
        model="0" * 64,
        excerpt=found,
    )
    payload = topics.event_payload(
        event, stream="s" * 63, episode_id="e" * 160, record="r" * 120, offset_ns=-(10**17), historical=True
    )
    size = len(topics.encode(payload))
    assert size <= MOST_BYTES
    assert count > 3 or size > 1500, "the room is used"
