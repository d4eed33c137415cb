"""The loop: repeats itself to the bit, writes a run whole or not at all, and normalises whatever comes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edge.errors import CannotCreateError, DataError, NoInputError
from edge.sensing.recordings import write_recording
from edge.sensing.simulate import simulate
from trainer import train as training
from trainer.checkpoint import load_detector, load_info, load_windows
from trainer.model import CLIP, Detector, Spectrum, averaged
from trainer.progress import Step
from trainer.recipe import Recipe, apply_overrides
from trainer.train import train

RECIPE = apply_overrides(Recipe(), ["training.steps=25", "training.batch=16", "encoder.width=16", "encoder.embedding=8"])


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("recordings")
    write_recording(folder / "normal.csv", simulate(30, seed=1, rate_hz=50))
    return [folder]


@pytest.fixture(scope="module")
def run(recordings: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(RECIPE, recordings, out)
    return out


def test_repeats_itself_to_the_bit(recordings: list[Path], run: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)  # whatever state the process is in
    torch.rand(7)
    train(RECIPE, recordings, tmp_path / "again")
    for name in ("run.json", "checkpoint.pt", "windows.npz"):
        assert (run / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_another_seed_is_another_model(recordings: list[Path], run: Path, tmp_path: Path) -> None:
    train(apply_overrides(RECIPE, ["training.seed=1"]), recordings, tmp_path / "other")
    ours, theirs = (load_detector(folder)[0].state_dict() for folder in (run, tmp_path / "other"))
    assert not torch.equal(ours["encoder.project.weight"], theirs["encoder.project.weight"])


def test_leaves_torch_as_it_was(recordings: list[Path], tmp_path: Path) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    train(RECIPE, recordings, tmp_path / "run")
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()


def test_run_says_what_it_was_made_from(run: Path, recordings: list[Path]) -> None:
    info = load_info(run)
    assert info.recipe == RECIPE
    assert info.channels == ("vibration_x", "vibration_y", "current", "temperature", "speed")
    assert info.rate_hz == pytest.approx(50)
    assert list(info.data) == ["normal.csv"]
    assert info.losses[-1] < info.losses[0]
    fit, calibration, position = load_windows(run)
    assert set(np.diff(position)) == {info.hop}
    assert fit.shape[1:] == calibration.shape[1:] == (5, 32)
    assert (len(fit), len(calibration)) == (info.fit_windows, info.calibration_windows)
    assert all("\n" not in line for line in info.lines())


def test_progress_counts_up_to_the_end(recordings: list[Path], tmp_path: Path) -> None:
    told: list[Step] = []
    train(RECIPE, recordings, tmp_path / "run", told.append)
    assert [step.step for step in told] == [10, 20, 25]
    assert told[-1].eta_s == 0
    assert told[0].text.startswith("loss ")


def test_an_existing_run_is_kept_unless_told_otherwise(recordings: list[Path], run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(RECIPE, recordings, out)
    with pytest.raises(CannotCreateError, match="exists already"):
        train(RECIPE, recordings, out)
    train(apply_overrides(RECIPE, ["training.steps=10"]), recordings, out, overwrite=True)
    assert load_info(out).recipe.training.steps == 10
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # no drafts left


def test_nothing_but_a_run_is_overwritten(recordings: list[Path], tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(CannotCreateError, match="no training run"):
        train(RECIPE, recordings, tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "chapter1.txt").exists()


def test_nothing_is_left_of_a_run_that_failed(recordings: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training.zipfile.ZipFile, "open", full)
    with pytest.raises(CannotCreateError, match="No space left"):
        train(RECIPE, recordings, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_explodes_is_told(recordings: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.pretexts.masked import Masked

    monkeypatch.setattr(Masked, "loss", lambda self, *_: self.project.weight.sum() * float("nan"))
    with pytest.raises(DataError, match=r"lower training\.lr"):
        train(RECIPE, recordings, tmp_path / "run")


def test_windows_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = np.arange(1000, dtype=np.float32)[:, None, None] * np.ones((1, 2, 4), np.float32)
    monkeypatch.setattr(training, "MAX_WINDOWS_BYTES", 10 * windows[0].nbytes)
    kept = training.evenly(len(windows), training.affordable(windows))
    assert len(kept) == 10
    assert kept[0] == 0
    assert kept[-1] == 999  # evenly, to the end


def test_normalisation_survives_channels_that_never_move() -> None:
    rng = np.random.default_rng(0)
    windows = rng.normal(size=(40, 3, 32)).astype(np.float32)
    windows[:, 0] = 0.0
    windows[:, 1] = 230.1  # not exactly representable: its rounding is no movement
    windows[:, 2] = windows[:, 2] * 1e-9 + 1e-3
    detector = Detector(3, Recipe())
    detector.fit_normalisation(windows)
    detector.eval()
    with torch.no_grad():
        level, shape = detector.normalise(torch.from_numpy(windows))
        outputs = detector(torch.from_numpy(windows))
    assert all(torch.isfinite(output).all() for output in outputs)
    assert level[:, :2].abs().max() < 1e-3
    assert shape[:, :2].abs().max() < 1e-3
    assert 0.5 < shape[:, 2].std() < 1.5


def test_normalisation_bounds_what_is_absurd() -> None:
    rng = np.random.default_rng(0)
    windows = rng.normal(size=(40, 2, 32)).astype(np.float32)
    detector = Detector(2, Recipe()).eval()
    detector.fit_normalisation(windows)
    wild = windows[:2].copy()
    wild[0, 0, 3] = 3e38
    with torch.no_grad():
        level, shape = detector.normalise(torch.from_numpy(wild))
    assert shape.abs().max() <= CLIP
    assert torch.isfinite(level).all()


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match="no training run"):
        load_detector(tmp_path)


@pytest.mark.parametrize("name", ["run.json", "checkpoint.pt", "windows.npz"])
@pytest.mark.parametrize("damage", ["absent", "empty", "truncated", "garbage"])
def test_a_damaged_run_is_one_line(run: Path, tmp_path: Path, name: str, damage: str) -> None:
    for path in run.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / name
    content = path.read_bytes()
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "truncated": content[: len(content) // 2], "garbage": b"\x80\x04garbage" * 50}[damage])
    load = load_windows if name == "windows.npz" else load_detector
    with pytest.raises((DataError, NoInputError)) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_shape_is_refused(run: Path, tmp_path: Path) -> None:
    for path in run.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    info = json.loads((tmp_path / "run.json").read_text())
    info["recipe"]["encoder"]["width"] = 24
    (tmp_path / "run.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match="no checkpoint of this run"):
        load_detector(tmp_path)


def test_a_checkpoint_runs_no_code(run: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    for path in run.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save({"mean": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(DataError):
        load_detector(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_run_of_another_format_is_refused(run: Path, tmp_path: Path) -> None:
    info = json.loads((run / "run.json").read_text())
    info["format"] = 99
    (tmp_path / "run.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match="format 99"):
        load_info(tmp_path)


@pytest.mark.parametrize("bands", [2, 8])
def test_a_tone_shows_in_its_band_and_in_no_other(bands: int) -> None:
    n = 32 * bands
    spectrum = Spectrum(n)
    assert spectrum.bands == bands
    time = torch.arange(n)
    for band in range(bands):
        tone = torch.sin(torch.pi * (band + 1) / bands * time + 0.5)[None, None]  # the last one at half the rate
        found = spectrum(tone)[0, 1:, 0]
        assert found.argmax() == band
    noise = torch.randn(200, 2, n, generator=torch.Generator().manual_seed(0))
    assert spectrum(noise).exp().mean((0, 2)) == pytest.approx(np.ones(1 + bands), abs=0.25), "white noise: 1 in each"


@pytest.mark.parametrize(("length", "steps"), [(8, 8), (64, 32), (65, 22), (32, 32), (50, 25)])
def test_a_trace_has_at_most_so_many_steps_and_keeps_the_level(length: int, steps: int) -> None:
    x = torch.randn(3, 2, length, generator=torch.Generator().manual_seed(0))
    found = averaged(x, 32)
    assert found.shape == (3, 2, steps)
    assert torch.allclose(averaged(x + 5, 32), found + 5, atol=1e-5)
    assert torch.equal(averaged(torch.full((1, 1, length), 3.0), 32), torch.full((1, 1, found.shape[2]), 3.0))


def test_calibration_keeps_unbroken_rows() -> None:
    kept = training.in_rows(10_000, 1_600)
    assert len(kept) == 1_600
    assert (np.diff(kept) == 1).mean() > 0.98
    assert (kept[0], kept[-1]) == (0, 9_999)
    assert np.array_equal(training.in_rows(5, 10), np.arange(5))
