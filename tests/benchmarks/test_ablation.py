"""The ablation on made-up figures and data: what is called something, what is called nothing, and who is asked only once."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from small_bundle import CHANNELS, build, normal

from benchmarks import ablation
from benchmarks.ablation import CONTROL, HEADS, KINDS, PRETEXTS, READING, USUAL, VARIANTS, Found, Remembered, heard_by, judged
from benchmarks.detect import Encoders, Judge, commissioned, learned, row_scores
from benchmarks.detect_data import Case, Group
from edge.bundle import Bundle
from edge.scoring.backends import Outputs
from edge.sensing.recordings import Recording
from edge.signal import Float32
from trainer.pretexts import PRETEXTS as TASKS
from trainer.recipe import SIZES, EncoderRecipe, Recipe, TrainingRecipe, apply_overrides, as_toml


def recording(n: int, seed: int, *, fault: bool = False) -> Recording:
    x, label = normal(n, seed), np.zeros(n, np.int8)
    if fault:
        x[:, 200:300] += 4
        label[200:300] = 1
    return Recording("r", CHANNELS, np.arange(n, dtype=np.int64) * 10_000_000, x, label if fault else None)


def test_every_pretext_and_every_kind_has_its_row() -> None:
    recipes = {variant: apply_overrides(Recipe(), [override] if override else []) for variant, override in VARIANTS.items()}
    assert recipes[USUAL] == Recipe()
    assert len(set(map(as_toml, recipes.values()))) == len(VARIANTS)
    assert {name for recipe in recipes.values() for name in recipe.pretext.tasks} == set(TASKS)
    assert {recipe.encoder.kind for recipe in recipes.values()} == set(SIZES)
    assert all(learned(scorer) for scorer in READING)
    assert set(READING) < set(HEADS)


def made_up(seeds: int) -> Found:
    """With the control at .6 ± .01 by every scorer, contrast far above it, the rest on it but for vicreg, far below."""
    found = Found(shipped=dict.fromkeys(VARIANTS, "int8"), recordings=3)
    value = {"masked + contrast": 0.7, "masked + vicreg": 0.5, "masked + forecast": 0.609}
    for variant in VARIANTS:
        for scorer in ablation.scorers_of(variant):
            of = [value.get(variant, 0.6) + 0.01 * (seed % 2 * 2 - 1) for seed in range(seeds)]
            found.figures[variant, scorer] = {column: list(of) for column in ablation.COLUMNS}
    return found


def test_within_the_spread_of_the_control_is_nothing() -> None:
    found = made_up(2)
    assert found.spread((CONTROL, READING[0]), "auroc") == pytest.approx(0.0141, abs=1e-4)
    assert judged(found, "masked + forecast", READING) == "adds nothing"
    assert judged(found, "masked + contrast", READING[:1]) == "adds 0.100 AUROC, 0.100 VUS-PR"
    assert judged(found, "masked + vicreg", READING).startswith("takes away 0.100 AUROC by mahalanobis(features)")
    none, every, *by, ahead, _, _ = ablation.plainly(found)
    assert len(by) == len(READING)
    assert by[0] == f"- Adds nothing by {READING[0]}:" + none.partition(":")[2]
    assert none.endswith(f": {'; '.join(v for v in (*PRETEXTS, *KINDS) if v != 'masked + contrast')}.")
    assert every.endswith(": masked + contrast.")
    assert "masked + contrast by mahalanobis(features)" in ahead
    assert "forecast by" in ahead
    assert "vicreg" not in ahead


def test_one_seed_says_nothing_about_chance() -> None:
    found = made_up(1)
    assert ablation.plainly(found)[0].startswith("One seed")
    assert judged(found, "masked + contrast", READING[:1]) == "AUROC +0.100, VUS-PR +0.100"
    text = ablation.report({"skab": found}, "x", 3)
    assert "1 seed of 3" in text
    assert "nan" not in text


class Counting:
    name = "counting"

    def __init__(self, inner: Bundle) -> None:
        self._inner, self.calls = inner.backend, 0

    def run(self, x: Float32) -> Outputs:
        self.calls += 1
        return self._inner.run(x)

    def versions(self) -> dict[str, str]:
        return {}


def test_another_scorer_hears_the_same_model(tmp_path: Path) -> None:
    bundle = Bundle.open(build(tmp_path / "b.amiss"))
    counting = Counting(bundle)
    own, test = recording(2000, 7), recording(500, 8, fault=True)
    backend, asked = Remembered(counting), []
    for scorer in ("mahalanobis(features)", "knn(signal)"):
        direct = Bundle.open(build(tmp_path / f"{scorer}.amiss", scorer=scorer))
        score = row_scores(commissioned(heard_by(bundle, scorer, backend), own), test)
        np.testing.assert_array_equal(score, row_scores(commissioned(direct, own), test))
        asked.append(counting.calls)
    assert asked[0] == asked[1] > 0
    backend.run(test.x[None, :, :16] + 1)
    assert counting.calls == asked[1] + 1, "other windows were taken for known ones"


def test_a_seed_of_it_on_something_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Recipe(window=16, encoder=EncoderRecipe(width=8, depth=2, embedding=4), training=TrainingRecipe(steps=8, batch=8))
    (tmp_path / "skab-64.toml").write_text(as_toml(small), "utf-8")
    monkeypatch.setattr(ablation, "RECIPES", tmp_path)
    monkeypatch.setattr(ablation, "VARIANTS", {CONTROL: VARIANTS[CONTROL], "lstm": VARIANTS["lstm"]})
    monkeypatch.setattr(ablation, "HEADS", (*READING[:1], "knn(signal)"))
    monkeypatch.setattr(ablation, "READING", READING[:1])
    case = Case("c", recording(1000, 7), recording(500, 8, fault=True))
    group = Group("all", (dataclasses.replace(recording(2000, 1), name="n"),), (case,))
    found = Found()
    judges = {"c": Judge(case.test)}
    ablation.run_seed("skab", [group], 0, Encoders(tmp_path / "encoders"), judges, {}, found)
    assert found.shipped == {CONTROL: "int8", "lstm": "float32"}
    assert set(found.figures) == {(CONTROL, READING[0]), (CONTROL, "knn(signal)"), ("lstm", READING[0])}
    assert found.seeds == 1
    assert all(found.mean(key, "auroc") > 0.7 for key in found.figures)
