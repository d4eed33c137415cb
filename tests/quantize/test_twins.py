"""What needs the run: float twin, untrained encoder, attacks along gradients."""

from pathlib import Path

import numpy as np
import pytest

from edge.bundle import Bundle
from edge.errors import DataError, UsageError
from edge.operating.commission import commission
from edge.sensing.recordings import write_recording
from edge.sensing.simulate import simulate
from quantize import quantize
from quantize.twins import make_twins
from trainer import adversarial, stress
from trainer.checkpoint import load_detector
from trainer.evaluate import judge_windows
from trainer.progress import Step
from trainer.recipe import Budget
from trainer.report import Twins, examine

ANYTHING = Budget(embedding_error=1e9, rank_correlation=-1, flips=1, auroc_loss=1, slower=1e9)


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("twins")
    quantize(run, folder / "small.amiss", precision="int8", budget=ANYTHING)
    # The same machine, later; what a seed makes does not depend on how much of it is asked for.
    write_recording(folder / "later.csv", simulate(180, seed=1, rate_hz=50).part(7000))
    faulty = simulate(180, seed=1, rate_hz=50, fault="imbalance", fault_at_s=165.0, severity=2.0)
    write_recording(folder / "faulty.csv", faulty.part(7500))
    return folder


@pytest.fixture(scope="module")
def twins(run: Path, folder: Path) -> Twins:
    steps: list[Step] = []
    (folder / "twins").mkdir()
    found = make_twins(folder / "small.amiss", run, [], folder / "twins", steps.append)
    assert steps[-1].step == steps[-1].steps
    return found


def test_twins_are_what_they_say(run: Path, folder: Path, twins: Twins) -> None:
    shipped, twin, untrained = (Bundle.open(path) for path in (folder / "small.amiss", twins.float32, twins.untrained))
    assert (shipped.manifest.precision, twin.manifest.precision, untrained.manifest.precision) == ("int8", "float32", "int8")
    assert twin.manifest.lineage["checkpoint"] == shipped.manifest.lineage["checkpoint"]
    assert untrained.manifest.lineage["checkpoint"] != shipped.manifest.lineage["checkpoint"]
    other = folder / "other"
    other.mkdir()
    (other / "run.json").write_bytes((run / "run.json").read_bytes() + b" ")
    with pytest.raises(DataError, match="not the run"):
        make_twins(folder / "small.amiss", other, [], folder)


def test_a_commissioned_bundle_wants_to_know_on_what(run: Path, folder: Path, tmp_path: Path) -> None:
    commission(folder / "small.amiss", [folder / "later.csv"], tmp_path / "own.amiss")
    with pytest.raises(UsageError, match="--normal"):
        make_twins(tmp_path / "own.amiss", run, [folder / "faulty.csv"], tmp_path)


@pytest.mark.slow
def test_twins_of_a_commissioned_bundle_are_commissioned(run: Path, folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.amiss"
    commission(folder / "small.amiss", [folder / "later.csv"], own)
    found = make_twins(own, run, [folder / "later.csv"], tmp_path)
    for path in (found.float32, found.untrained):
        assert "commissioned_from" in Bundle.open(path).manifest.lineage


def test_the_gradient_is_that_of_the_score(run: Path, twins: Twins) -> None:
    detector, _ = load_detector(run)
    twin = Bundle.open(twins.float32)
    x = twin.golden.x[:4]
    spread = adversarial._spread(detector, twin.golden.x)
    slope = adversarial.gradient(detector, twin, x, spread)
    rng = np.random.default_rng(0)
    usual = x.std(axis=2, keepdims=True)
    for _ in range(3):
        # Along the slope and a bit beside it: a direction in which something changes.
        way = (np.sign(slope) * rng.uniform(0.5, 1.5, x.shape) * usual * 0.003).astype(np.float32)
        up, down = (judge_windows(twin, x + sign * way).score for sign in (1, -1))
        assert (slope * way).sum(axis=(1, 2)) * 2 == pytest.approx(up - down, rel=0.2)


def test_the_whole_report(run: Path, folder: Path, twins: Twins) -> None:
    found, _ = examine(folder / "small.amiss", [folder / "faulty.csv"], [folder / "later.csv"], twins)
    assert found.comparison is not None
    names = [method.name for method in found.comparison.methods]
    assert names[:3] == ["this bundle (int8)", "float32 twin", "untrained encoder"]
    assert not any("--run" in note for note in found.notes)
    assert found.contamination is not None
    assert [point.share for point in found.contamination.points] == [0.0, 0.01, 0.05, 0.1]
    attacks = {(one.aim, one.method, one.model): one.points for one in found.adversarial}
    assert len(attacks) == 12
    for model in ("float32", "int8"):
        for (aim, _, name), points in attacks.items():
            if name == model:
                assert points[0] == attacks[aim, "random", model][0], "the control: without strength nothing was done"
        chance, steps = attacks["raise", "random", model][3], attacks["raise", "PGD", model][3]
        assert chance.told_apart is not None
        assert steps.told_apart is not None
        assert steps.told_apart > chance.told_apart + 0.2
        assert steps.told_apart > 0.9
        before, chance, steps = (attacks["hide", method, model][i] for method, i in (("PGD", 0), ("random", 3), ("PGD", 3)))
        assert None not in (before.told_apart, chance.told_apart, steps.told_apart)
        assert steps.told_apart < min(before.told_apart, chance.told_apart)  # type: ignore[type-var]


def test_attacks_stay_within_what_they_may(run: Path, twins: Twins) -> None:
    detector, _ = load_detector(run)
    twin = Bundle.open(twins.float32)
    x, scale = twin.golden.x[:4], np.full((x_channels := twin.golden.x.shape[1], 1), 0.5, np.float32)
    assert x_channels > 1
    spread = adversarial._spread(detector, twin.golden.x)
    found = adversarial._many_steps(x, scale, 0.3, lambda y: np.sign(adversarial.gradient(detector, twin, y, spread)))
    assert 0.1 < np.abs(found - x).max() <= 0.3 * 0.5 + 1e-3
    assert stress.Attack.__struct_fields__ == ("aim", "method", "model", "points")
