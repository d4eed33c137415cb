"""Search spaces: what they hold, and that a mistake is told before the first hour is spent."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import ConfigError
from quantize.space import Choice, Range, default_space, load_space, parse_space, recipe_at, values_of
from trainer import recipe as recipes
from trainer.recipe import Recipe, apply_overrides


def test_a_table_of_lists_and_ranges(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("""
        window = 64
        [search]
        window = [32, 64]
        "encoder.size" = ["5k", "30k"]
        pretext.weights.forecast = { low = 0.0, high = 3.0 }
        training.lr = { low = 1e-4, high = 1e-2, log = true }
        training.steps = { low = 200, high = 1000, step = 200 }
        [search.encoder]
        embedding = [8, 16]
    """)
    base = recipes.load(path)
    assert base == Recipe(window=64)  # a run knows nothing of the space
    space = load_space(path, base)
    assert space == {
        "window": Choice((32, 64)),
        "encoder.size": Choice(("5k", "30k")),
        "pretext.weights.forecast": Range(0.0, 3.0),
        "training.lr": Range(1e-4, 1e-2, log=True),
        "training.steps": Range(200, 1000, 200),
        "encoder.embedding": Choice((8, 16)),
    }
    made = recipe_at(base, {"window": 32, "pretext.weights.forecast": 0.5, "training.steps": 400})
    assert (made.window, made.pretext.tasks, made.training.steps) == (32, {"masked": 1.0, "forecast": 0.5}, 400)
    # The recipe's own size and learning rate are what it means by saying nothing; embedding too.
    assert values_of(base, space) == {
        "window": 64,
        "encoder.size": "30k",
        "pretext.weights.forecast": 0.0,
        "training.lr": 3e-3,
        "training.steps": 600,
        "encoder.embedding": 16,
    }


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({}, "names no key"),
        ([1], "names no key"),
        ({"windw": [32]}, "unknown key `windw`; did you mean `window`"),
        ({"encoder": {"siz": ["5k"]}}, "unknown key `encoder.siz`; did you mean `size`"),
        ({"pretext.weights.forcast": {"low": 0.0, "high": 1.0}}, "did you mean `forecast`"),
        ({"window.length": [3]}, "window"),
        ({"encoder.size": ["5k", "6k"]}, "encoder.size"),
        ({"window": [32, 4]}, "window: expected `int` >= 8"),
        ({"window": []}, "window: a list"),
        ({"window": [[32]]}, "window: a list"),
        ({"window": 32}, "window: say which values to try"),
        ({"window": {"low": 32}}, "window: low and high are two numbers"),
        ({"window": {"low": 64, "high": 32}}, "the first below the second"),
        ({"window": {"low": 32, "high": math.inf}}, "low and high are two numbers"),
        ({"window": {"low": True, "high": 64}}, "low and high are two numbers"),
        ({"window": {"low": 32, "high": 64, "stepp": 2}}, "unknown key `stepp`"),
        ({"window": {"low": 32, "high": 64, "step": 5}}, "step is a number that leads from 32 to 64"),
        ({"window": {"low": 32, "high": 64, "step": 0.5}}, "whole if they are"),
        ({"training.lr": {"low": 0.0, "high": 1.0, "log": True}}, "low is above 0"),
        ({"training.lr": {"low": 0.0, "high": 1.0}}, "training.lr: expected `float` > 0"),
        ({"data": ["a"]}, "data"),
        (
            {"encoder.kernel": [3, 4]},
            "encoder.kernel = 4: none of 200 recipes drawn with it can be trained; of the first: recipe:",
        ),
        ({"encoder.kind": ["gru"], "encoder.kernel": [3, 5]}, "encoder.kernel = 5: none of 200 recipes"),
    ],
)
def test_refuses(table: Any, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_space(table, Recipe(), "recipe.toml: [search]")
    assert told in str(error.value)
    assert str(error.value).startswith("recipe.toml: [search]")
    assert "\n" not in str(error.value)


def test_what_cannot_be_had_together_is_no_mistake_of_the_space() -> None:
    space = parse_space({"encoder.kind": ["tcn", "gru"], "encoder.kernel": [3, 5]}, Recipe(), "x")
    with pytest.raises(ConfigError, match="gru has no convolutions"):
        recipe_at(Recipe(), {"encoder.kind": "gru", "encoder.kernel": 5})
    assert space["encoder.kernel"] == Choice((3, 5))


@pytest.mark.parametrize("overrides", [[], ["hop=20"], ["window=48"], ["encoder.width=40"], ["pretext.patch=16"]])
def test_the_default_space_fits_the_recipe(overrides: list[str]) -> None:
    base = apply_overrides(Recipe(), overrides)
    space = default_space(base)
    assert "pretext.weights.injected" not in space  # the very faults that detection is measured with
    rng = np.random.default_rng(0)
    for _ in range(100):
        recipe_at(base, {key: domain.draw(rng) for key, domain in space.items()})


@given(low=st.floats(1e-6, 1e3), factor=st.floats(1.01, 1e3), whole=st.booleans(), log=st.booleans(), seed=st.integers(0, 99))
def test_a_range_holds_what_is_drawn_from_it(low: float, factor: float, whole: bool, log: bool, seed: int) -> None:
    domain = Range(math.ceil(low), math.ceil(low * factor) + 1, None, log) if whole else Range(low, low * factor, None, log)
    values = [domain.draw(np.random.default_rng([seed, i])) for i in range(20)]
    assert all(domain.holds(value) or value == pytest.approx(domain.high) for value in values)
    assert all(isinstance(value, int) is whole for value in values)
    assert not domain.holds(domain.high * 2)
    assert not domain.holds(str(domain.low))


def test_steps() -> None:
    domain = Range(200, 1000, 200)
    assert {domain.draw(np.random.default_rng(i)) for i in range(100)} == {200, 400, 600, 800, 1000}
    assert domain.holds(600)
    assert not domain.holds(500)
