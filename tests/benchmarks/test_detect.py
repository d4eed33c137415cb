"""The glue of `make bench-detect` on made-up data: who sees which rows, and that scores, rows and labels stay together."""

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from small_bundle import CHANNELS, build, normal

from benchmarks import baselines, detect, detect_data
from benchmarks.detect import Row, best_f1, commissioned, row_scores, scaled, table, verdict
from edge.bundle import Bundle
from edge.errors import NoInputError
from edge.operating.commission import commission
from edge.operating.score import judge_recording
from edge.scoring.backends import Backend, Outputs, run_in_slices
from edge.sensing.recordings import Recording, write_recording
from edge.signal import Float32
from trainer.baselines import standardised
from trainer.checkpoint import load_detector
from trainer.metrics import auroc
from trainer.model import Detector
from trainer.recipe import EncoderRecipe, Recipe, TrainingRecipe, as_toml
from trainer.train import deterministic, train

PLAIN = tuple(b for b in baselines.BASELINES if b.name.startswith(("mean", "PCA", "k-means")))
"""Those that do without scikit-learn."""


def recording(n: int, seed: int = 0, fault: slice | None = None) -> Recording:
    """Noise at 100 Hz, and a shift in all channels where it is faulty."""
    x, label = normal(n, seed), np.zeros(n, np.int8)
    if fault is not None:
        x[:, fault] += 4
        label[fault] = 1
    time_ns = np.arange(n, dtype=np.int64) * 10_000_000
    return Recording("r", CHANNELS, time_ns, x, label if fault is not None else None)


def test_in_memory_is_what_the_verb_writes(tmp_path: Path) -> None:
    bundle = build(tmp_path / "fleet.amiss")
    own = recording(3000, seed=7)
    write_recording(tmp_path / "own.csv", own)
    commission(bundle, [tmp_path / "own.csv"], tmp_path / "own.amiss", trusted=True)
    test = recording(500, seed=8, fault=slice(200, 300))
    ours = judge_recording(commissioned(Bundle.open(bundle), own), test, hop=1)
    verbs = judge_recording(Bundle.open(tmp_path / "own.amiss"), test, hop=1)
    np.testing.assert_array_equal(ours.score, verbs.score)
    np.testing.assert_array_equal(ours.p_value, verbs.p_value)


def test_a_row_is_scored_by_the_window_around_it(tmp_path: Path) -> None:
    bundle = commissioned(Bundle.open(build(tmp_path / "b.amiss")), recording(3000, seed=7))
    test = recording(500, seed=8, fault=slice(200, 300))
    score = row_scores(bundle, test)
    x = np.lib.stride_tricks.sliding_window_view(test.x, 16, axis=1).transpose(1, 0, 2)
    direct = bundle.head.scorer.score(run_in_slices(bundle.backend, x))
    # The middle of window i lies between rows i + 7 and i + 8; of two that are as near, the earlier one speaks.
    np.testing.assert_allclose(score[8:493], direct, rtol=1e-5)
    assert test.label is not None
    assert auroc(score, test.label) > 0.97
    assert auroc(np.roll(score, 60), test.label) < 0.9, "shifted scores look as good: this test sees no misalignment"


def test_a_row_in_a_gap_takes_the_nearest_score(tmp_path: Path) -> None:
    bundle = commissioned(Bundle.open(build(tmp_path / "b.amiss")), recording(3000, seed=7))
    whole = recording(500, seed=8, fault=slice(200, 300))
    assert whole.label is not None
    # A hole, nine rows too few for a window, a hole: nobody speaks for the nine.
    kept = np.r_[0:250, 270:279, 300:500]
    holed = Recording("r", CHANNELS, whole.time_ns[kept], whole.x[:, kept], whole.label[kept])
    score = row_scores(bundle, holed)
    assert len(score) == len(kept)
    assert np.isfinite(score).all()
    np.testing.assert_array_equal(score[250:254], np.full(4, score[249]))
    np.testing.assert_array_equal(score[256:259], np.full(3, score[259]))


def test_one_step_leaves_the_weights_as_drawn(tmp_path: Path) -> None:
    write_recording(tmp_path / "r.csv", recording(3000))
    small = EncoderRecipe(width=8, depth=2, embedding=4)
    for steps in (1, 2):
        recipe = Recipe(window=16, encoder=small, training=TrainingRecipe(steps=steps, batch=8, seed=3))
        train(recipe, [tmp_path / "r.csv"], tmp_path / f"run{steps}")
        trained = dict(load_detector(tmp_path / f"run{steps}")[0].named_parameters())
        with deterministic(3, 1):
            drawn = dict(Detector(2, recipe).named_parameters())
        equal = [torch.equal(trained[name], parameter) for name, parameter in drawn.items()]
        assert all(equal) == (steps == 1), "one step is to change nothing, two are"


class OtherWeights:
    """The model of another seed: what is measured is the same, what is learned is not."""

    name = "other weights"

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def run(self, x: Float32) -> Outputs:
        found = self._backend.run(x)
        return dataclasses.replace(found, embedding=found.embedding**3)

    def versions(self) -> dict[str, str]:
        return {}


@pytest.mark.parametrize(("scorer", "alike"), [("subspace(trace) + knn(signal)", True), ("mahalanobis(features)", False)])
def test_what_is_judged_once_is_the_same(tmp_path: Path, scorer: str, alike: bool) -> None:
    own, test = recording(2000, seed=7), recording(400, seed=8, fault=slice(200, 300))
    path = build(tmp_path / "b.amiss", scorer=scorer)
    one, other = Bundle.open(path), Bundle.open(path)
    other.backend = OtherWeights(other.backend)
    assert (detect.seen(one, own) == detect.seen(other, own)) == alike
    first, second = (row_scores(commissioned(bundle, own), test) for bundle in (one, other))
    assert np.array_equal(first, second) == alike
    assert detect.seen(one, own) != detect.seen(one, recording(2000, seed=9))


def test_best_f1_by_hand() -> None:
    label = np.array([0, 0, 1, 1, 0], np.int8)
    assert best_f1(np.array([0.1, 0.2, 0.8, 0.9, 0.3]), label) == 1
    assert best_f1(np.array([0.1, 0.2, 0.8, 0.9, 0.85]), label) == pytest.approx(0.8)  # three flagged, two of them right
    assert best_f1(np.zeros(5), label) == pytest.approx(2 * 0.4 / 1.4)  # all or nothing


def test_scaling_keeps_the_order_and_survives_infinity() -> None:
    np.testing.assert_allclose(scaled(np.array([2.0, np.inf, 4.0, 3.0, np.nan])), [0, 1, 1, 0.5, 1])
    np.testing.assert_array_equal(scaled(np.full(3, np.inf)), 0)


@pytest.mark.parametrize("baseline", PLAIN, ids=lambda b: b.name)
def test_baselines_find_what_is_plain(baseline: baselines.Baseline) -> None:
    test = recording(600, seed=1, fault=slice(200, 320))
    a, b = standardised(recording(2000, seed=2), test)
    score = baseline.score(a, b, 0)
    assert score.shape == (600,)
    assert test.label is not None
    assert auroc(score, test.label) > 0.9


def write_skab(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        part = recording(600, seed=number, fault=slice(500, 520))
        write_recording(folder / name, part)
    write_recording(folder / "anomaly-free" / "anomaly-free.csv", recording(500, seed=99))


def test_skab_splits_as_its_authors_do(tmp_path: Path) -> None:
    write_skab(tmp_path, "valve1/0.csv", "valve2/0.csv", "other/1.csv", "other/2.csv")
    (group,) = detect_data.skab(tmp_path)
    assert [case.name for case in group.cases] == ["other-1", "valve1-0", "valve2-0"]
    assert [len(r.time_ns) for r in group.training] == [400, 400, 400, 500]
    assert all(r.label is None for r in group.training)
    for case in group.cases:
        assert len(case.normal.time_ns) == 400
        assert case.normal.label is None
        assert case.test.time_ns[0] > case.normal.time_ns[-1]
        assert case.test.label is not None
        assert case.test.label.sum() == 20
    assert len(detect_data.skab(tmp_path, 2)[0].cases) == 2
    with pytest.raises(NoInputError, match="amiss datasets fetch skab"):
        detect_data.skab(tmp_path / "nowhere")


def test_smd_has_an_encoder_per_machine(tmp_path: Path) -> None:
    for name in ("b", "a"):
        train_rows, test_rows = normal(50).T, normal(40).T
        np.savez(tmp_path / f"{name}.npz", train=train_rows, test=test_rows, test_label=np.arange(40) > 30)
    groups = detect_data.smd(tmp_path)
    assert [group.name for group in groups] == ["a", "b"]
    (case,) = groups[0].cases
    assert groups[0].training == (case.normal,)
    assert case.normal.label is None
    assert case.test.label is not None
    assert case.test.label.sum() == 9
    assert case.test.rate_hz == pytest.approx(1 / 60)
    np.testing.assert_array_equal(case.test.x, normal(40))


def test_the_report_says_what_wins() -> None:
    better, worse = Row("PCA"), Row("int8, windows of 32", ours=True)
    for seed in (0.0, 0.02):
        worse.add("f", dict.fromkeys(detect.COLUMNS, 0.7 + seed))
    better.add("f", dict.fromkeys(detect.COLUMNS, 0.6) | {"vus_pr": 0.9})
    assert worse.cell("auroc") == ".710 ± .014"
    assert better.cell("vus_pr") == ".900"
    assert verdict([better, worse]) == ["- **int8, windows of 32** loses to PCA (VUS-PR)."]
    better.files["f"][0]["vus_pr"] = 0.1
    assert "is ahead of every other row" in verdict([better, worse])[0]
    assert len({len(line) for line in table([better, worse])}) == 1


def test_all_of_it_on_something_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Recipe(window=16, encoder=EncoderRecipe(width=8, depth=2, embedding=4), training=TrainingRecipe(steps=8, batch=8))
    (tmp_path / "skab-16.toml").write_text(as_toml(small), "utf-8")
    monkeypatch.setattr(detect, "RECIPES", tmp_path)
    monkeypatch.setattr(detect, "BASELINES", PLAIN)
    monkeypatch.setattr(detect, "versions", lambda: {"Python": "3"})
    write_skab(tmp_path / "data" / "skab", "valve1/0.csv", "other/1.csv")
    arguments = ["--sets", "skab", "--seeds", "1", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    before = detect.RESULTS.read_bytes() if detect.RESULTS.exists() else None
    detect.main(arguments)
    printed = capsys.readouterr().out
    assert "**int8, windows of 16**" in printed
    made = msgspec.json.decode((tmp_path / "out" / "detect.json").read_bytes())
    assert len(made["sets"]["skab"]["int8, windows of 16"]["files"]["valve1-0"]) == 1
    written = (tmp_path / "out" / "results.md").read_text("utf-8")
    assert "Where ours loses" in written
    assert "- `skab-16.toml`: `window = 16`, `encoder.width = 8`" in written
    assert (detect.RESULTS.read_bytes() if detect.RESULTS.exists() else None) == before, "a part replaced the results of all"
    bundles = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "encoders").glob("*.amiss")}
    assert len(bundles) == 3
    detect.main(arguments)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "encoders").glob("*.amiss")} == bundles, "made again"
    assert capsys.readouterr().out == printed
