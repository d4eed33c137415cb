from dataclasses import dataclass

import numpy as np
import pytest

from edge.scoring.backends import Outputs
from edge.scoring.explain import Explainer, movement
from edge.signal import Float32

CHANNELS = 5


@dataclass
class Seen:
    outputs: Outputs
    movement: Float32


def seen(n: int, seed: int = 0) -> Seen:
    rng = np.random.default_rng(seed)
    arrays = rng.normal(size=(n, 8)), rng.gamma(2.0, size=(n, CHANNELS)), rng.normal(size=(n, CHANNELS))
    return Seen(Outputs(*(array.astype(np.float32) for array in arrays)), rng.normal(size=(n, CHANNELS)).astype(np.float32))


def blamed(found: Seen, normal: Seen | None = None) -> Float32:
    normal = normal or seen(500)
    return Explainer.fit(normal.outputs, normal.movement).shares(found.outputs, found.movement)


@pytest.mark.parametrize("channel", range(CHANNELS))
@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("residual", lambda v: v * 1e6),
        ("residual", lambda v: v * 1e-6),  # a sensor that is stuck is easier to reconstruct than one that lives
        ("level", lambda v: v + 8),
        ("level", lambda v: v - 8),
        ("movement", lambda v: v + 8),
        ("movement", lambda v: v - 8),
    ],
)
def test_the_channel_that_changed_is_blamed_whatever_changed(channel: int, what: str, change: object) -> None:
    found = seen(200, seed=1)
    array = found.movement if what == "movement" else getattr(found.outputs, what)
    before = blamed(found)[:, channel].mean()
    array[:, channel] = change(array[:, channel])  # type: ignore[operator]
    shares = blamed(found)
    assert (shares.argmax(axis=1) == channel).mean() > 0.95
    assert shares[:, channel].mean() > before + 0.2, "the control: nothing but the change put the blame there"
    assert shares.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_a_spoiled_reconstruction_does_not_outweigh_the_channel_that_moved() -> None:
    found = seen(200, seed=1)
    found.movement[:, 2] += 4
    found.outputs.residual[:, [2, 4]] *= 30  # both go wrong: one was reconstructed from the other
    found.outputs.residual[:, 4] *= 3
    assert (blamed(found).argmax(axis=1) == 2).mean() > 0.9


def test_nothing_out_of_the_ordinary_is_nobodys_fault() -> None:
    ordinary = seen(500)
    middle = Outputs(*(np.median(array, axis=0, keepdims=True) for array in ordinary.outputs.arrays().values()))
    assert blamed(Seen(middle, np.median(ordinary.movement, axis=0, keepdims=True)))[0] == pytest.approx(1 / CHANNELS)


def test_a_channel_that_was_always_the_same_takes_not_all_of_the_blame_for_a_hair() -> None:
    still = seen(500)
    still.outputs.level[:, 0] = 0.0
    found = seen(1, seed=2)
    found.outputs.level[:, 0], found.outputs.level[:, 3] = 0.005, 9.0
    assert blamed(found, still)[0].argmax() == 3


def test_values_that_are_not_finite_still_add_up() -> None:
    found = seen(3)
    found.outputs.residual[0, 1], found.outputs.residual[1, 2], found.movement[2, 3] = np.inf, np.nan, np.inf
    shares = blamed(found)
    assert np.isfinite(shares).all()
    assert shares[0].argmax() == 1
    assert shares[2].argmax() == 3


def test_arrays_of_an_earlier_version_are_refused_when_they_are_read() -> None:
    normal = seen(50)
    arrays = Explainer.fit(normal.outputs, normal.movement).arrays()
    Explainer(**arrays)
    with pytest.raises(ValueError, match="quantize again"):
        Explainer(**{name: array[:2] for name, array in arrays.items()})


def test_movement_is_the_logarithm_of_the_standard_deviation() -> None:
    x = np.random.default_rng(0).normal(size=(20, 3, 64)).astype(np.float32) * np.float32([[1e-3], [1], [1e3]])
    assert movement(x) == pytest.approx(np.log(x.std(axis=2, dtype=np.float64)), abs=1e-4)
    # A small signal on a large offset, as turns a minute are.
    assert movement(x[:, 1:2] + 1440) == pytest.approx(movement(x[:, 1:2]), abs=1e-2)
    assert np.isfinite(movement(np.full((1, 1, 8), 7.3, np.float32))).all(), "what stands still has one too"
    assert not np.isnan(movement(np.full((1, 1, 8), 1e30, np.float32))).any()
