"""A bundle for a fleet, and some minutes of one machine → this machine's own bundle."""

from pathlib import Path

import numpy as np
import pytest
from small_bundle import CHANNELS, build, normal

from edge.bundle import Bundle
from edge.errors import DataError
from edge.operating.commission import commission
from edge.operating.score import judge_recording
from edge.scoring.backends import Outputs
from edge.scoring.commission import fit_head
from edge.scoring.smoothing import Smoother
from edge.sensing.recordings import Recording, write_recording


def recording(rows: int, seed: int, offset: float = 0.0) -> Recording:
    x = normal(rows, seed) + np.float32(offset)
    return Recording("r", CHANNELS, 10**18 + np.arange(rows, dtype=np.int64) * 10_000_000, x)


def outputs(n: int, seed: int = 0) -> Outputs:
    rng = np.random.default_rng(seed)
    embedding, residual, level = rng.normal(size=(n, 4)), rng.gamma(2.0, size=(n, 2)), rng.normal(size=(n, 2))
    spectrum, trace, map_ = rng.normal(size=(n, 3, 2)), rng.normal(size=(n, 2, 8)), rng.normal(size=(n, 4, 4))
    return Outputs(*(array.astype(np.float32) for array in (embedding, residual, level, spectrum, trace, map_)))


def test_what_is_usual_for_this_machine_is_no_alarm_any_more_and_a_fault_still_is(tmp_path: Path) -> None:
    fleet = build(tmp_path / "fleet.amiss")
    write_recording(tmp_path / "own.csv", recording(4000, 1, offset=3.0))
    later, faulty = recording(4000, 2, offset=3.0), recording(1000, 3, offset=-3.0)
    assert judge_recording(Bundle.open(fleet), later).events, "the control: for the fleet this machine is strange"
    said = commission(fleet, [tmp_path / "own.csv"], tmp_path / "own.amiss")
    own = Bundle.open(tmp_path / "own.amiss")
    assert str(own.calibrator.windows) in said
    assert judge_recording(own, later).events == ()
    assert [event.type for event in judge_recording(own, faulty).events] == ["anomaly_started"]
    assert own.self_test().worst == 0
    assert own.manifest.lineage["commissioned_from"] == Bundle.open(fleet).digest
    assert own.manifest.calibration_floor == own.calibrator.floor


@pytest.mark.parametrize("scorer", ["knn", "subspace(trace) + knn(signal)"])
def test_the_promise_holds_on_windows_that_nobody_was_fitted_on(scorer: str) -> None:
    """With its control: calibrated on the very windows that the scorer was fitted to, the promise is broken."""
    crossed, naive = [], []
    for seed in range(40):
        ours, fresh = outputs(100, seed), outputs(500, 1000 + seed)
        head = fit_head(scorer, ours, np.arange(len(ours)), Smoother(0, 1, 1), overlap=1)
        crossed.append((head.calibrator.p_value(head.scorer.score(fresh)) <= 0.05).mean())
        in_sample = head.scorer.score(ours)
        naive.append((head.scorer.score(fresh) > np.quantile(in_sample, 0.95)).mean())
    assert np.mean(crossed) == pytest.approx(0.05, abs=0.02)
    assert np.mean(naive) > 0.5


def test_too_little_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    fleet = build(tmp_path / "fleet.amiss", windows=200)
    write_recording(tmp_path / "own.csv", recording(30, 1))
    with pytest.raises(DataError, match="record for longer"):
        commission(fleet, [tmp_path / "own.csv"], tmp_path / "own.amiss")
    assert not (tmp_path / "own.amiss").exists()
