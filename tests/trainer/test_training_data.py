"""Recordings → windows and the split in time."""

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge.errors import DataError, NoInputError
from edge.sensing.recordings import Recording, write_recording
from trainer import data
from trainer.recipes import Recipe, TrainingRecipe

SECOND = 1_000_000_000
RECIPE = Recipe(window=16, hop=4)


def recording(n: int, *, step_ns: int = SECOND, channels: tuple[str, ...] = ("a", "b"), start: int = 0) -> Recording:
    """Every value says which row it is."""
    x = np.tile(np.arange(start, start + n, dtype=np.float32), (len(channels), 1))
    return Recording("r", channels, np.arange(n, dtype=np.int64) * step_ns, x)


def written(folder: Path, **recordings: Recording) -> list[Path]:
    for name, value in recordings.items():
        write_recording(folder / f"{name}.csv", value)
    return [folder]


def test_windows_never_cross_files(tmp_path: Path) -> None:
    found = data.load(written(tmp_path, a=recording(400), b=recording(400, start=1000)), RECIPE)
    rows = found.fit[:, 0]
    assert found.fit.shape[1:] == (2, 16)
    assert (np.diff(rows, axis=1) == 1).all()
    assert {bool(row[0] >= 1000) for row in rows} == {True, False}


def test_fit_and_calibration_lie_a_window_apart(tmp_path: Path) -> None:
    # Long enough for several blocks, each of which is split.
    found = data.load(written(tmp_path, a=recording(1500)), RECIPE)
    fit, held = (set(np.unique(part[:, 0]).astype(int).tolist()) for part in (found.fit, found.calibration))
    assert fit
    assert held
    gap = min(abs(a - b) for a in held for b in fit)
    assert gap > RECIPE.window
    share = len(found.calibration) / (len(found.fit) + len(found.calibration))
    assert 0.15 < share < 0.35


def test_windows_never_cross_gaps(tmp_path: Path) -> None:
    whole = recording(600)
    time_ns = whole.time_ns.copy()
    time_ns[300:] += 100 * SECOND
    found = data.load(written(tmp_path, a=Recording("r", whole.channels, time_ns, whole.x)), RECIPE)
    rows = np.concatenate([found.fit, found.calibration])[:, 0]
    assert not ((rows[:, 0] < 300) & (rows[:, -1] >= 300)).any()


def test_rate_comes_from_the_data_and_is_told(tmp_path: Path) -> None:
    found = data.load(written(tmp_path, a=recording(400, step_ns=SECOND // 4)), RECIPE)
    assert found.rate_hz == pytest.approx(4)
    assert any("rate_hz = 4" in note for note in found.notes)


def test_digests_are_those_of_the_files(tmp_path: Path) -> None:
    import hashlib

    found = data.load(written(tmp_path / "x", a=recording(400)) + written(tmp_path / "y", a=recording(400)), RECIPE)
    assert set(found.digests) == {"x/a.csv", "y/a.csv"}
    assert found.digests["x/a.csv"] == hashlib.sha256((tmp_path / "x/a.csv").read_bytes()).hexdigest()


def test_a_recording_without_a_window_is_left_out_and_told(tmp_path: Path) -> None:
    found = data.load(written(tmp_path, a=recording(400), b=recording(10)), RECIPE)
    assert any("b.csv" in note and "left out" in note for note in found.notes)


@pytest.mark.parametrize(
    ("recordings", "told"),
    [
        ({"a": recording(400), "b": recording(400, channels=("a", "c"))}, "channels"),
        ({"a": recording(400), "b": recording(400, step_ns=SECOND // 2)}, "samples per second"),
        ({"a": recording(12)}, "longest recording, which has 12"),
        ({"a": recording(60)}, "windows to learn from"),
        ({"a": recording(220)}, "held back for calibration"),
        ({"a": recording(1)}, "more than one row"),
    ],
)
def test_refuses(tmp_path: Path, recordings: dict[str, Recording], told: str) -> None:
    with pytest.raises(DataError) as error:
        data.load(written(tmp_path, **recordings), RECIPE)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_refuses_a_rate_that_the_recipe_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the recipe says 2"):
        data.load(written(tmp_path, a=recording(400)), msgspec.structs.replace(RECIPE, rate_hz=2.0))


def test_refuses_what_holds_no_value(tmp_path: Path) -> None:
    empty = recording(400)
    empty.x[:] = np.nan
    with pytest.raises(DataError, match="no finite value"):
        data.load(written(tmp_path / "all", a=empty), RECIPE)
    empty.x[0] = 1
    with pytest.raises(DataError, match="channel b has no finite value"):
        data.load(written(tmp_path / "one", a=empty), RECIPE)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(NoInputError):
        data.load([tmp_path / "absent"], RECIPE)


def test_held_back_share_is_kept() -> None:
    recipe = msgspec.structs.replace(RECIPE, training=TrainingRecipe(held_back=0.5))
    whole = recording(300)
    windows = data.cut(whole, 1.0, 16, 4, recipe.missing)
    fit, held = data.split(windows, whole, recipe)
    assert len(fit) == pytest.approx(len(held), abs=4)


def test_units_travel_and_must_agree(tmp_path: Path) -> None:
    whole = Recording(
        "r", ("a", "b"), np.arange(2000) * 10**7, np.random.default_rng(0).normal(size=(2, 2000)).astype(np.float32)
    )
    write_recording(tmp_path / "x.csv", dataclasses.replace(whole, units={"a": "m/s2"}))
    write_recording(tmp_path / "y.csv", dataclasses.replace(whole, units={"b": "A"}))
    assert data.load([tmp_path], RECIPE).units == {"a": "m/s2", "b": "A"}
    write_recording(tmp_path / "z.csv", dataclasses.replace(whole, units={"a": "g"}))
    with pytest.raises(DataError, match=r"z\.csv has a in g, others in m/s2"):
        data.load([tmp_path], RECIPE)
