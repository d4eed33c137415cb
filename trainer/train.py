"""The training loop, from recordings to a RUN directory. One loop, top to bottom.

    RUN/checkpoint.pt   weights
    RUN/run.json        recipe, channels, rate, digests of the data, losses: `RunInfo`
    RUN/windows.npz     some windows it learned from and some held back, so that quantizing needs no recordings

The same recipe and recordings give the same weights to the bit, on one kind of CPU and with one version of torch.
"""

import importlib.metadata
import math
import os
import time
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch

from edge.errors import CannotCreateError, ConfigError, DataError
from edge.sensing.windows import MissingPolicy
from edge.signal import Int64
from trainer import data, distributed, folder, trimming
from trainer.model import Detector
from trainer.progress import Report, Step
from trainer.quality import Finding, summary
from trainer.recipe import Recipe, TrainingRecipe
from trainer.unfinished import SAVE_EVERY_S, Made, State, Unfinished
from trainer.windows import WindowArray, batches

FORMAT = 1
FILES = {"checkpoint.pt", "run.json", "windows.npz"}
"""Of a run."""
MAX_WINDOWS_BYTES = 64 * 1024 * 1024
"""Of each kind that a run keeps. Plenty for ranges, scorer and calibration; a recording of months stays out of it."""
LOSSES_KEPT = 200
ROWS_KEPT = 16
MOST_JUDGED = 1024
"""Windows held back on which the last loss is measured."""
MOST_CHOOSING, MOST_STRETCHES = 512, 16
"""Windows that the best weights are chosen by, and from how many places in time."""
NOTHING = np.empty(0, np.int64)


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
    steps: int = 0
    """How many were made; 0 in runs of versions that did not say."""
    best_step: int = 0
    """Whose weights these are: with patience, not always the last."""
    device: str = "cpu"
    precision: str = "float32"
    """Of what the encoder computed with."""
    processes: int = 1
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
            f"{self.recipe.encoder.kind} with {self.parameters} parameters, "
            f"{self.steps or self.recipe.training.steps} steps of {' + '.join(self.recipe.pretext.tasks)}: "
            f"loss {self.losses[0]:.3f} → {sum(tail) / len(tail):.3f}, {self.calibration_loss:.3f} on what was held back",
            *([f"weights of step {self.best_step}, the best looked at"] if self.recipe.training.patience else []),
            f"computed on {self.device} in {self.precision}"
            + (f" by {self.processes} processes" if self.processes > 1 else ""),
            *self.notes,
            *summary(self.quality),
        ]


def train(
    recipe: Recipe,
    paths: Iterable[Path],
    out: Path,
    progress: Report | None = None,
    *,
    overwrite: bool = False,
    save_every_s: float = SAVE_EVERY_S,
) -> RunInfo:
    """Train on recordings of normal operation and write the directory `out`, whole or not at all.

    What was killed is gone on with (`trainer.unfinished`). Raises `DataError`, `NoInputError`, `ConfigError` when memory or
    device do not suffice, and `CannotCreateError` when `out` exists; with `overwrite` a run, and nothing else, is replaced.
    """
    refuse_existing(out, overwrite)
    material = data.load(paths, recipe)
    # Where the files lay is of no consequence; what they held is in `data`.
    recipe = msgspec.structs.replace(recipe, data=())
    made = Made(version=version(), torch=str(torch.__version__), recipe=recipe, data=material.digests)
    first = distributed.first()
    unfinished = Unfinished.beside(out, made, overwrite=overwrite, writes=first, every_s=save_every_s)
    try:
        with deterministic(recipe.training.seed, recipe.training.threads), enough_memory(recipe):
            fitted = fit(recipe, material.fit, material.calibration, progress, unfinished)
            kept = evenly(len(material.fit), affordable(material.fit))
            if recipe.training.trim:
                kept = kept[trimming.ordinary(fitted.detector, batches(material.fit, kept), recipe.training.trim)]
    except DataError:
        unfinished.discard()  # it would come to the same end again
        raise
    distributed.require_agreement(fitted.detector)
    held_back = in_rows(len(material.calibration), affordable(material.calibration))
    info = RunInfo(
        version=made.version,
        torch=made.torch,
        recipe=recipe,
        channels=material.channels,
        units=material.units,
        rate_hz=material.rate_hz,
        window=recipe.window,
        hop=recipe.hop_samples,
        missing=recipe.missing,
        data=material.digests,
        parameters=sum(parameter.numel() for parameter in fitted.detector.parameters()),
        fit_windows=len(material.fit),
        calibration_windows=len(material.calibration),
        losses=tuple(float(f"{loss:.6g}") for loss in fitted.losses[:: max(1, math.ceil(len(fitted.losses) / LOSSES_KEPT))]),
        calibration_loss=float(f"{fitted.calibration_loss:.6g}"),
        steps=len(fitted.losses),
        best_step=fitted.best_step,
        device=fitted.device,
        precision=fitted.precision,
        processes=distributed.processes(),
        notes=material.notes,
        quality=material.quality,
    )
    if not first:
        return info
    refuse_existing(out, overwrite)  # hours may have gone by
    with folder.at_once(out) as draft:
        weights = {name: value.cpu() for name, value in fitted.detector.state_dict().items()}
        torch.save(weights, draft / "checkpoint.pt")
        (draft / "run.json").write_bytes(msgspec.json.format(msgspec.json.encode(info), indent=2) + b"\n")
        write_windows(draft / "windows.npz", material, kept, held_back)
    unfinished.discard()
    return info


@dataclass(frozen=True, slots=True)
class Fitted:
    detector: Detector
    """In evaluation mode."""
    losses: list[float]
    """Of every step."""
    calibration_loss: float
    """On what was held back."""
    best_step: int
    """Whose weights these are."""
    device: str
    precision: str


def fit(
    recipe: Recipe,
    windows: WindowArray,
    held_back: WindowArray,
    progress: Report | None = None,
    unfinished: Unfinished | None = None,
    *,
    detector: Detector | None = None,
) -> Fitted:
    """Windows (n, C, N) to learn from and (m, C, N) held back → trained detector.

    One that is given learns on, in place; its normalisation stays.
    """
    settings = recipe.training
    device, precision = place(settings)
    learn, choose = set_aside(len(windows), recipe) if settings.patience else (None, NOTHING)
    count = len(windows) if learn is None else len(learn)
    if detector is None:
        detector = Detector(windows.shape[1], recipe)
        detector.fit_normalisation(windows)
    detector.to(device)
    encoder = distributed.shared(detector)
    rng = torch.Generator(device).manual_seed(settings.seed)
    # No decay on what has one dimension: biases and the scales of normalisation layers are few and mean something.
    groups = [
        {"params": [p for p in detector.parameters() if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in detector.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr)
    state = unfinished.restore(detector, optimizer, rng) if unfinished else State()
    if progress and state.step:
        progress(Step(state.step, settings.steps, "goes on where it was interrupted"))
    detector.train()
    before, started = state.step, time.monotonic()
    while state.step < settings.steps:
        step = state.step = state.step + 1
        with computing(device, precision):
            index = torch.randint(count, (settings.batch,), generator=rng).numpy(force=True)
            index = index if learn is None else learn[index]
            x = detector.normalise(torch.from_numpy(windows[index]).to(device))[1]
            if settings.trim and step > settings.steps * trimming.AFTER:
                x = trimming.taught(detector, encoder, x, settings.trim)
            loss = detector.pretext.loss(encoder, x, rng)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * schedule(step / settings.steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        distributed.add_gradients(detector)
        # One window with a spike in it must not undo what the others taught.
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        state.losses.append(loss.item())
        if not math.isfinite(state.losses[-1]):
            raise DataError(f"the loss is {state.losses[-1]} after {step} steps; lower training.lr, now {settings.lr:g}")
        figures = {"loss": float(np.mean(state.losses[-10:])), "lr": optimizer.param_groups[0]["lr"]}
        tired = False
        if settings.patience and (step % settings.look_every == 0 or step == settings.steps):
            # The same windows and masks at every look, so that only the weights make a difference.
            found = loss_on(detector, recipe, windows, choose, torch.Generator(device).manual_seed(settings.seed), precision)
            figures["loss_chosen_by"] = found = distributed.agreed(found)
            if found < state.best_loss:
                weights = {name: value.clone() for name, value in detector.state_dict().items()}
                state.best_loss, state.best_step, state.best = found, step, weights
            tired = step - state.best_step >= settings.patience * settings.look_every
        if progress and (step % 10 == 0 or step == settings.steps or tired):
            eta_s = (time.monotonic() - started) / (step - before) * (settings.steps - step)
            progress(Step(step, settings.steps, f"loss {figures['loss']:.3f}", eta_s, figures))
        if tired:
            break
        if unfinished:
            unfinished.save_when_due(state, detector, optimizer, rng)
    if state.best:
        detector.load_state_dict(state.best)
    detector.eval()
    some = np.arange(0, len(held_back), max(1, len(held_back) // MOST_JUDGED))
    calibration_loss = loss_on(detector, recipe, held_back, some, rng, precision)
    return Fitted(detector.cpu(), state.losses, calibration_loss, state.best_step or state.step, device.type, precision)


def set_aside(count: int, recipe: Recipe) -> tuple[Int64, Int64]:
    """Of `count` windows in the order of time, those to learn from and those to choose the best weights by; at most 512.

    The latter end each of up to 16 stretches, and lie so far from the former that they share no sample. Raises `DataError` when
    there are too few.
    """
    apart = -(-recipe.window // recipe.hop_samples)
    stretches = min(MOST_STRETCHES, count // (20 * apart))
    if not stretches:
        raise DataError(
            f"only {count} windows to learn from; training.patience sets some aside and needs {20 * apart}: record for longer, "
            "or set training.patience to 0"
        )
    role = np.zeros(count, np.int8)
    for stretch in range(stretches):
        start, stop = count * stretch // stretches, count * (stretch + 1) // stretches
        begin = stop - (stop - start) // 8
        role[begin - apart : begin] = role[stop : stop + apart] = 1
        role[begin:stop] = 2
    chosen = np.flatnonzero(role == 2)
    return np.flatnonzero(role == 0), chosen[:: -(-len(chosen) // MOST_CHOOSING)]


def loss_on(
    detector: Detector, recipe: Recipe, windows: WindowArray, index: Int64, rng: torch.Generator, precision: str
) -> float:
    """Mean loss on some of the windows, as the device would see them: with the statistics learned."""
    device = detector.mean.device
    # The others compare windows with each other: with more of them the loss is another, and memory grows with the square.
    size = recipe.training.batch if len(recipe.pretext.tasks) > 1 else len(index)
    total = 0.0
    training = detector.training
    detector.eval()
    with torch.no_grad(), computing(device, precision):
        for at in range(0, len(index), size):
            x = detector.normalise(torch.from_numpy(windows[index[at : at + size]]).to(device))[1]
            total += len(x) * float(detector.pretext.loss(detector.encoder, x, rng))
    detector.train(training)
    return total / len(index)


def place(settings: TrainingRecipe, *, cuda: bool | None = None, bfloat16: bool | None = None) -> tuple[torch.device, str]:
    """Where to compute, and in which precision. `cuda` and `bfloat16` say what there is; `None` asks torch.

    Raises `ConfigError` when the recipe wants a GPU and there is none.
    """
    cuda = torch.cuda.is_available() if cuda is None else cuda
    if settings.device == "cuda" and not cuda:
        raise ConfigError('training.device is "cuda", but torch finds no GPU; set it to "auto" or "cpu"')
    if settings.device == "cpu" or not cuda:
        return torch.device("cpu"), "bfloat16" if settings.precision == "bfloat16" else "float32"
    bfloat16 = torch.cuda.is_bf16_supported() if bfloat16 is None else bfloat16
    wanted = "bfloat16" if bfloat16 and settings.precision == "auto" else settings.precision
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))), "float32" if wanted == "auto" else wanted


@contextmanager
def computing(device: torch.device, precision: str) -> Iterator[None]:
    """Within it what is made new, masks and noise above all, is made on the device, so that no task has to know of it."""
    with (
        device if device.type != "cpu" else nullcontext(),
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"),
    ):
        yield


@contextmanager
def enough_memory(recipe: Recipe) -> Iterator[None]:
    """Raises `ConfigError`, with the setting to lower, in place of what torch and numpy raise when there is no memory left."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On a GPU torch has a class for it; on a processor it has but the words of its allocator.
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(error):
            raise
        raise ConfigError(
            f"out of memory with training.batch = {recipe.training.batch} and windows of {recipe.window} samples; "
            "lower training.batch first, then encoder.width"
        ) from None


def schedule(done: float) -> float:
    """Share of the run → share of the learning rate: up over the first tenth, then down along a cosine."""
    return min(done / 0.1, 0.5 + 0.5 * math.cos(math.pi * max(0.0, done - 0.1) / 0.9))


@contextmanager
def deterministic(seed: int, threads: int) -> Iterator[None]:
    """Within it torch repeats itself to the bit on a processor; whatever was set before is set again afterwards."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        gpu = torch.cuda.is_available()
        if gpu:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or its products differ from run to run
        # A GPU does not have one for every operation; there it is done as well as it goes, and not promised.
        torch.use_deterministic_algorithms(True, warn_only=gpu)
        try:
            yield
        finally:
            torch.set_num_threads(before[0])
            torch.use_deterministic_algorithms(before[1])


def write_windows(path: Path, material: data.TrainingData, kept: Int64, held_back: Int64) -> None:
    """As `np.savez_compressed` would, a batch at a time: the windows that a run keeps never are in memory together."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, windows, index in (("fit", material.fit, kept), ("calibration", material.calibration, held_back)):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(index), *windows.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
                for some in batches(windows, index):
                    file.write(np.ascontiguousarray(some, "<f4").data)
        with archive.open("position.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, material.position[held_back], allow_pickle=False)


def evenly(count: int, most: int) -> Int64:
    """At most `most` places out of `count`, evenly spaced."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


def affordable(windows: WindowArray) -> int:
    """How many windows fit into `MAX_WINDOWS_BYTES`."""
    return max(1, min(len(windows), MAX_WINDOWS_BYTES // max(1, 4 * math.prod(windows.shape[1:]))))


def in_rows(count: int, most: int) -> Int64:
    """At most `most` places out of `count`, in unbroken rows: scores are averaged over neighbours before they calibrate."""
    if count <= most:
        return np.arange(count)
    length = max(1, most // ROWS_KEPT)
    starts = np.linspace(0, count - length, most // length).astype(np.int64)
    return np.unique(starts[:, None] + np.arange(length))


def version() -> str:
    try:
        return importlib.metadata.version("amiss")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"


def refuse_existing(out: Path, overwrite: bool) -> None:
    """Raises `CannotCreateError` for anything that is no run, however empty, and without `overwrite` for a run too."""
    folder.refuse_existing(out, FILES, overwrite, "training run")
    if out.exists() and not (out / "run.json").is_file():
        raise CannotCreateError(f"{out}: exists and is no training run, so it is not overwritten; choose another place")
