"""What the loop can be told: to stop early, to leave the worst out, where to compute; and what it says when memory ends."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import ConfigError, DataError
from edge.scoring.bulk import bulk
from edge.sensing.recordings import write_recording
from edge.sensing.simulate import simulate
from edge.signal import Float32
from trainer.pretexts.combined import Combined
from trainer.progress import Step
from trainer.recipe import Recipe, TrainingRecipe, apply_overrides
from trainer.testing import rhythm
from trainer.train import Fitted, deterministic, fit, loss_on, place, set_aside, train
from trainer.trimming import ordinary
from trainer.windows import batches

SMALL = apply_overrides(
    Recipe(), ["training.steps=60", "training.batch=16", "encoder.width=16", "encoder.embedding=8", "encoder.depth=2"]
)
WINDOWS = rhythm(400).numpy()
HELD = rhythm(40, seed=1).numpy()


def fitted(*overrides: str, windows: Float32 = WINDOWS, held: Float32 = HELD, told: list[Step] | None = None) -> Fitted:
    with deterministic(0, 1):
        return fit(apply_overrides(SMALL, overrides), windows, held, (told if told is not None else []).append)


def weights(found: Fitted) -> torch.Tensor:
    return torch.cat([value.flatten().float() for value in found.detector.state_dict().values()])


# Stopping early


@given(st.integers(0, 20000), st.integers(8, 64), st.integers(1, 64))
def test_what_is_chosen_by_shares_no_sample_with_what_is_learned_from(count: int, window: int, hop: int) -> None:
    recipe = Recipe(window=window, hop=min(hop, window))
    fewest = 20 * -(-window // recipe.hop_samples)
    if count < fewest:
        with pytest.raises(DataError, match=str(fewest)):
            set_aside(count, recipe)
        return
    learn, choose = set_aside(count, recipe)
    assert 0 < len(choose) <= 512
    assert len(learn) >= count / 2
    assert min(learn[0], choose[0]) >= 0
    assert max(learn[-1], choose[-1]) < count
    after = np.clip(np.searchsorted(learn, choose), 0, len(learn) - 1)
    nearest = np.minimum(np.abs(learn[after] - choose), np.abs(learn[np.maximum(after - 1, 0)] - choose))
    assert nearest.min() * recipe.hop_samples >= window


def test_too_few_windows_to_choose_by_are_refused() -> None:
    with pytest.raises(DataError, match=r"only 60 windows.*needs 80.*training\.patience"):
        fitted("training.patience=1", windows=WINDOWS[:60])


def test_it_stops_when_nothing_gets_better_and_keeps_the_best() -> None:
    told: list[Step] = []
    noise = np.random.default_rng(0).normal(size=(100, 3, 32)).astype(np.float32)  # nothing to learn but by heart
    recipe = ("training.steps=2000", "training.patience=3", "training.look_every=10")
    found = fitted(*recipe, windows=noise, told=told)
    looks = {step.step: step.figures["loss_chosen_by"] for step in told if "loss_chosen_by" in step.figures}
    assert found.best_step == min(looks, key=looks.__getitem__)
    assert len(found.losses) == max(looks) == found.best_step + 30 < 2000
    _, choose = set_aside(len(noise), SMALL)
    again = loss_on(found.detector, SMALL, noise, choose, torch.Generator().manual_seed(0), "float32")
    assert again == looks[found.best_step] < looks[max(looks)]


def test_what_calibrates_chooses_nothing() -> None:
    recipe = ("training.patience=1", "training.look_every=5")
    ours, theirs = fitted(*recipe), fitted(*recipe, held=100 * HELD[::-1].copy())
    assert torch.equal(weights(ours), weights(theirs))
    assert ours.calibration_loss != theirs.calibration_loss


def test_without_patience_nothing_is_set_aside_and_the_last_weights_are_kept() -> None:
    told: list[Step] = []
    found = fitted(told=told)
    assert found.best_step == 60
    assert not any("loss_chosen_by" in step.figures for step in told)


# Leaving the worst out


def contaminated(share: float) -> tuple[Float32, np.ndarray]:
    """Rhythms, and among them windows of quite another kind; which those are."""
    windows = WINDOWS.copy()
    faulty = np.random.default_rng(0).permutation(len(windows)) < share * len(windows)
    windows[faulty] = 2 * np.sign(np.sin(np.arange(32) * 1.7 + np.arange(3)[:, None]))
    return windows, faulty


def test_what_is_trimmed_is_not_learned() -> None:
    windows, faulty = contaminated(0.1)

    def contrast(*overrides: str) -> float:
        """How much worse faulty windows are reconstructed than ordinary ones."""
        detector = fitted("training.steps=200", *overrides, windows=windows).detector
        with torch.no_grad():
            residual = detector(torch.from_numpy(windows))[1].mean(1)
        return float(residual[faulty].mean() / residual[~faulty].mean())

    plain, trimmed = contrast(), contrast("training.trim=0.15")
    assert trimmed > 2 * plain
    assert contrast("training.trim=0.15", "training.precision=bfloat16") == pytest.approx(trimmed, rel=0.2)


def test_the_share_is_left_out_of_each_batch_after_the_first_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = Combined.loss

    def spy(self: Combined, encoder: object, x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        sizes.append(len(x))
        return plain(self, encoder, x, rng)  # type: ignore[arg-type]

    monkeypatch.setattr(Combined, "loss", spy)
    fitted("training.trim=0.2")
    assert sizes == [16] * 6 + [13] * 54 + [40]
    sizes.clear()
    fitted("training.trim=0.01")  # less than one window
    assert set(sizes) == {16, 40}


def test_a_run_keeps_no_window_that_lies_apart() -> None:
    windows, faulty = contaminated(0.1)
    found = fitted("training.trim=0.15", windows=windows)
    kept = ordinary(found.detector, batches(windows), 0.15)
    assert (np.diff(kept) > 0).all()
    assert len(kept) == 340
    assert not faulty[kept].any()
    assert faulty.sum() > 20


@given(st.floats(0, 0.4), st.integers(0, 10))
@settings(max_examples=20, deadline=None)
def test_the_bulk_is_what_lies_together(trim: float, seed: int) -> None:
    """Faults that lie together as well, and farther out than any plain distance would forgive them for."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 5))
    count = int(trim * len(z))
    far = rng.permutation(len(z))[:count]
    z[far] = 0.1 * rng.normal(size=(count, 5)) + 40
    kept = bulk(z.astype(np.float32), trim)
    assert len(kept) == len(z) - count
    assert not np.isin(far, kept).any()


# Where, and in which precision


@pytest.mark.parametrize(
    ("device", "precision", "cuda", "bfloat16", "wanted"),
    [
        ("auto", "auto", False, False, ("cpu", "float32")),
        ("auto", "auto", True, True, ("cuda", "bfloat16")),
        ("auto", "auto", True, False, ("cuda", "float32")),
        ("auto", "float32", True, True, ("cuda", "float32")),
        ("cpu", "auto", True, True, ("cpu", "float32")),
        ("cpu", "bfloat16", False, False, ("cpu", "bfloat16")),
        ("cuda", "bfloat16", True, True, ("cuda", "bfloat16")),
    ],
)
def test_where_it_computes(device: str, precision: str, cuda: bool, bfloat16: bool, wanted: tuple[str, str]) -> None:
    settings = TrainingRecipe(device=device, precision=precision)  # type: ignore[arg-type]
    found, kind = place(settings, cuda=cuda, bfloat16=bfloat16)
    assert (found.type, kind) == wanted


def test_a_gpu_that_is_not_there_is_told() -> None:
    with pytest.raises(ConfigError, match=r"training\.device.*no GPU"):
        place(TrainingRecipe(device="cuda"), cuda=False)


def test_mixed_precision_learns_the_same() -> None:
    """On the processor; the way through the loop is that of the GPU."""
    every = ("pretext.weights.contrast=0.1", "pretext.weights.vicreg=0.1", "pretext.weights.forecast=0.1")
    every = (*every, "training.steps=25")
    plain, mixed = fitted(*every), fitted(*every, "training.precision=bfloat16")
    assert (plain.precision, mixed.precision) == ("float32", "bfloat16")
    assert mixed.losses != plain.losses
    assert mixed.calibration_loss == pytest.approx(plain.calibration_loss, rel=0.05)
    seen = [value.dtype for value in mixed.detector.state_dict().values() if value.is_floating_point()]
    assert set(seen) == {torch.float32}


def test_the_run_says_where(tmp_path: Path) -> None:
    write_recording(tmp_path / "normal.csv", simulate(30, seed=1, rate_hz=50))
    info = train(apply_overrides(SMALL, ["training.precision=bfloat16"]), [tmp_path / "normal.csv"], tmp_path / "run")
    assert "computed on cpu in bfloat16" in info.lines()


def test_out_of_memory_is_one_line_with_the_setting_to_lower(tmp_path: Path) -> None:
    """A real shortage: the process may have but little more than it has when torch is loaded."""
    write_recording(tmp_path / "normal.csv", simulate(30, seed=1, rate_hz=50))
    script = f"""
import resource, sys
import torch, trainer.train, amiss
size = 4096 * int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (size + {150 << 20}, resource.RLIM_INFINITY))
sys.argv = ["amiss", "train", "--data", {str(tmp_path / "normal.csv")!r}, "--out", {str(tmp_path / "run-")!r} + sys.argv[1],
    "--window", "32", "--set", "training.steps=3", "--set", "training.batch=" + sys.argv[1]]
amiss.main()
"""
    small, large = (
        subprocess.run([sys.executable, "-c", script, batch], capture_output=True, text=True, check=False)
        for batch in ("16", "40000")
    )
    assert small.returncode == 0, small.stderr
    assert large.returncode == 78
    assert large.stderr.startswith("amiss: out of memory with training.batch = 40000")
    assert "lower training.batch" in large.stderr
    assert large.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["normal.csv", "run-16"]
