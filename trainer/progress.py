"""What a long job tells while it runs: a bar on a terminal, a line now and then elsewhere. Always on stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

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
