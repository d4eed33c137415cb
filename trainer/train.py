"""The training loop, from recordings to a RUN directory. One loop, top to bottom.

    RUN/checkpoint.pt   weights
    RUN/run.json        recipe, channels, rate, digests of the data, losses: `RunInfo`
    RUN/windows.npz     some windows it learned from and some held back, so that quantizing needs no recordings

The same recipe and recordings give the same weights to the bit, on one kind of CPU and with one version of torch.
"""

import importlib.metadata
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import torch

from edge.errors import CannotCreateError, DataError
from edge.sensing.windows import MissingPolicy
from edge.signal import Float32
from trainer import data
from trainer.model import Detector
from trainer.progress import Report, Step
from trainer.quality import Finding, summary
from trainer.recipes import Recipe
from trainer.windows import WindowArray

FORMAT = 1
MAX_WINDOWS_BYTES = 64 * 1024 * 1024
"""Of each kind that a run keeps. Plenty for ranges, scorer and calibration; a recording of months stays out of it."""
LOSSES_KEPT = 200


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What run.json says."""

    format: int = FORMAT
    version: str
    """Of this program."""
    torch: str
    recipe: Recipe
    channels: tuple[str, ...]
    units: dict[str, str] = {}
    rate_hz: float
    window: int
    hop: int
    missing: MissingPolicy
    data: dict[str, str]
    """SHA-256 of each recording."""
    parameters: int
    """Of encoder and heads."""
    fit_windows: int
    calibration_windows: int
    losses: tuple[float, ...]
    """Training loss, at most 200 values evenly over the run."""
    calibration_loss: float
    """Loss on the windows held back: far above the last losses means learned by heart."""
    notes: tuple[str, ...]
    quality: tuple[Finding, ...] = ()
    """What was found wrong with the recordings, and what was done about it."""

    def lines(self) -> list[str]:
        """For a person."""
        tail = self.losses[-max(1, len(self.losses) // 20) :]
        return [
            f"{len(self.data)} recordings of {', '.join(self.channels)} at {self.rate_hz:g} Hz",
            f"windows of {self.window} samples every {self.hop}: {self.fit_windows} to learn from, "
            f"{self.calibration_windows} held back to calibrate",
            f"{self.recipe.encoder.kind} with {self.parameters} parameters, {self.recipe.training.steps} steps of "
            f"{' + '.join(self.recipe.pretext.tasks)}: loss {self.losses[0]:.3f} → {sum(tail) / len(tail):.3f}, "
            f"{self.calibration_loss:.3f} on what was held back",
            *self.notes,
            *summary(self.quality),
        ]


def train(
    recipe: Recipe, paths: Iterable[Path], out: Path, progress: Report | None = None, *, overwrite: bool = False
) -> RunInfo:
    """Train on recordings of normal operation and write the directory `out`, whole or not at all.

    Raises `DataError`, `NoInputError`, and `CannotCreateError` when `out` exists; with `overwrite` a run, and nothing else, is
    replaced.
    """
    refuse_existing(out, overwrite)
    material = data.load(paths, recipe)
    with deterministic(recipe.training.seed, recipe.training.threads):
        detector, losses, calibration_loss = fit(recipe, material.fit, material.calibration, progress)
    info = RunInfo(
        version=version(),
        torch=str(torch.__version__),
        # Where the files lay is of no consequence; what they held is in `data`.
        recipe=msgspec.structs.replace(recipe, data=()),
        channels=material.channels,
        units=material.units,
        rate_hz=material.rate_hz,
        window=recipe.window,
        hop=recipe.hop_samples,
        missing=recipe.missing,
        data=material.digests,
        parameters=sum(parameter.numel() for parameter in detector.parameters()),
        fit_windows=len(material.fit),
        calibration_windows=len(material.calibration),
        losses=tuple(float(f"{loss:.6g}") for loss in losses[:: max(1, math.ceil(len(losses) / LOSSES_KEPT))]),
        calibration_loss=float(f"{calibration_loss:.6g}"),
        notes=material.notes,
        quality=material.quality,
    )
    with directory_at_once(out, overwrite) as draft:
        torch.save(detector.state_dict(), draft / "checkpoint.pt")
        (draft / "run.json").write_bytes(msgspec.json.format(msgspec.json.encode(info), indent=2) + b"\n")
        np.savez_compressed(
            draft / "windows.npz", fit=bounded(material.fit), calibration=bounded(material.calibration), allow_pickle=False
        )
    return info


def fit(
    recipe: Recipe, windows: WindowArray, held_back: WindowArray, progress: Report | None = None
) -> tuple[Detector, list[float], float]:
    """Windows (n, C, N) → trained detector in evaluation mode, loss of every step, loss on `held_back` (m, C, N)."""
    settings = recipe.training
    detector = Detector(windows.shape[1], recipe)
    detector.fit_normalisation(windows)
    rng = torch.Generator().manual_seed(settings.seed)
    # No decay on what has one dimension: biases and the scales of normalisation layers are few and mean something.
    groups = [
        {"params": [p for p in detector.parameters() if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in detector.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr)
    detector.train()
    losses: list[float] = []
    started = time.monotonic()
    for step in range(1, settings.steps + 1):
        batch = torch.from_numpy(windows[torch.randint(len(windows), (settings.batch,), generator=rng).numpy()])
        loss = detector.pretext.loss(detector.encoder, detector.normalise(batch)[1], rng)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * schedule(step / settings.steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        # One window with a spike in it must not undo what the others taught.
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise DataError(f"the loss is {losses[-1]} after {step} steps; lower training.lr, now {settings.lr:g}")
        if progress and (step % 10 == 0 or step == settings.steps):
            eta_s = (time.monotonic() - started) / step * (settings.steps - step)
            progress(Step(step, settings.steps, f"loss {np.mean(losses[-10:]):.3f}", eta_s))
    detector.eval()
    with torch.no_grad():
        held = torch.from_numpy(held_back[:: max(1, len(held_back) // 1024)])
        # The others compare windows with each other: with more of them the loss is another, and memory grows with the square.
        parts = torch.split(held, settings.batch if len(recipe.pretext.tasks) > 1 else len(held))
        total = sum(
            len(part) * float(detector.pretext.loss(detector.encoder, detector.normalise(part)[1], rng)) for part in parts
        )
    return detector, losses, total / len(held)


def schedule(done: float) -> float:
    """Share of the run → share of the learning rate: up over the first tenth, then down along a cosine."""
    return min(done / 0.1, 0.5 + 0.5 * math.cos(math.pi * max(0.0, done - 0.1) / 0.9))


@contextmanager
def deterministic(seed: int, threads: int) -> Iterator[None]:
    """Within it torch repeats itself to the bit; whatever was set before is set again afterwards."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.set_num_threads(before[0])
            torch.use_deterministic_algorithms(before[1])


def bounded(windows: WindowArray) -> Float32:
    """As many windows, evenly spaced, as fit into `MAX_WINDOWS_BYTES`."""
    count = max(1, min(len(windows), MAX_WINDOWS_BYTES // max(1, 4 * math.prod(windows.shape[1:]))))
    return windows[np.linspace(0, len(windows) - 1, count).astype(np.int64)]


def version() -> str:
    try:
        return importlib.metadata.version("amiss")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"


def refuse_existing(out: Path, overwrite: bool) -> None:
    """Before hours are spent, not after. Raises `CannotCreateError`."""
    if not out.exists():
        return
    if not overwrite:
        raise CannotCreateError(f"{out}: exists already; choose another place or say --overwrite")
    ours = out.is_dir() and {path.name for path in out.iterdir()} <= {"checkpoint.pt", "run.json", "windows.npz"}
    if not ours or not (out / "run.json").is_file():
        raise CannotCreateError(f"{out}: exists and is no training run, so it is not overwritten; choose another place")


@contextmanager
def directory_at_once(out: Path, overwrite: bool) -> Iterator[Path]:
    """A directory to fill that appears as `out` when everything in it is written, or never."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise CannotCreateError(f"{out}: cannot be created: {error.strerror}") from None
    try:
        draft.chmod(0o755)
        yield draft
        refuse_existing(out, overwrite)
        if out.exists():
            shutil.rmtree(out)
        os.replace(draft, out)
    except OSError as error:
        raise CannotCreateError(f"{out}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
