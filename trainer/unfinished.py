"""What a training leaves behind when it is killed, and how the next one goes on from there.

    RUN.part/state.pt    weights, optimizer, generators, losses, and of which recipe and recordings

The same command typed again goes on where the last state was written, and ends in the same run to the bit. With another
recipe, other recordings or a damaged state nothing is trained and nothing overwritten, unless it is said. When the run is
written, `RUN.part` is gone.
"""

import contextlib
import pickle
import shutil
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from edge.errors import CannotCreateError, DataError
from edge.files import at_once
from trainer.recipe import Recipe

FORMAT = 1
SAVE_EVERY_S = 30.0
"""What is lost at most. A state is three times the weights; writing it takes milliseconds."""


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """Of what a state is. Only with all of it alike does going on end where not stopping would have."""

    format: int = FORMAT
    version: str
    torch: str
    recipe: Recipe
    data: dict[str, str]
    """SHA-256 of each recording."""


@dataclass(slots=True)
class State:
    """What the loop carries from step to step beside model, optimizer and generators."""

    step: int = 0
    """How many are done."""
    losses: list[float] = field(default_factory=list)
    best_loss: float = float("inf")
    """On the windows for choosing; they are looked at only with patience."""
    best_step: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    """Weights at `best_step`."""


@dataclass(slots=True)
class Unfinished:
    """The state of one training on disk. `writes` is false in all but one of several processes; all of them read."""

    folder: Path
    made: Made
    every_s: float = SAVE_EVERY_S
    writes: bool = True
    clock: Callable[[], float] = time.monotonic
    content: dict[str, Any] | None = None
    """As read, until it is restored."""
    written_s: float = 0.0

    @classmethod
    def beside(cls, out: Path, made: Made, *, overwrite: bool, writes: bool, every_s: float = SAVE_EVERY_S) -> "Unfinished":
        """Read what is left of a training into `out`, if anything is.

        Raises `DataError` when it is damaged, `CannotCreateError` when it is of something else; with `overwrite` it counts as
        absent in both cases, and the first state takes its place.
        """
        ours = cls(out.with_name(f"{out.name}.part"), made, every_s, writes)
        try:
            ours.content = ours._read()
        except (DataError, CannotCreateError):
            if not overwrite:
                raise
        ours.written_s = ours.clock()
        return ours

    def restore(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, rng: torch.Generator) -> State:
        """The state to go on from; a fresh one, and everything as it was, when nothing was left."""
        if self.content is None:
            return State()
        content, self.content = self.content, None
        try:
            model.load_state_dict(content["model"])
            optimizer.load_state_dict(content["optimizer"])
            rng.set_state(content["rng"])
            torch.set_rng_state(content["torch_rng"])
            best = {name: value.to(rng.device) for name, value in content["best"].items()}
            return State(content["step"], content["losses"].tolist(), content["best_loss"], content["best_step"], best)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise DataError(f"{self._path}: does not fit this recipe: {_line(error)}; {self._cure}") from None

    def save_when_due(
        self, state: State, model: torch.nn.Module, optimizer: torch.optim.Optimizer, rng: torch.Generator
    ) -> None:
        """Write the state, whole or not at all, if the last one is older than `every_s`."""
        if not self.writes or self.clock() - self.written_s < self.every_s:
            return
        content = {
            "made": msgspec.json.encode(self.made).decode(),
            "step": state.step,
            "losses": torch.tensor(state.losses, dtype=torch.float64),
            "best_loss": state.best_loss,
            "best_step": state.best_step,
            "best": state.best,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rng": rng.get_state(),
            "torch_rng": torch.get_rng_state(),
        }
        with at_once(self._path) as draft:
            torch.save(content, draft)
        self.written_s = self.clock()

    def discard(self) -> None:
        if self.writes:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _path(self) -> Path:
        return self.folder / "state.pt"

    @property
    def _cure(self) -> str:
        return f"--overwrite starts anew, and so does deleting {self.folder}"

    def _read(self) -> dict[str, Any] | None:
        try:
            # A flipped bit is one in a weight, and nobody would ever know: the checksums are looked at, all of them.
            with zipfile.ZipFile(self._path) as archive:
                if (bad := archive.testzip()) is not None:
                    raise zipfile.BadZipFile(f"{bad} has another checksum")
            # weights_only: a state is data. Without it, opening one would run whatever its pickle says.
            with warnings.catch_warnings(action="ignore"):
                content = torch.load(self._path, map_location="cpu", weights_only=True)
            made = msgspec.json.decode(content["made"], type=Made)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (
            *(OSError, EOFError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, msgspec.MsgspecError),
            *(ValueError, TypeError, AttributeError, KeyError),
        ) as error:
            raise DataError(f"{self._path}: damaged: {_line(error)}; {self._cure}") from None
        if other := difference(made, self.made):
            raise CannotCreateError(f"{self.folder}: holds a training that was interrupted, {other}; {self._cure}")
        assert isinstance(content, dict)
        return content


def difference(was: Made, now: Made) -> str:
    """The first thing in which two differ, for a person; empty when nothing does."""
    if was.data != now.data:
        return "of other recordings"
    ours, theirs = _flat(msgspec.to_builtins(now.recipe)), _flat(msgspec.to_builtins(was.recipe))
    for key in [*ours, *theirs]:
        if ours.get(key) != theirs.get(key):
            return f"of another recipe ({key} was {theirs.get(key)}, now {ours.get(key)})"
    for key in ("format", "version", "torch"):
        if (before := getattr(was, key)) != (after := getattr(now, key)):
            return f"by another program ({key} was {before}, now {after})"
    return ""


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _line(error: Exception) -> str:
    with contextlib.suppress(IndexError):
        return str(error).strip().splitlines()[0].rstrip(":")[:200]
    return type(error).__name__
