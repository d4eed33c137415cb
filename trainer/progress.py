"""What a long job tells while it runs: a bar on a terminal, a line now and then elsewhere. Always on stderr."""

import importlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from edge.errors import CannotCreateError

LINE_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Step:
    step: int
    """How many are done."""
    steps: int
    text: str
    """How it goes: a loss, the name of what comes next."""
    eta_s: float | None = None
    """Seconds until the end."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """For those who draw curves."""


Report = Callable[[Step], None]


@contextmanager
def progress(title: str, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> Iterator[Report]:
    """Yields what to call with each `Step`. On a terminal rich draws a bar; elsewhere a line comes at most every 5 s."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield _lines(title, stream, clock)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TextColumn("{task.fields[eta]}"),
    )
    with Progress(*columns, console=Console(file=stream), transient=True) as bars:
        task = bars.add_task(title, text="", eta="")

        def report(step: Step) -> None:
            bars.update(task, completed=step.step, total=step.steps, text=step.text, eta=_eta(step))

        yield report


@contextmanager
def tensorboard(folder: Path, also: Report) -> Iterator[Report]:
    """Yields what writes the figures of each `Step` as TensorBoard's event files, and then calls `also`.

    Raises `ModuleNotFoundError` where there is no tensorboard and `CannotCreateError` where nothing can be written.
    """
    importlib.import_module("tensorboard")  # asked for first, because torch's message would not name the module that is absent
    from torch.utils.tensorboard import SummaryWriter

    try:
        writer = SummaryWriter(str(folder))
    except OSError as error:
        raise CannotCreateError(f"{folder}: cannot be written: {error.strerror or error}") from None

    def report(step: Step) -> None:
        for name, value in step.figures.items():
            writer.add_scalar(name, value, step.step)
        also(step)

    try:
        yield report
    finally:
        writer.close()


def _lines(title: str, stream: TextIO, clock: Callable[[], float]) -> Report:
    last_s: float | None = None

    def report(step: Step) -> None:
        nonlocal last_s
        if last_s is None or step.step == step.steps or clock() - last_s >= LINE_EVERY_S:
            last_s = clock()
            print(" ".join(f"{title} {step.step}/{step.steps} {step.text} {_eta(step)}".split()), file=stream, flush=True)

    return report


def _eta(step: Step) -> str:
    if step.eta_s is None or step.step == step.steps:
        return ""
    minutes, seconds = divmod(round(step.eta_s), 60)
    return f"{minutes}:{seconds:02} left"
