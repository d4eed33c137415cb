"""What a search may change: keys of a recipe, and the values that each may take. Pure.

    [search]
    window = [16, 32, 64]                                       a list: one of these
    "encoder.size" = ["5k", "30k"]
    "pretext.weights.forecast" = { low = 0.0, high = 3.0 }      a range: any value between, both ends included
    "training.lr" = { low = 1e-4, high = 1e-2, log = true }     … by its logarithm
    "training.steps" = { low = 200, high = 1000, step = 200 }   … in steps; whole when both ends are written so

Each key and each value is checked here, before the first hour is spent: some recipe of the space has to take it. What cannot be
had together is found out when it comes up, and only that one recipe fails.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import msgspec
import numpy as np

from edge.errors import ConfigError
from edge.scoring.ensemble import DEFAULT_SCORER
from trainer import recipe as recipes
from trainer.recipe import DEFAULT_SIZE, Recipe

Scalar = bool | int | float | str
DRAWN = 200
"""Recipes drawn to see whether any of them can be trained at all."""


@dataclass(frozen=True, slots=True)
class Choice:
    values: tuple[Scalar, ...]

    def holds(self, value: object) -> bool:
        # 1 == True == 1.0 in Python, but not in a recipe.
        return any(type(value) is type(ours) and value == ours for ours in self.values)

    def draw(self, rng: np.random.Generator) -> Scalar:
        return self.values[rng.integers(len(self.values))]

    def ends(self) -> tuple[Scalar, ...]:
        return self.values


@dataclass(frozen=True, slots=True)
class Range:
    """Whole numbers when both ends are `int`, else any."""

    low: int | float
    high: int | float
    step: int | float | None = None
    log: bool = False

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int)

    def holds(self, value: object) -> bool:
        if not isinstance(value, int if self.whole else float) or isinstance(value, bool) or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / (self.step or 1)
        return self.step is None or abs(steps - round(steps)) < 1e-9

    def draw(self, rng: np.random.Generator) -> Scalar:
        share = rng.random()
        value = self.low * (self.high / self.low) ** share if self.log else self.low + share * (self.high - self.low)
        if self.step:
            value = min(self.high, self.low + round((value - self.low) / self.step) * self.step)
        return round(value) if self.whole else float(value)

    def ends(self) -> tuple[Scalar, ...]:
        return self.low, self.high


Space = dict[str, Choice | Range]
"""By dotted key, such as `encoder.size`."""


def load_space(path: Path, base: Recipe) -> Space:
    """The table `search` of recipe.toml, or the default space when there is none. Raises like `trainer.recipe.load`."""
    table = recipes.read(path).get("search")
    return default_space(base) if table is None else parse_space(table, base, f"{path}: [search]")


def default_space(base: Recipe) -> Space:
    """What is worth trying around a recipe that says nothing itself.

    Not the pretext `injected`: detection is measured with the very faults that it teaches.
    """
    windows = [n for n in (16, 32, 64, 128) if n >= base.hop_samples and n > base.pretext.patch]
    space: Space = {
        "window": Choice(tuple(windows) if base.hop else tuple(sorted({*windows, base.window}))),
        "encoder.kind": Choice(("tcn", "conv", "transformer")),
        "encoder.size": Choice(("5k", "20k", "30k", "50k")),
        "pretext.weights.contrast": Choice((0.0, 0.3, 1.0)),
        "pretext.weights.vicreg": Choice((0.0, 0.1, 1.0)),
        "pretext.weights.forecast": Choice((0.0, 0.3, 1.0)),
        "scorer": Choice(tuple(dict.fromkeys((base.scorer, DEFAULT_SCORER, "mahalanobis", "knn")))),
    }
    if base.encoder.width is not None or base.encoder.depth is not None:
        del space["encoder.size"]  # it says the same thing in another way
    return require_some(space, base, "the default space")


def parse_space(table: Any, base: Recipe, where: str) -> Space:
    """Raises `ConfigError` for a key that no recipe has, a value that no recipe takes, or a space without a single recipe."""
    if not isinstance(table, dict) or not table:
        raise ConfigError(f'{where}: names no key; for example window = [16, 32, 64] or "encoder.size" = ["5k", "30k"]')
    space = {key: _domain(found, f"{where}: {key}") for key, found in _flat(table, "")}
    for key, domain in space.items():
        for value in domain.ends():
            recipes.typed(_with(base, {key: value}), where)
            require_some(space | {key: Choice((value,))}, base, f"{where}: {key} = {value!r}")
    return space


def require_some(space: Space, base: Recipe, where: str) -> Space:
    """The space again; raises `ConfigError` when no recipe drawn from it, of many, can be had together."""
    rng = np.random.default_rng(0)
    first: ConfigError | None = None
    for _ in range(DRAWN):
        try:
            recipe_at(base, {key: domain.draw(rng) for key, domain in space.items()})
        except ConfigError as error:
            first = first or error
        else:
            return space
    raise ConfigError(f"{where}: none of {DRAWN} recipes drawn with it can be trained; of the first: {first}")


def recipe_at(base: Recipe, values: Mapping[str, Scalar], where: str = "recipe") -> Recipe:
    """The recipe with other values at some dotted keys; raises `ConfigError` when they cannot be had together."""
    return recipes.parse(_with(base, values), where)


def values_of(base: Recipe, space: Space) -> dict[str, Scalar]:
    """Of the keys in the space, where the recipe stands by itself, as far as the space holds it."""
    found: dict[str, Scalar] = {}
    for key, domain in space.items():
        at: Any = msgspec.to_builtins(base)
        for part in key.split("."):
            at = at[part]
        if key == "encoder.size" and at is None and base.encoder.width is None and base.encoder.depth is None:
            at = DEFAULT_SIZE
        if domain.holds(at):
            found[key] = at
    return found


def _with(base: Recipe, values: Mapping[str, Scalar]) -> dict[str, Any]:
    data: dict[str, Any] = msgspec.to_builtins(base)
    for key, value in values.items():
        *path, last = key.split(".")
        at = data
        for part in path:
            inner = at.setdefault(part, {})
            if not isinstance(inner, dict):  # a value with a key below it, which is no key of a recipe
                inner = at[part] = {}
            at = inner
        at[last] = value
    return data


def _flat(table: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    """`encoder.size = …` is a table in a table for TOML; what has a low or a high is a range."""
    found: list[tuple[str, Any]] = []
    for key, value in table.items():
        if isinstance(value, dict) and not value.keys() & {"low", "high"}:
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((prefix + key, value))
    return found


def _domain(found: Any, where: str) -> Choice | Range:
    if isinstance(found, list):
        if not found or not all(isinstance(value, bool | int | float | str) for value in found):
            raise ConfigError(f"{where}: a list of texts, numbers or true and false is expected, with one at least")
        return Choice(tuple(dict.fromkeys(found)))
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: say which values to try: a list, or {{ low = …, high = … }}")
    if unknown := found.keys() - {"low", "high", "step", "log"}:
        raise ConfigError(f"{where}: unknown key `{min(unknown)}`; a range has low, high, step and log")
    low, high, step, log = found.get("low"), found.get("high"), found.get("step"), found.get("log", False)
    if not _number(low) or not _number(high) or low >= high:
        raise ConfigError(f"{where}: low and high are two numbers, the first below the second")
    if not isinstance(log, bool) or (log and (low <= 0 or step is not None)):
        raise ConfigError(f"{where}: log is true or false, and with it low is above 0 and there is no step")
    if isinstance(low, int) != isinstance(high, int):
        low, high = float(low), float(high)
    if step is not None:
        steps = (high - low) / step if _number(step) and step > 0 else 0.5
        if abs(steps - round(steps)) > 1e-9 or (isinstance(low, int) and not isinstance(step, int)):
            raise ConfigError(f"{where}: step is a number that leads from {low:g} to {high:g}, whole if they are")
    return Range(low, high, step, log)


def _number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
