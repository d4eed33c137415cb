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
from edge.scoring.bulk import away
from edge.scoring.commission import FOREIGN, STRANGE, ForeignError, fit_head
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
    assert str(own.head.calibrator.windows) in said
    assert judge_recording(own, later).events == ()
    assert [event.type for event in judge_recording(own, faulty).events] == ["anomaly_started"]
    assert own.self_test().worst == 0
    assert own.manifest.lineage["commissioned_from"] == Bundle.open(fleet).digest
    assert own.manifest.calibration_floor == own.head.calibrator.floor


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


def spoiled(clean: Outputs, share: float, seed: int) -> tuple[Outputs, np.ndarray]:
    """Some windows, here and there, are of one and the same fault; and which."""
    rng = np.random.default_rng(seed)
    bad = np.zeros(len(clean), bool)
    bad[rng.permutation(len(clean))[: round(share * len(clean))]] = True
    arrays = {name: array.copy() for name, array in clean.arrays().items()}
    for array in arrays.values():
        array[bad] += 20
    return Outputs(**arrays), bad


ALONE = Smoother(0, 1, 1)
ALPHAS = 0.01, 0.05


def promised(*, heavy: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """Over many clean machines: share of fresh windows with p ≤ each of `ALPHAS`, its standard error, and the share of windows
    that did not calibrate.
    """
    shares, left_out = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        draw = outputs(600, seed)
        if heavy:  # a window that is large in one thing is large in all: Student's t with five degrees of freedom
            size = np.sqrt(5 / rng.chisquare(5, size=600)).astype(np.float32)
            draw = Outputs(**{name: a * size.reshape(-1, *[1] * (a.ndim - 1)) for name, a in draw.arrays().items()})
        ours, fresh = draw.part(slice(0, 200)), draw.part(slice(200, None))
        head = fit_head("mahalanobis(features)", ours, np.arange(200), ALONE, overlap=1)
        p = head.calibrator.p_value(head.scorer.score(fresh))
        shares.append([(p <= alpha).mean() for alpha in ALPHAS])
        left_out.append(head.foreign / 200)
    return np.mean(shares, axis=0), np.std(shares, axis=0) / np.sqrt(len(shares)), float(np.mean(left_out))


@pytest.mark.parametrize("heavy", [False, True])
def test_on_clean_windows_leaving_out_breaks_no_promise(heavy: bool) -> None:
    """Light tails: nothing is left out of the calibration. Heavy ones: what is left out is all that may be added to alpha."""
    share, error, left_out = promised(heavy=heavy)
    assert (share <= np.array(ALPHAS) + left_out + 3 * error).all()
    assert left_out <= (0.005 if heavy else 0)


def test_leaving_strange_windows_out_of_the_calibration_too_would_break_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: with a fence that is near, clean windows raise more than twice the alarms."""
    monkeypatch.setattr("edge.scoring.commission.FOREIGN", 1.5)
    monkeypatch.setattr("edge.scoring.commission.MOST_FOREIGN", 1.0)
    share, error, _ = promised(heavy=True)
    assert share[0] > 2 * ALPHAS[0] + 3 * error[0]


def test_a_fault_among_the_recordings_is_left_out_and_found_later() -> None:
    """With its control: whoever trusts the recordings takes that fault for ordinary from then on."""
    ours, bad = spoiled(outputs(400, 1), 0.05, 2)
    fault, _ = spoiled(outputs(200, 3), 1.0, 4)
    missed = {}
    for trusted in (False, True):
        head = fit_head("subspace(trace) + knn(signal)", ours, np.arange(400), ALONE, overlap=1, trusted=trusted)
        missed[trusted] = (head.calibrator.p_value(head.scorer.score(fault)) > 0.01).mean()
        assert head.foreign == (0 if trusted else bad.sum())
    assert missed[False] == 0
    assert missed[True] > 0.5


@pytest.mark.parametrize("seed", range(4))
def test_how_far_a_window_is_away_does_not_depend_on_units(seed: int) -> None:
    z = np.random.default_rng(seed).normal(size=(300, 6)).astype(np.float32)
    assert away(z * 1000 + 5, 4) == pytest.approx(away(z, 4), abs=0.05)
    assert (away(z, 4) > STRANGE).mean() < 0.05
    assert not (away(z, 4) > FOREIGN).any()


def test_what_looks_faulty_is_refused_with_its_cure(tmp_path: Path) -> None:
    ours, _ = spoiled(outputs(400, 1), 0.3, 2)
    with pytest.raises(ForeignError, match="30% of 400 windows look unlike the rest, at most 5% may"):
        fit_head("knn", ours, np.arange(400), ALONE, overlap=1)
    fleet = build(tmp_path / "fleet.amiss")
    own = recording(4000, 1)
    own.x[:, 2600:] += 40
    write_recording(tmp_path / "own.csv", own)
    with pytest.raises(DataError, match=r"own\.csv: looks faulty or contaminated: .* record again .* --trusted"):
        commission(fleet, [tmp_path / "own.csv"], tmp_path / "own.amiss")
    assert not (tmp_path / "own.amiss").exists()
    own.x[:, 2600:3900] -= 40
    write_recording(tmp_path / "own.csv", own)
    assert "windows left out because they look unlike the rest" in commission(
        fleet, [tmp_path / "own.csv"], tmp_path / "own.amiss"
    )
    assert "left out" not in commission(fleet, [tmp_path / "own.csv"], tmp_path / "all.amiss", trusted=True)
    assert Bundle.open(tmp_path / "all.amiss").manifest.lineage["commissioned_trusted"] == "yes"
    assert Bundle.open(tmp_path / "own.amiss").manifest.lineage["commissioned_trusted"] == "no"
