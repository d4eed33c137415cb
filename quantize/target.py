"""What a bundle is made for: a board, and which of the models suits it.

A board is a file, `firmware-configs/boards/NAME.toml`; here they are in `quantize/boards`, a link in the repository and a copy
of the files in a wheel. What float and int8 cost is counted in instructions on the board's processor, emulated
(`quantize.emulation`), or, where nothing can be counted, timed on the machine that builds the bundle.
"""

import difflib
import importlib.resources
import math
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edge.errors import ConfigError, UsageError
from edge.tables import refuse_unknown_keys
from quantize.parity import Parity
from trainer.recipe import Budget

NAME = r"^[a-z0-9][a-z0-9_-]*$"


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """boards/NAME.toml"""

    name: Annotated[str, Meta(pattern=NAME)]
    """That of the file."""
    title: Annotated[str, Meta(min_length=1)]
    """For a person."""
    aliases: tuple[Annotated[str, Meta(pattern=NAME)], ...] = ()
    """Shorter names for `--target`."""
    architecture: Literal["aarch64", "x86_64"]
    """As `uname -m` calls it."""
    processor: Literal["cortex-a53", "cortex-a72", "cortex-a76"] | None = None
    """By QEMU's name: its own or the nearest to it. None: there is nothing to emulate it by."""
    cores: Annotated[int, Meta(ge=1)]
    memory_mb: Annotated[int, Meta(ge=64)]
    """Of the smallest that is sold."""
    runtimes: Annotated[tuple[Literal["onnxruntime", "litert", "tflite-runtime"], ...], Meta(min_length=1)]
    """The first one first; as a manifest names them."""
    activations: Literal["unsigned", "signed"]
    """The 8-bit type that takes this processor fewer instructions."""
    flips: Annotated[float, Meta(ge=0, le=1)] = 0.03
    """Share of windows on which the verdict of an int8 model may differ from that of float."""


class Instructions(msgspec.Struct, frozen=True, kw_only=True):
    """Of the model alone, for one window at a time."""

    processor: str
    float32: int
    int8: int

    def lines(self) -> str:
        return f"{thousands(self.int8)} thousand instructions a window in int8, {thousands(self.float32)} in float"


def parse(data: Any, name: str) -> Board:
    """Validated board from plain dicts; raises `ConfigError`, naming file, key and cure."""
    where = f"boards/{name}.toml"
    refuse_unknown_keys(data, Board, where, "")
    if "name" in data:
        raise ConfigError(f"{where}: name: a board is called as its file is; leave it out")
    try:
        board = msgspec.convert({**data, "name": name}, Board)
    except msgspec.ValidationError as error:
        message, _, at = str(error).partition(" - at `$")
        key = at.rstrip("`").lstrip(".")
        raise ConfigError(f"{where}: {key + ': ' if key else ''}{message[0].lower()}{message[1:]}") from None
    if (board.architecture == "aarch64") != (board.processor is not None):
        raise ConfigError(
            f"{where}: processor: {board.processor or 'none'} does not go with {board.architecture}; aarch64 needs one, "
            "and no other architecture has one"
        )
    return board


def boards() -> dict[str, Board]:
    """All that are known, by name. Raises `ConfigError` for a file that is wrong."""
    files = sorted((importlib.resources.files("quantize") / "boards").iterdir(), key=lambda file: file.name)
    found: dict[str, Board] = {}
    for file in files:
        if not file.name.endswith(".toml"):
            continue
        name = file.name.removesuffix(".toml")
        try:
            found[name] = parse(tomllib.loads(file.read_text("utf-8")), name)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"boards/{file.name}: not valid TOML: {error}") from None
    return found


def board(name: str, known: Mapping[str, Board] | None = None) -> Board:
    """By its name or one of its aliases. Raises `UsageError` that says what may have been meant."""
    known = boards() if known is None else known
    names = {alias: each for each in known.values() for alias in (each.name, *each.aliases)}
    if name in names:
        return names[name]
    near = difflib.get_close_matches(name.lower(), names, n=1)
    hint = f"did you mean `{near[0]}`? " if near else ""
    raise UsageError(f"unknown target {name!r}; {hint}known: {', '.join(known)}")


def refusals(board: Board, measured: Parity, counted: Instructions | str, budget: Budget) -> list[str]:
    """Why int8 is not to be shipped for this board, one phrase each; empty: it may be.

    `counted` is a text when nothing was: then what the clock said here decides.
    """
    slower = budget.slower if isinstance(counted, str) else math.inf
    found = measured.failures(msgspec.structs.replace(budget, flips=board.flips, slower=slower, unnoticed_us=0.0))
    if not isinstance(counted, str) and counted.int8 > counted.float32:
        found.append(f"{counted.lines()} on {counted.processor}")
    return found


def thousands(instructions: int) -> str:
    """Two digits: the third is not the same in each count."""
    return f"{float(f'{instructions / 1000:.2g}'):g}"
