"""Which precision ships, and why: rules without I/O. Whoever is refused is told by how much."""

import math
from collections.abc import Mapping
from typing import Literal

import msgspec

from edge.errors import GateError
from quantize.parity import Matrix, Parity
from quantize.target import Board, Instructions, refusals
from trainer.recipe import Budget

Precision = Literal["auto", "int8", "float32"]
Counted = Mapping[str, Instructions] | str
"""By runtime, or why nothing was counted."""


def choose_all(
    measured: Mapping[str, Parity | str],
    table: Matrix,
    precision: Precision,
    budget: Budget,
    target: Board | None = None,
    counted: Counted = "",
    also: str = "",
) -> tuple[str, str]:
    """Precision to ship for all runtimes, and why.

    `measured` is int8 beside float by runtime, or why there is no int8; `table` is every model beside what was trained;
    `counted` is of the target's processor; `also` is said behind what was measured. Raises `GateError` when what is asked
    for, or float, is over budget.
    """
    choices = {}
    for name, found in measured.items():
        made_for = None if target is None else (target, counted if isinstance(counted, str) else counted.get(name, NOT_HERE))
        choices[name] = choose(found, precision, budget, made_for, also)
    refused = [
        f"{name}: {reason}" if len(choices) > 1 else reason for name, (kind, reason) in choices.items() if kind != "int8"
    ]
    if not refused:
        over = table.failures(budget, "int8")
        if over and precision == "int8":
            raise GateError(f"the int8 model is not as good as what was trained: {'; '.join(over)}{also}")
        if not over:
            return "int8", next(iter(choices.values()))[1]
        refused = [f"int8 was over budget: {'; '.join(over)}{also}"]
    if over := table.failures(budget, "float32"):
        raise GateError(f"over budget even in float: {'; '.join(over)}; widen [budget] in the recipe")
    return "float32", "; ".join(dict.fromkeys(refused))


NOT_HERE = "the emulated system has no such runtime"


def choose(
    measured: Parity | str,
    precision: Precision,
    budget: Budget,
    made_for: tuple[Board, Instructions | str] | None = None,
    also: str = "",
) -> tuple[str, str]:
    """Precision to ship for one runtime, and why. Without an int8 model `measured` is the reason. `made_for` is a board and
    what was counted on its processor, or why nothing was; `also` is said behind what was measured.

    Raises `GateError` when `int8` was asked for and there is none, or it is over budget.
    """
    if precision == "float32":
        return "float32", "asked for"
    if isinstance(measured, str):
        if precision == "int8":
            raise GateError(f"no int8 model: {measured}")
        return "float32", measured
    if made_for is not None:
        return _choose_for(*made_for, measured, precision, budget, also)
    if precision == "int8":
        measured.require(budget)
    if failures := measured.failures(budget):
        return "float32", f"int8 was over budget: {'; '.join(failures)}{also}"
    return "int8", (
        f"{1 - measured.flips:.1%} of {measured.windows} verdicts as in float, {measured.int8_bytes} bytes instead of "
        f"{measured.float_bytes}{also}"
    )


def lost(measured: Parity, table: Matrix, budget: Budget) -> str:
    """What is over budget and can be learned, which speed cannot: and what a clock measured does not go into the bundle."""
    over = measured.failures(msgspec.structs.replace(budget, slower=math.inf)) + table.failures(budget, "int8")
    return "; ".join(dict.fromkeys(over))


def _choose_for(
    board: Board, counted: Instructions | str, measured: Parity, precision: Precision, budget: Budget, also: str
) -> tuple[str, str]:
    if failures := refusals(board, measured, counted, budget):
        if precision == "int8":
            raise GateError(f"int8 is not for {board.name}: {'; '.join(failures)}")
        return "float32", f"int8 is not for {board.name}: {'; '.join(failures)}{also}"
    cost = "instructions were not counted" if isinstance(counted, str) else f"{counted.lines()} on {counted.processor}"
    return "int8", f"for {board.name}: {1 - measured.flips:.1%} of {measured.windows} verdicts as in float; {cost}{also}"
