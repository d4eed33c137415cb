"""The simple methods find what is plain to see, and say nothing about the order of what is not."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from edge.sensing.recordings import Recording
from trainer import baselines
from trainer.baselines import centred, kmeans, mean_abs, pca_residual, standardised
from trainer.metrics import auroc


def recording(rows: int, seed: int, strange: bool = False) -> Recording:
    rng = np.random.default_rng(seed)
    i = np.arange(rows)
    x = np.stack([100 + 5 * np.sin(i * 0.3), 0.01 * np.cos(i * 0.3)]) + rng.normal(size=(2, rows)) * [[1], [0.002]]
    label = (i >= rows // 2).astype(np.int8)
    if strange:
        x[:, label > 0] += rng.normal(size=(2, int(label.sum()))) * [[30], [0.06]]
    return Recording("r", ("a", "b"), i * 10**9, x.astype(np.float32), label)


METHODS = (mean_abs, partial(pca_residual, length=16), partial(kmeans, length=16), partial(kmeans, length=16, stride=4))


@pytest.mark.parametrize("method", METHODS)
def test_finds_what_is_plain_to_see(method: Callable[..., np.ndarray]) -> None:
    found = {}
    for strange in (True, False):
        test = recording(1200, 1, strange)
        score = method(*standardised(recording(1200, 0), test))
        assert score.shape == (1200,)
        assert np.isfinite(score).all()
        assert test.label is not None
        found[strange] = auroc(score, test.label)
    assert found[True] > 0.9
    assert found[False] == pytest.approx(0.5, abs=0.06), "the control: the same labels, and nothing there to find"


def test_the_same_seed_gives_the_same_clusters() -> None:
    normal, test = standardised(recording(300, 0), recording(300, 1))
    assert np.array_equal(kmeans(normal, test, 3, length=8), kmeans(normal, test, 3, length=8))
    alike = np.zeros((50, 2), np.float32)
    assert (kmeans(alike, alike, length=8) == 0).all(), "windows that are all alike are one cluster"


def test_missing_values_and_still_channels() -> None:
    whole = recording(200, 0)
    x = whole.x.copy()
    x[0, 10:50], x[1] = np.nan, 7.0
    normal, test = standardised(Recording("r", whole.channels, whole.time_ns, x), whole)
    assert np.isfinite(normal).all()
    assert np.abs(normal[:, 1]).max() < 1e-6
    assert normal[10:50, 0] == pytest.approx(0)
    assert np.abs(test).max() <= 20


def test_pca_residual_is_the_distance_from_the_plane() -> None:
    rng = np.random.default_rng(0)
    plane = np.array([[3.0, 0, 0], [0, 2.0, 0]])
    rows = (rng.normal(size=(500, 2)) @ plane + [5, 5, 5]).astype(np.float32)
    off = rows[:50] + np.array([0, 0, 2], np.float32)
    np.testing.assert_allclose(pca_residual(rows, off, 0, length=1), 4, rtol=1e-3)


@pytest.mark.parametrize("stride", [1, 3])
def test_slices_are_all_windows_in_order(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.arange(60, dtype=np.float32).reshape(30, 2)
    monkeypatch.setattr(baselines, "SLICE", 7)
    expected = [rows[at : at + 5].T.ravel() for at in range(0, 26, stride)]
    np.testing.assert_array_equal(np.concatenate(list(baselines.slices(rows, 5, stride))), expected)


def test_centred() -> None:
    assert centred(np.arange(26.0), 30, 5)[[0, 1, 2, 3, 27, 28, 29]].tolist() == [0, 0, 0, 1, 25, 25, 25]
    assert centred(np.arange(5.0), 8, 4).tolist() == [0, 0, 1, 2, 3, 4, 4, 4]
    # Windows of 4 at rows 0, 2 and 4; the middle of the one at 2 is row 3.
    assert centred(np.arange(3.0), 8, 4, 2)[[0, 3, 7]].tolist() == [0, 1, 2]
