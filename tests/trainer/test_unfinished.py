"""A training that is killed goes on where it was, and ends in the very same run."""

import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch

from edge.errors import CannotCreateError, DataError
from edge.sensing.recordings import write_recording
from edge.sensing.simulate import simulate
from trainer import train as training
from trainer.progress import Step
from trainer.recipe import Recipe, apply_overrides
from trainer.train import train

STEPS = 60
RECIPE = apply_overrides(
    Recipe(),
    [
        f"training.steps={STEPS}",
        "training.batch=16",
        "training.patience=20",
        "training.look_every=7",
        "training.trim=0.1",
        "encoder.width=16",
        "encoder.embedding=8",
        "pretext.weights.contrast=0.1",
    ],
)
"""With everything that is carried from step to step."""
VICTIM = """
import sys
from pathlib import Path
import msgspec
from trainer.recipe import Recipe
from trainer.train import train

recipe, data, out = msgspec.json.decode(sys.argv[1], type=Recipe), Path(sys.argv[2]), Path(sys.argv[3])
train(recipe, [data], out, lambda step: print(step.step, flush=True), save_every_s=0)
"""
FILES = ("run.json", "checkpoint.pt", "windows.npz")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recordings") / "normal.csv"
    write_recording(path, simulate(30, seed=1, rate_hz=50))
    return path


@pytest.fixture(scope="module")
def whole(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(RECIPE, [recording], out)
    return out


class Stop(Exception):
    pass


def interrupted(recording: Path, out: Path, at: int = 30, recipe: Recipe = RECIPE) -> None:
    """Leave what a training leaves that ended at step `at`, in this process."""

    def report(step: Step) -> None:
        if step.step >= at:
            raise Stop

    with pytest.raises(Stop):
        train(recipe, [recording], out, report, save_every_s=0)
    assert not out.exists()
    assert (out.with_name("run.part") / "state.pt").is_file()


def same(a: Path, b: Path) -> list[bool]:
    return [(a / name).read_bytes() == (b / name).read_bytes() for name in FILES]


def test_killed_and_started_again_is_the_same_to_the_bit(recording: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-c", VICTIM, msgspec.json.encode(RECIPE).decode(), str(recording), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        for line in victim.stdout:
            if int(line) >= 20:  # and by the time it dies some steps more: no two runs are killed at the same one
                victim.send_signal(signal.SIGKILL)
                break
    assert victim.returncode == -signal.SIGKILL
    assert not out.exists()
    told: list[Step] = []
    train(RECIPE, [recording], out, told.append)
    assert told[0].text == "goes on where it was interrupted"
    assert 19 <= told[0].step < STEPS  # progress is told before the state is written
    assert same(whole, out) == [True, True, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("forgotten", ["rng", "optimizer", "best"])
def test_without_all_of_the_state_it_would_not_be(recording: Path, whole: Path, tmp_path: Path, forgotten: str) -> None:
    """The comparison can fail: a state that lacks one of its parts ends elsewhere."""
    out = tmp_path / "run"
    interrupted(recording, out, at=STEPS if forgotten == "best" else 30)
    path = out.with_name("run.part") / "state.pt"
    content = torch.load(path, weights_only=True)
    if forgotten == "rng":
        content["rng"] = torch.Generator().manual_seed(1).get_state()
    elif forgotten == "optimizer":
        for moments in content["optimizer"]["state"].values():
            moments["exp_avg"].zero_()
    else:
        content["best"] = {name: 0 * value for name, value in content["best"].items()}
        content["best_loss"] = 0.0
    torch.save(content, path)
    train(RECIPE, [recording], out)
    assert not same(whole, out)[1]


def test_another_recipe_is_refused_and_changes_nothing(recording: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    interrupted(recording, out)
    state = out.with_name("run.part") / "state.pt"
    before = state.read_bytes()
    other = apply_overrides(RECIPE, ["training.lr=0.001"])
    with pytest.raises(CannotCreateError, match=r"another recipe \(training\.lr was 0\.003, now 0\.001\).*--overwrite"):
        train(other, [recording], out)
    assert state.read_bytes() == before
    assert not out.exists()
    train(RECIPE, [recording], out)
    assert same(whole, out) == [True, True, True]


def test_other_recordings_are_refused(recording: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    interrupted(recording, out)
    changed = tmp_path / "normal.csv"
    changed.write_text(recording.read_text().rstrip("\n").rpartition("\n")[0])
    with pytest.raises(CannotCreateError, match="of other recordings"):
        train(RECIPE, [changed], out)


def test_other_recordings_or_recipe_start_anew_when_told_so(recording: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    interrupted(recording, out)
    other = apply_overrides(RECIPE, ["training.seed=3", "training.steps=10"])
    train(other, [recording], out, overwrite=True)
    train(other, [recording], tmp_path / "straight")
    assert same(tmp_path / "straight", out) == [True, True, True]
    assert not out.with_name("run.part").exists()


@pytest.mark.parametrize("damage", ["empty", "truncated", "garbage", "flipped", "code"])
def test_a_damaged_state_is_one_line_and_stays(recording: Path, tmp_path: Path, damage: str) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    out = tmp_path / "run"
    interrupted(recording, out)
    path = out.with_name("run.part") / "state.pt"
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "code":
        torch.save({"made": Evil()}, path)
    else:
        path.write_bytes(
            {
                "empty": b"",
                "truncated": content[:middle],
                "garbage": b"\x80\x04garbage" * 50,
                "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            }[damage]
        )
    damaged = path.read_bytes()
    with pytest.raises(DataError, match=r"state\.pt: damaged.*--overwrite") as error:
        train(RECIPE, [recording], out)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == damaged
    assert not out.exists()
    assert not (tmp_path / "ran").exists()


def test_what_learned_nothing_is_not_gone_on_with(recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    interrupted(recording, out)
    monkeypatch.setattr(training.math, "isfinite", lambda _: False)
    with pytest.raises(DataError, match=r"lower training\.lr"):
        train(RECIPE, [recording], out)
    assert list(tmp_path.iterdir()) == []


def test_a_state_is_written_when_it_is_due(recording: Path, tmp_path: Path) -> None:
    def report(step: Step) -> None:
        if step.step == STEPS:
            raise Stop

    with pytest.raises(Stop):
        train(RECIPE, [recording], tmp_path / "run", report)  # in less than half a minute
    assert list(tmp_path.iterdir()) == []
