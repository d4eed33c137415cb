"""`amiss quantize --report DIR`: what compression gained and what it cost, figures (quantize.json) and a page (quantize.html).

The figures that decided what ships are those that `quantize` returned, not measured anew. What is added is what a decision does
not need and a person asks for: batches, memory, multiplications, how scores are spread.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from edge.errors import UsageError
from edge.scoring.backends import RUNTIMES, run_in_slices
from quantize import Made, Quantized
from quantize.cost import PRECISIONS, Cost, costs
from quantize.parity import Parity, Scores, scores
from trainer import folder
from trainer.progress import Report, Step
from trainer.recipe import Budget

FORMAT = 1
PAGE, FIGURES = "quantize.html", "quantize.json"


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """How well a model tells injected faults from normal windows."""

    runtime: str
    precision: str
    scorer: str
    auroc: float
    """0.5 is chance."""


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Scores of one group of windows; each model with a scorer and a calibrator of its own."""

    scorer: str
    precision: str
    group: str
    low: float
    """A tenth of the windows scores less …"""
    middle: float
    """… half of them less than this …"""
    high: float
    """… and a tenth more than this."""
    strange: float
    """Share that counts as strange."""


class Compression(msgspec.Struct, frozen=True, kw_only=True):
    """quantize.json"""

    format: int = FORMAT
    name: str
    """Of the bundle's file."""
    asked: str
    """--precision"""
    quantized: Quantized
    """Word for word what `amiss quantize --json` says."""
    others: dict[str, Parity]
    """int8 beside float under the runtimes that are not the first."""
    budget: Budget
    """What was allowed."""
    macs: int
    """Multiplications of one window."""
    costs: tuple[Cost, ...]
    quality: tuple[Quality, ...]
    spreads: tuple[Spread, ...]
    """Of the first runtime's models."""
    refused: tuple[str, ...]
    """What was tried or could have been, and why it is not in the bundle."""
    notes: tuple[str, ...]
    """What could not be measured, and why."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What the page draws and the figures do not hold: precision → scorer → scores."""

    scores: dict[str, dict[str, Scores]]


def examine(result: Quantized, made: Made, progress: Report | None = None) -> tuple[Compression, Drawn]:
    """Measure what is missing for the report."""
    from quantize.prune import macs

    def tell(step: int, text: str) -> None:
        if progress:
            progress(Step(step, 3, text))

    tell(0, "for the report: time and memory")
    cost = costs(made.models, made.here, made.calibration, made.measured)
    tell(1, "for the report: how scores are spread")
    first = made.here[0]
    member = made.models[RUNTIMES[first].member]
    drawn = {}
    for kind in PRECISIONS:
        if kind in member:
            run = partial(run_in_slices, RUNTIMES[first].open(member[kind]))
            drawn[kind] = scores(run, made.fit, made.calibration, made.scorer)
    tell(2, "for the report: multiplications")
    found = Compression(
        name=Path(result.bundle).name,
        asked=made.asked,
        quantized=result,
        others={name: parity for name, parity in made.measured.items() if isinstance(parity, Parity) and name != first},
        budget=made.budget,
        macs=macs(made.detector, made.calibration),
        costs=cost,
        quality=tuple(
            Quality(runtime=row.runtime, precision=row.precision, scorer=scorer, auroc=result.matrix.auroc[scorer] - lost)
            for row in result.matrix.rows
            for scorer, lost in row.auroc_loss.items()
        ),
        spreads=tuple(
            spread(scorer, kind, group, values, one.threshold)
            for kind, by_scorer in drawn.items()
            for scorer, one in by_scorer.items()
            for group, values in one.groups.items()
        ),
        refused=refused(result, made),
        notes=notes(result, made),
    )
    tell(3, "done")
    return found, Drawn(drawn)


def spread(scorer: str, precision: str, group: str, values: "np.ndarray", threshold: float) -> Spread:
    low, middle, high = (float(q) for q in np.quantile(values, [0.1, 0.5, 0.9]))
    strange = float((values >= threshold).mean())
    return Spread(scorer=scorer, precision=precision, group=group, low=low, middle=middle, high=high, strange=strange)


def refused(result: Quantized, made: Made) -> tuple[str, ...]:
    """What is not in the bundle although it was tried, one sentence each."""
    found = []
    if made.asked == "float32":
        found.append("int8 was not shipped: float was asked for (--precision float32)")
    elif result.precision == "float32":
        found.append(f"int8 was not shipped: {result.reason}")
    if result.pruned is not None and len(result.pruned.curve) > result.pruned.kept + 1:
        found.append(f"a smaller model was not shipped: {result.pruned.reason}")
    return tuple(found)


def notes(result: Quantized, made: Made) -> tuple[str, ...]:
    found = [
        f"{name} is not installed here, or not with a numpy that it works with: nothing was measured under it "
        f"({RUNTIMES[name].install})"
        for name in result.runtimes
        if name not in made.here
    ]
    if result.not_counted:
        found.append(f"instructions were not counted: {result.not_counted}")
    elif not result.target:
        found.append("instructions were not counted: no board was named (--target pi4)")
    elif not result.instructions:
        found.append("instructions were not counted: there is no int8 model to compare with float")
    return tuple(found)


def refuse(out: Path, bundle: Path, overwrite: bool) -> None:
    """Before the time is spent, not after. Raises `CannotCreateError` for what is there already, `UsageError` when the folder
    would hold the bundle: it holds a report and nothing else."""
    if out.resolve() in (bundle.resolve(), *bundle.resolve().parents):
        raise UsageError(f"--report {out}: the bundle {bundle} does not go into the report's folder; choose another one")
    folder.refuse_existing(out, (PAGE, FIGURES), overwrite)


def write(out: Path, found: Compression, drawn: Drawn, *, overwrite: bool = False) -> None:
    """The folder `out`, whole or not at all. Raises `CannotCreateError` when it exists; with `overwrite` a report is
    replaced."""
    from quantize.page import render

    folder.write(out, {FIGURES: folder.json(found), PAGE: render(found, drawn).encode()}, overwrite)
