"""What is said about a promise is right as often as it claims, though windows overlap and strangeness comes in clusters."""

from pathlib import Path

import numpy as np
import pytest
from small_bundle import CHANNELS, build, normal

from edge.bundle import Bundle
from edge.operating.score import judge_recording
from edge.sensing.recordings import Recording
from trainer.metrics import wilson_interval
from trainer.promise import Point, inflation, judge, keep, measure, needed

OVERLAP = 4


def wandering(n: int, memory: float, rng: np.random.Generator) -> np.ndarray:
    """(n,) p-values, each uniform, that hang together over about 1 / (1 - memory) windows."""
    steps = rng.normal(size=n) * np.sqrt(1 - memory**2)
    z = np.empty(n)
    z[0] = rng.normal()
    for i in range(1, n):
        z[i] = memory * z[i - 1] + steps[i]
    grid = np.linspace(-6, 6, 4001)
    density = np.exp(-(grid**2) / 2)
    return 1 - np.interp(z, grid, np.cumsum(density) / density.sum())


@pytest.mark.parametrize("memory", [0.0, 0.75, 0.95])
def test_the_interval_holds_the_truth_as_often_as_it_says(memory: float) -> None:
    rng, right, naive = np.random.default_rng(0), 0, 0
    for _ in range(100):
        p = wandering(3000, memory, rng)
        point, _ = measure([p[:2000], p[2000:]], 0.05, OVERLAP)
        right += point.low <= 0.05 <= point.high
        low, high = wilson_interval(point.measured, len(p))
        naive += low <= 0.05 <= high
    assert right >= 90
    if memory > 0.9:
        assert naive < 70, "the control: counted as though they were independent, windows claim to know too much"


def test_inflation_is_one_for_windows_that_do_not_hang_together() -> None:
    rng = np.random.default_rng(1)
    # With what is added for there being few batches.
    assert np.mean([inflation([rng.random(4000) < 0.1], OVERLAP) for _ in range(40)]) == pytest.approx(1.18, abs=0.2)
    twentyfold = [inflation([np.repeat(rng.random(1000) < 0.1, 20)], OVERLAP) for _ in range(40)]
    assert np.mean(twentyfold) == pytest.approx(20 * 1.18, rel=0.2)
    assert inflation([np.zeros(100, bool)], OVERLAP) == 1


def test_after_what_is_needed_there_is_a_verdict() -> None:
    for level in (0.2, 0.01, 0.001):
        for share, expected in ((level, "kept"), (0.0, "kept"), (4 * level, "broken")):
            low, high = wilson_interval(share, needed(level))
            assert judge(Point(promised=level, measured=share, low=low, high=high)) == expected
        low, high = wilson_interval(level, needed(level) / 3)
        assert judge(Point(promised=level, measured=level, low=low, high=high)) == "unknown"


def recording(rows: int, offset: float = 0.0) -> Recording:
    return Recording("r", CHANNELS, np.arange(rows, dtype=np.int64) * 10_000_000, normal(rows, 7) + np.float32(offset))


def test_a_bundle_that_keeps_it_and_one_that_does_not(tmp_path: Path) -> None:
    bundle = Bundle.open(build(tmp_path / "small.amiss"))
    short = keep(bundle, [judge_recording(bundle, recording(4000))])
    assert short.verdict == "unknown"
    assert short.more_hours is not None
    assert short.hours == pytest.approx(4000 / 100 / 3600, rel=0.01)
    assert short.independent <= short.windows * bundle.manifest.hop / bundle.manifest.window
    long = keep(bundle, [judge_recording(bundle, recording(120_000))])
    assert long.verdict == "kept", long.threshold
    assert (long.more_hours, long.calibration_more_hours) == (None, None)
    strange = keep(bundle, [judge_recording(bundle, recording(4000, offset=1.0))])
    assert strange.verdict == "broken"
    assert strange.alerts_per_day > short.alerts_per_day
    assert [point.promised for point in long.curve] == sorted(point.promised for point in long.curve)


def test_too_few_to_calibrate_on_is_said_in_hours(tmp_path: Path) -> None:
    bundle = Bundle.open(build(tmp_path / "small.amiss", windows=200))
    found = keep(bundle, [judge_recording(bundle, recording(4000))])
    assert found.calibration_windows == 100
    assert found.calibration_more_hours == pytest.approx((999 - 100) * 4 / 100 / 3600)
