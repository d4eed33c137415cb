"""Lines where there is no terminal, a bar where there is one."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

import amiss
from edge.errors import CannotCreateError
from edge.sensing.recordings import write_recording
from edge.sensing.simulate import simulate
from trainer.progress import Step, progress, tensorboard


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_come_now_and_then() -> None:
    out = io.StringIO()
    now = 0.0
    with progress("train", out, clock=lambda: now) as report:
        for step in range(1, 101):
            now += 0.2
            report(Step(step, 100, "loss 0.5", 61.0))
    lines = out.getvalue().splitlines()
    assert lines[0] == "train 1/100 loss 0.5 1:01 left"
    assert lines[-1] == "train 100/100 loss 0.5"
    assert len(lines) == 5  # 20 s, one each 5 s


def test_a_bar_on_a_terminal() -> None:
    out = Terminal()
    with progress("train", out) as report:
        report(Step(3, 10, "loss 0.5", 1.0))
    assert "3/10" in out.getvalue()


def test_curves_for_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told: list[Step] = []
    with tensorboard(tmp_path / "curves", told.append) as report:
        for step in (10, 20):
            report(Step(step, 20, "loss 0.5", None, {"loss": 1 / step, "lr": 0.003}))
    curves = EventAccumulator(str(tmp_path / "curves")).Reload()
    assert sorted(curves.Tags()["scalars"]) == ["loss", "lr"]
    assert [event.step for event in curves.Scalars("loss")] == [10, 20]
    assert [event.value for event in curves.Scalars("loss")] == pytest.approx([0.1, 0.05])
    assert [step.step for step in told] == [10, 20]  # and the bar moves on


def test_curves_have_to_be_written_somewhere(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotCreateError), tensorboard(tmp_path / "file", lambda _: None):
        pass


@pytest.mark.parametrize("installed", [True, False])
def test_without_tensorboard_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], installed: bool
) -> None:
    write_recording(tmp_path / "normal.csv", simulate(30, seed=1, rate_hz=50))
    places = ["--data", str(tmp_path / "normal.csv"), "--out", str(tmp_path / "run")]
    small = ["--set", "training.steps=10", "--set", "encoder.width=16"]
    monkeypatch.setattr(sys, "argv", ["amiss", "train", *places, *small, "--tensorboard", str(tmp_path / "curves")])
    if not installed:
        monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(SystemExit) as end:
        amiss.main()
    assert end.value.code == (0 if installed else 69)
    assert ("pip install 'amiss[tensorboard]'" in capsys.readouterr().err) != installed
    assert (tmp_path / "run").exists() == installed == (tmp_path / "curves").exists()


def test_curves_are_not_loaded_unasked() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, trainer.train; print('tensorboard' in sys.modules, 'ray' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False False\n"
