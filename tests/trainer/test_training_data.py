"""Recordings → windows and the split in time."""

import dataclasses
import tempfile
import tracemalloc
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import DataError, NoInputError
from edge.sensing.recordings import Recording, write_recording
from trainer import data, rhythm, rows
from trainer.model import Detector
from trainer.recipe import Recipe, TrainingRecipe, apply_overrides
from trainer.windows import Spool, lay_out

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
    rows = found.fit[:][:, 0]
    assert found.fit.shape[1:] == (2, 16)
    assert (np.diff(rows, axis=1) == 1).all()
    assert {bool(row[0] >= 1000) for row in rows} == {True, False}


def test_fit_and_calibration_lie_a_window_apart(tmp_path: Path) -> None:
    # Long enough for several blocks, each of which is split.
    found = data.load(written(tmp_path, a=recording(1500)), RECIPE)
    fit, held = (set(np.unique(part[:][:, 0]).astype(int).tolist()) for part in (found.fit, found.calibration))
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
    rows = np.concatenate([found.fit[:], found.calibration[:]])[:, 0]
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


# What is found for someone who has recordings and nothing else


@pytest.mark.parametrize("period", [5, 24, 90])
def test_a_rhythm_is_found_under_noise_drift_and_holes(period: int) -> None:
    rng = np.random.default_rng(period)
    x = tone(period, 4000).x[0] + rng.normal(0, 0.5, 4000).astype(np.float32) + np.linspace(0, 20, 4000, dtype=np.float32)
    x[100:120] = np.nan
    x[7] = 1e30
    found, likeness = rhythm.rhythm(x)
    assert found == pytest.approx(period, abs=0.02 * period + 0.5)
    assert likeness > rhythm.CLEAR


def test_where_there_is_none_none_is_found() -> None:
    rng = np.random.default_rng(0)
    for x in (rng.normal(size=4000), np.cumsum(rng.normal(size=4000)), np.full(4000, 3.0), np.full(4000, np.nan)):
        assert rhythm.rhythm(x.astype(np.float32))[1] < rhythm.CLEAR


def test_a_window_is_suggested_and_why(tmp_path: Path) -> None:
    window, why = rhythm.suggest_window(written(tmp_path / "tone", a=tone(24, 5000)), Recipe())
    assert (window, why) == (192, "a of a.csv repeats itself every 24 samples (autocorrelation 1.00)")
    window, why = rhythm.suggest_window(written(tmp_path / "short", a=tone(24, 600)), Recipe())
    assert window == 24
    assert why.endswith("a longer one would leave too few windows")
    window, why = rhythm.suggest_window(written(tmp_path / "none", a=recording(2000)), Recipe())
    assert (window, why) == (32, "nothing in them clearly repeats itself")


@pytest.mark.parametrize("n", [420, 1000, 3000])
def test_the_suggested_window_can_be_trained_on(tmp_path: Path, n: int) -> None:
    folder = written(tmp_path, a=tone(100, n))
    window, _ = rhythm.suggest_window(folder, Recipe())
    data.load(folder, apply_overrides(Recipe(), [f"window={window}"]))


def test_memory_does_not_grow_with_the_overlap(tmp_path: Path) -> None:
    """60,000 windows of 256 samples are 61 MB; the samples are 0.24 MB."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 60_000)).astype(np.float32)
    write_recording(tmp_path / "r.parquet", Recording("r", ("a",), np.arange(60_000, dtype=np.int64) * SECOND, x))
    recipe = apply_overrides(Recipe(), ["window=256", "hop=1"])
    tracemalloc.start()
    try:
        found = data.load([tmp_path], recipe)
        Detector(1, recipe).fit_normalisation(found.fit)
        for _ in range(100):
            found.fit[rng.integers(0, len(found.fit), 64)]
        frugal = tracemalloc.get_traced_memory()[1]
        found.fit[:]
        assert tracemalloc.get_traced_memory()[1] > 30e6, "the control"
    finally:
        tracemalloc.stop()
    assert frugal < 30e6


# Nothing leaks


@st.composite
def slices(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Parts of one long recording: one after the other, with pauses, overlapping, or the same once more."""
    found: list[tuple[int, int]] = []
    at = 0
    for _ in range(draw(st.integers(2, 5))):
        length = draw(st.integers(100, 500))
        at = max(0, at + draw(st.sampled_from([0, 0, 1, 5, 9, 100, -1, -30, -length])))
        found.append((at, at + length))
        at += length
    return draw(st.permutations(found))


@given(slices(), st.sampled_from(["time", "recording"]), st.sampled_from([0.2, 0.5]))
@settings(max_examples=40, deadline=None)
def test_no_sample_is_shared_and_none_is_near(parts: list[tuple[int, int]], how: str, held_back: float) -> None:
    recipe = apply_overrides(Recipe(), ["window=9", "pretext.patch=4", "hop=2", f"training.split={how}"])
    recipe = apply_overrides(recipe, [f"training.held_back={held_back}", "quality.strange=ignore"])
    whole = recording(4000, channels=("a",))
    with tempfile.TemporaryDirectory() as folder:
        for i, (start, stop) in enumerate(parts):
            write_recording(Path(folder) / f"{i}.csv", whole.part(start, stop))
        try:
            found = data.load([Path(folder)], recipe)
        except DataError as error:
            assert "at least" in str(error) or "takes two recordings" in str(error)  # noqa: PT017
            return
    fit, held = (np.unique(windows[:]).astype(int) for windows in (found.fit, found.calibration))
    after = np.searchsorted(fit, held)
    to_next = np.where(after < len(fit), fit[np.minimum(after, len(fit) - 1)] - held, 10**9)
    to_last = np.where(after > 0, held - fit[np.maximum(after, 1) - 1], 10**9)
    assert min(to_next.min(), to_last.min()) >= recipe.window


def test_whole_recordings_are_held_back(tmp_path: Path) -> None:
    pieces = {f"r{i}": recording(200, start=1000 * i) for i in range(6)}
    for i, piece in enumerate(pieces.values()):
        piece.time_ns[:] += i * 10_000 * SECOND
    recipe = apply_overrides(RECIPE, ["training.split=recording"])
    found = data.load(written(tmp_path, **pieces), recipe)
    fit, held = ({int(row) // 1000 for row in windows[:][:, 0, 0]} for windows in (found.fit, found.calibration))
    assert held == {1, 4}, "evenly among them"
    assert fit == {0, 2, 3, 5}
    with pytest.raises(DataError, match="takes two recordings"):
        data.load(written(tmp_path / "one", a=recording(400)), recipe)


def test_a_copy_is_used_once_and_told(tmp_path: Path) -> None:
    once = data.load(written(tmp_path / "one", a=recording(400)), RECIPE)
    twice = data.load(written(tmp_path / "two", a=recording(400), b=recording(400)), RECIPE)
    np.testing.assert_array_equal(twice.fit[:], once.fit[:])
    assert [(f.kind, f.recording, f.done) for f in twice.quality if f.kind != "duplicate"] == [("copy", "b.csv", "repaired")]


# Channels and rates


def test_the_order_of_channels_is_of_no_matter(tmp_path: Path) -> None:
    whole = recording(400)
    whole.x[1] *= -1
    turned = dataclasses.replace(recording(400, start=1000), channels=("b", "a"))
    turned.x[0] *= -1
    found = data.load(written(tmp_path, a=whole, b=turned), RECIPE)
    assert found.channels == ("a", "b")
    assert (found.fit[:][:, 0] >= 0).all()
    assert (found.fit[:][:, 1] <= 0).all()


def test_common_channels(tmp_path: Path) -> None:
    other = recording(400, channels=("c", "b"), start=1000)
    folder = written(tmp_path, a=recording(400), b=other)
    with pytest.raises(DataError, match='channels = "common"'):
        data.load(folder, RECIPE)
    found = data.load(folder, apply_overrides(RECIPE, ["channels=common"]))
    assert found.channels == ("b",)
    assert "left out, not in all recordings: a, c" in found.notes
    assert found.fit.shape[1:] == (1, 16)
    written(tmp_path, b=recording(400, channels=("d",)))
    with pytest.raises(DataError, match="no channel is in all"):
        data.load(folder, apply_overrides(RECIPE, ["channels=common"]))


def resampled(whole: Recording, rate_hz: float, *, mean: bool, max_fill: int = 3) -> Recording:
    with tempfile.TemporaryDirectory() as folder:
        write_recording(Path(folder) / "r.csv", whole)
        [source], _ = rows.rows_on_disk(["r"], [Path(folder) / "r.csv"], RECIPE, None)
    [part] = rows.resample(source, source.rate_hz, rate_hz, max_fill, mean=mean)
    return part


def tone(period: float, n: int = 1000) -> Recording:
    x = np.sin(2 * np.pi * np.arange(n) / period).astype(np.float32)[None]
    return Recording("r", ("a",), np.arange(n, dtype=np.int64) * SECOND, x)


def test_resampling_keeps_what_is_slow() -> None:
    for rate_hz, mean in ((4.0, False), (0.25, True), (0.25, False)):
        slow = resampled(tone(200), rate_hz, mean=mean)
        expected = np.sin(2 * np.pi * slow.time_ns / SECOND / 200)
        assert np.abs(slow.x[0] - expected)[2:-2].max() < 0.02, "a mean of four rows is half a row off"
        assert slow.rate_hz == pytest.approx(rate_hz)


def test_the_mean_keeps_what_is_fast_from_coming_back_slow() -> None:
    """2.2 seconds a turn, seen once in 10 seconds."""
    quiet, aliased = (resampled(tone(2.2), 0.1, mean=mean).x[0, 2:-2].std() for mean in (True, False))
    assert aliased > 0.6, "the control"
    assert quiet < 0.2 * aliased


def test_resampling_invents_nothing_in_gaps() -> None:
    whole = tone(200)
    whole.time_ns[500:] += 100 * SECOND
    whole.x[0, 200:250] = np.nan
    for mean in (True, False):
        found = resampled(whole, 0.5, mean=mean)
        at = found.time_ns // SECOND
        assert np.isnan(found.x[0, (at > 504) & (at < 594)]).all()
        assert np.isnan(found.x[0, (at > 202) & (at < 247)]).all()
        assert np.isfinite(found.x[0, (at < 198) | ((at > 252) & (at < 498)) | (at > 602)]).all()


def test_long_recordings_are_resampled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for rate_hz, mean in ((2.5, False), (0.3, True)):
        whole = resampled(tone(20), rate_hz, mean=mean)
        monkeypatch.setattr(rows, "ROWS_PER_PART", 77)
        with tempfile.TemporaryDirectory() as folder:
            write_recording(Path(folder) / "r.csv", tone(20))
            [source], _ = rows.rows_on_disk(["r"], [Path(folder) / "r.csv"], RECIPE, None)
        parts = list(rows.resample(source, 1.0, rate_hz, 3, mean=mean))
        monkeypatch.undo()
        assert len(parts) > 3
        np.testing.assert_allclose(np.concatenate([part.x for part in parts], axis=1), whole.x, atol=1e-6)
        np.testing.assert_array_equal(np.concatenate([part.time_ns for part in parts]), whole.time_ns)


def test_rates_are_brought_together_when_the_recipe_says_so(tmp_path: Path) -> None:
    folder = written(tmp_path, a=recording(400), b=recording(1600, step_ns=SECOND // 4))
    with pytest.raises(DataError, match=r'resample\.method = "mean" and rate_hz'):
        data.load(folder, RECIPE)
    found = data.load(folder, apply_overrides(RECIPE, ["rate_hz=1.0", "resample.method=mean"]))
    assert found.rate_hz == 1
    assert any("b.csv: from 4 to 1 samples per second by the mean of each period" in note for note in found.notes)
    fit = found.fit[:]
    steps = np.diff(fit[:, 0], axis=1)
    assert {round(float(step)) for step in np.unique(steps[:, 2:])} == {1, 4}, "four rows of b in one"


# Bad input


def test_rows_that_go_back_are_refused_or_left_out(tmp_path: Path) -> None:
    folder = written(tmp_path, a=recording(400))
    lines = (tmp_path / "a.csv").read_text().splitlines()
    lines[100:100] = lines[90:95]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r'a\.csv:101: time does not increase.*quality\.unordered = "repair"'):
        data.load(folder, RECIPE)
    found = data.load(folder, apply_overrides(RECIPE, ["quality.unordered=repair"]))
    assert [(f.kind, f.figures, f.done) for f in found.quality if f.kind != "duplicate"] == [
        ("unordered", {"rows": 5.0}, "repaired")
    ]
    clean = data.load(written(tmp_path / "clean", a=recording(400)), RECIPE)
    np.testing.assert_array_equal(found.fit[:], clean.fit[:])


def test_absurd_values_are_missing_or_refused(tmp_path: Path) -> None:
    wild = recording(400)
    wild.x[1, 50:53] = 1e30
    wild.x[1, 200] = np.inf
    folder = written(tmp_path, a=wild)
    found = data.load(folder, RECIPE)
    assert np.abs(found.fit[:]).max() < 1000
    told = [(f.channel, f.figures["values"], f.done) for f in found.quality if f.kind == "absurd"]
    assert told == [("b", 4.0, "repaired")]
    with pytest.raises(DataError, match=r"a\.csv: b: 4 values like"):
        data.load(folder, apply_overrides(RECIPE, ["quality.absurd=refuse"]))


def test_strange_windows_are_left_out_when_the_recipe_says_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = Recording("r", ("a",), np.arange(4000, dtype=np.int64) * SECOND, rng.normal(size=(1, 4000)).astype(np.float32))
    whole.x[0, 1000:1100] += 30
    folder = written(tmp_path, a=whole)
    warned = data.load(folder, RECIPE)
    excluded = data.load(folder, apply_overrides(RECIPE, ["quality.strange=exclude"]))
    assert [(f.kind, f.done) for f in warned.quality] == [("strange", "warned")]
    assert [(f.kind, f.done) for f in excluded.quality] == [("strange", "excluded")]
    assert warned.fit[:].max() > 20, "the control"
    assert max(excluded.fit[:].max(), excluded.calibration[:].max()) < 20
    with pytest.raises(DataError, match="look unlike the others"):
        data.load(folder, apply_overrides(RECIPE, ["quality.strange=refuse"]))


def test_what_is_excluded_is_gone_and_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    still = Recording("r", ("a", "b"), np.arange(400, dtype=np.int64) * SECOND, rng.normal(size=(2, 400)).astype(np.float32))
    still.x[1] = 3
    folder = written(tmp_path, a=still)
    recipe = apply_overrides(RECIPE, ["quality.constant=exclude"])
    found = data.load(folder, recipe)
    assert found.channels == ("a",)
    assert found.fit.shape[1:] == (1, 16)
    moving = dataclasses.replace(still, x=rng.normal(size=(2, 400)).astype(np.float32))
    found = data.load(written(tmp_path, b=moving), recipe)
    assert found.channels == ("a", "b"), "b lives in one of the two"
    assert any("left out by [quality]: a.csv" in note for note in found.notes)
    still.x[0] = 1
    with pytest.raises(DataError, match="nothing is left"):
        data.load(written(tmp_path / "still", a=still), recipe)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(NoInputError):
        data.load([tmp_path / "absent"], RECIPE)


def test_held_back_share_is_kept() -> None:
    recipe = msgspec.structs.replace(RECIPE, training=TrainingRecipe(held_back=0.5))
    whole = recording(300)
    strip = lay_out([whole], 1.0, 16, 4, recipe.missing, Spool(2), Spool(3, np.int64))
    fit, held = data.split(strip, 300, recipe)
    assert fit.sum() == pytest.approx(held.sum(), abs=4)


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


def test_memory_does_not_grow_with_the_windows(tmp_path: Path) -> None:
    """Each takes a byte for each of some masks while it is decided which are learned from, and nothing afterwards."""

    def loaded(rows: int) -> tuple[int, int, int]:
        time_ns = 10**18 + np.arange(rows, dtype=np.int64) * SECOND
        x = np.random.default_rng(0).normal(size=(1, rows)).astype(np.float32)
        path = tmp_path / f"{rows}.parquet"
        write_recording(path, Recording("r", ("a",), time_ns, x))
        del time_ns, x
        tracemalloc.start()
        try:
            found = data.load([path], Recipe(window=16, hop=1), tmp_path)
            held, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        return len(found.fit) + len(found.calibration), held, peak

    loaded(1000)  # what is imported or kept once
    few, many = loaded(1 << 16), loaded(1 << 18)
    held, peak = ((more - less) / (many[0] - few[0]) for more, less in zip(many[1:], few[1:], strict=True))
    assert held < 0.5, f"{held:.1f} bytes a window"
    assert peak < 40, f"{peak:.1f} bytes a window"
