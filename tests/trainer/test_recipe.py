"""Recipes: defaults, files, overrides, and errors that name key and cure."""

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.errors import ConfigError, NoInputError
from trainer import recipe as recipes
from trainer.recipe import Recipe, apply_overrides, as_toml, parse

SHIPPED = Path(recipes.__file__).with_name("recipes")
BENCHMARKED = sorted(set(SHIPPED.glob("*.toml")) - {SHIPPED / "default.toml"})


def test_an_empty_file_is_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("")
    assert recipes.load(tmp_path / "recipe.toml") == Recipe()


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('data = ["normal", "/absolute"]\nwindow = 64\n[training]\nsteps = 5\n')
    recipe = recipes.load(tmp_path / "recipe.toml")
    assert recipe.data == (str(tmp_path / "normal"), "/absolute")
    assert (recipe.window, recipe.hop_samples, recipe.training.steps) == (64, 16, 5)


def test_survives_a_round_trip_through_json() -> None:
    recipe = Recipe(window=48, hop=7, rate_hz=2.5)
    assert msgspec.json.decode(msgspec.json.encode(recipe), type=Recipe) == recipe


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"windw": 32}, "did you mean `window`"),
        ({"training": {"step": 3}}, "`training.step`; did you mean `steps`"),
        ({"training": {"steps": 0}}, "training.steps: expected `int` >= 1"),
        ({"encoder": {"kind": "lstmm"}}, "encoder.kind"),
        ({"encoder": {"kernel": 4}}, "encoder.kernel: 4 is even"),
        ({"encoder": {"size": "21k"}}, "encoder.size"),
        ({"encoder": {"size": "50k", "width": 32}}, "encoder.size: 50k is width 64 and depth 4 for tcn; say either"),
        ({"encoder": {"kind": "lstm", "size": "5k", "depth": 2}}, "encoder.size: 5k is width 18 and depth 1 for lstm"),
        ({"encoder": {"kind": "conv", "separable": True}}, "encoder.separable: conv has no"),
        ({"encoder": {"kind": "gru", "kernel": 5}}, "encoder.kernel: gru has no"),
        ({"encoder": {"kind": "transformer", "width": 50}}, "encoder.width: 50 does not divide among 4 heads; take 52"),
        ({"window": 32, "hop": 33}, "hop: 33 leaves samples"),
        ({"window": 8, "pretext": {"patch": 8}}, "pretext.patch"),
        ({"pretext": {"time_ratio": 0, "channel_ratio": 0}}, "nothing is ever hidden"),
        ({"pretext": {"weights": {"vicregg": 1}}}, "`pretext.weights.vicregg`; did you mean `vicreg`"),
        ({"pretext": {"weights": {"vicreg": -1}}}, "pretext.weights.vicreg: expected `float` >= 0"),
        ({"pretext": {"weights": {"masked": 0}}}, "pretext.weights.masked: expected `float` > 0"),
        ({"pretext": {"weights": {"contrast": float("inf")}}}, "pretext.weights.contrast"),
        ({"pretext": {"weights": {"contrast": float("nan")}}}, "pretext.weights.contrast"),
        (
            {"window": 8, "pretext": {"patch": 4, "weights": {"forecast": 1}}, "encoder": {"stride": 8}},
            "pretext.weights.forecast: a window of 8 samples",
        ),
        ({"missing": {"max_fil": 1}}, "did you mean `max_fill`"),
        ({"scorer": "knnn"}, "scorer"),
    ],
)
def test_refuses(data: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(data)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_no_file_and_no_toml(tmp_path: Path) -> None:
    with pytest.raises(NoInputError):
        recipes.load(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("window = ")
    with pytest.raises(ConfigError, match=r"bad\.toml: not valid TOML"):
        recipes.load(tmp_path / "bad.toml")


def test_overrides() -> None:
    recipe = apply_overrides(Recipe(), ["training.steps=300", "window = 64", "scorer=knn", "rate_hz=2.5", "training.lr=1e-3"])
    assert recipe.training == msgspec.structs.replace(Recipe().training, steps=300, lr=1e-3)
    assert (recipe.window, recipe.scorer, recipe.rate_hz) == (64, "knn", 2.5)


def test_a_pretext_is_added_by_its_weight() -> None:
    assert Recipe().pretext.tasks == {"masked": 1.0}
    recipe = apply_overrides(Recipe(), ["pretext.weights.vicreg=0.1", "pretext.weights.contrast=2"])
    assert recipe.pretext.tasks == {"masked": 1.0, "contrast": 2.0, "vicreg": 0.1}
    with pytest.raises(ConfigError, match="did you mean `injected`"):
        apply_overrides(Recipe(), ["pretext.weights.injectd=1"])


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    pairs = ["window=64", "hop=7", "rate_hz=1e16", "encoder.kind=gru", "encoder.separable=false", "training.lr=1e-5"]
    recipe = apply_overrides(Recipe(), [*pairs, "pretext.weights.vicreg=0.1", "missing.max_fill=0"])
    for named in (Recipe(), recipe, msgspec.structs.replace(recipe, data=("/a b/ü.csv", '/"quoted"\\\t\x7f'))):
        (tmp_path / "recipe.toml").write_text(as_toml(named), "utf-8")
        assert recipes.load(tmp_path / "recipe.toml") == named
    assert as_toml(Recipe()) == ""


@pytest.mark.parametrize("pair", ["steps", "=3", "training.=3", "window.x=3", "training.stepz=3", "window=many", "training=3"])
def test_overrides_refuse(pair: str) -> None:
    with pytest.raises(ConfigError):
        apply_overrides(Recipe(), [pair])


def leaves(data: dict[str, Any], prefix: str = "") -> dict[str, object]:
    """Key, as `--set` has it → value."""
    found: dict[str, object] = {}
    for key, value in data.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def test_the_default_written_out_is_the_default() -> None:
    path = SHIPPED / "default.toml"
    assert recipes.load(path) == Recipe()
    text = path.read_text("utf-8")
    defaults = leaves(msgspec.json.decode(msgspec.json.encode(Recipe())))
    assert leaves(tomllib.loads(text)) == {key: value for key, value in defaults.items() if value is not None}
    # What has no value cannot be written in TOML; with its # taken away each line is one that is accepted, under its table.
    uncommented = tomllib.loads(re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE))
    assert leaves(uncommented).keys() == defaults.keys()
    without_size = {key: value for key, value in uncommented["encoder"].items() if key != "size"}
    assert parse(uncommented | {"encoder": without_size}) != Recipe()
    assert not [line for line in text.splitlines() if len(line) > 128]
    bare = [line for line in text.splitlines() if re.match(r"(# )?\w+ = ", line) and not re.search(r" # \w", line[2:])]
    assert not bare, "a key without a word on what it does"


@pytest.mark.parametrize("path", BENCHMARKED, ids=lambda path: path.stem)
def test_the_benchmarks_have_one_recipe(path: Path) -> None:
    recipe = recipes.load(path)
    written = leaves(tomllib.loads(path.read_text("utf-8")))
    assert written.keys() <= {"window", "hop", "rate_hz"}
    assert all(value != getattr(Recipe(), key) for key, value in written.items()), "says what is the default anyway"
    named = re.search(r"-(\d+)$", path.stem)
    assert named is None or recipe.window == int(named[1])


def test_every_row_of_the_results_has_its_recipe() -> None:
    assert {path.name for path in BENCHMARKED} == {
        *("skab-32.toml", "skab-64.toml", "smd-32.toml", "smd-64.toml", "cwru.toml", "femto.toml")
    }
