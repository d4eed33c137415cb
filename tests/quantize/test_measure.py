"""The yardstick of a search: faults of graded size, through the device's pipeline, and no label."""

import math
from pathlib import Path

import numpy as np
import pytest

import quantize.measure as yardstick
from edge.bundle import Bundle
from edge.scoring.backends import run_in_slices
from edge.scoring.inject import INJECTIONS, usual_spread
from edge.signal import Float32
from quantize import quantize
from quantize.measure import latency_us, measure, scores, spread_of
from quantize.parity import rank_correlation
from trainer.recipe import Budget


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("measured") / "x.amiss"
    quantize(run, out, budget=Budget(slower=math.inf))
    return Bundle.open(out)


def test_figures(bundle: Bundle, windows: tuple[Float32, Float32]) -> None:
    figures = measure(bundle, windows[1])
    assert set(figures.by_kind) == set(INJECTIONS)
    # Neither blind nor full marks for everybody: there is something to choose by.
    assert 0.55 < figures.detection < 0.95
    assert figures.detection == pytest.approx(np.mean(list(figures.by_kind.values())))
    small, *_, large = figures.by_severity.values()
    assert small < large - 0.05
    assert (figures.precision, figures.bytes) == ("int8", bundle.size)
    assert figures.windows == min(len(windows[1]), yardstick.MOST_WINDOWS)
    again = measure(bundle, windows[1])
    assert (again.detection, again.by_kind) == (figures.detection, figures.by_kind)


@pytest.mark.parametrize("name", ["SEVERITIES", "INJECTIONS"])
def test_no_fault_is_no_better_than_chance(
    name: str, bundle: Bundle, windows: tuple[Float32, Float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = {"SEVERITIES": (0.0,), "INJECTIONS": {"none": lambda x, spread, rng: x.copy()}}
    monkeypatch.setattr(yardstick, name, nothing[name])
    assert set(measure(bundle, windows[1]).by_kind.values()) == {0.5}
    assert set(measure(bundle, windows[1]).by_severity.values()) == {0.5}


@pytest.mark.parametrize("length", [16, 32, 100])
def test_faults_are_of_one_size_whatever_the_window(length: int) -> None:
    """Signals that wander: within a longer window they move farther."""
    x = np.cumsum(np.random.default_rng(0).normal(size=(2, 64_000)), axis=1).astype(np.float32) * np.float32([[1], [50]])

    def windows(length: int) -> Float32:
        return x[:, : 64_000 // length * length].reshape(2, -1, length).transpose(1, 0, 2)

    assert spread_of(windows(length)) == pytest.approx(spread_of(windows(16)), rel=0.05)
    assert (usual_spread(windows(100)) > 1.5 * usual_spread(windows(16))).all()
    assert spread_of(windows(8)) == pytest.approx(usual_spread(windows(8)))


def test_scores_are_those_of_the_windows(bundle: Bundle, windows: tuple[Float32, Float32]) -> None:
    held_back = windows[1]
    # In the order of what the scorer says of each window by itself: nothing of its neighbours is in it.
    alone = bundle.head.scorer.score(run_in_slices(bundle.backend, held_back))
    assert rank_correlation(scores(bundle, held_back), alone) > 0.9999
    order = np.random.default_rng(0).permutation(len(held_back))
    assert np.allclose(scores(bundle, held_back[order]), scores(bundle, held_back)[order], rtol=1e-4)
    broken = held_back.copy()
    broken[1] = np.nan
    with pytest.raises(ValueError, match="are they finite"):
        scores(bundle, broken)


def test_latency_is_of_one_window(bundle: Bundle, windows: tuple[Float32, Float32]) -> None:
    assert 1 < latency_us(bundle, windows[1]) < 50_000
    assert latency_us(bundle, windows[1][:3]) > 1  # fewer windows than rounds
