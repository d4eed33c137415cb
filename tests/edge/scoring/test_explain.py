import numpy as np
import pytest

from edge.scoring.backends import Outputs
from edge.scoring.explain import Explainer
from edge.signal import Float32

CHANNELS = 5


def outputs(n: int, seed: int = 0) -> Outputs:
    rng = np.random.default_rng(seed)
    arrays = rng.normal(size=(n, 8)), rng.gamma(2.0, size=(n, CHANNELS)), rng.normal(size=(n, CHANNELS))
    return Outputs(*(array.astype(np.float32) for array in arrays))


def blamed(found: Outputs) -> Float32:
    return Explainer.fit(outputs(500)).shares(found)


@pytest.mark.parametrize("channel", range(CHANNELS))
@pytest.mark.parametrize(
    ("what", "change"), [("residual", lambda v: v * 100), ("level", lambda v: v + 8), ("level", lambda v: v - 8)]
)
def test_the_channel_that_changed_is_blamed_whatever_changed(channel: int, what: str, change: object) -> None:
    found = outputs(200, seed=1)
    array = getattr(found, what)
    array[:, channel] = change(array[:, channel])  # type: ignore[operator]
    shares = blamed(found)
    assert (shares.argmax(axis=1) == channel).mean() > 0.95
    assert shares.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_nothing_out_of_the_ordinary_is_nobodys_fault() -> None:
    ordinary = outputs(500)
    middle = Outputs(*(np.median(array, axis=0, keepdims=True) for array in ordinary.arrays().values()))
    assert blamed(middle)[0] == pytest.approx(1 / CHANNELS)


def test_a_channel_that_was_always_the_same_takes_not_all_of_the_blame_for_a_hair() -> None:
    still = outputs(500)
    still.level[:, 0] = 0.0
    found = outputs(1, seed=2)
    found.level[:, 0], found.level[:, 3] = 0.005, 9.0
    assert Explainer.fit(still).shares(found)[0].argmax() == 3


def test_values_that_are_not_finite_still_add_up() -> None:
    found = outputs(2)
    found.residual[0, 1], found.residual[1, 2] = np.inf, np.nan
    shares = blamed(found)
    assert np.isfinite(shares).all()
    assert shares[0].argmax() == 1
