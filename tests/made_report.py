"""A report on a small bundle, made once for all tests that look at it."""

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from small_bundle import CHANNELS, build, normal

from edge.sensing.recordings import Recording, write_recording
from trainer.report import Drawn, Examination, examine

FOLDER = tempfile.TemporaryDirectory(prefix="amiss-made-report-")


def recording(path: Path, rows: int, seed: int, fault: tuple[int, int] | None = None, labelled: bool = True) -> Path:
    x, label = normal(rows, seed), np.zeros(rows, np.int8)
    if fault:
        x[1, slice(*fault)] += 2.5
        label[slice(*fault)] = 1
    time_ns = 10**18 + np.arange(rows, dtype=np.int64) * 10_000_000
    write_recording(path, Recording(path.name, CHANNELS, time_ns, x, label if labelled else None, {"current": "A"}))
    return path


@cache
def material() -> Path:
    """A folder with `small.amiss`, `normal.csv` and recordings to judge in `data`."""
    folder = Path(FOLDER.name)
    build(folder / "small.amiss")
    (folder / "data").mkdir()
    recording(folder / "data" / "<b>pump & co.csv", 2400, 3, (1500, 1900))
    recording(folder / "data" / "calm.csv", 1400, 4, (900, 1100))
    recording(folder / "data" / "unlabelled.csv", 500, 5, labelled=False)
    recording(folder / "normal.csv", 3600, 6, labelled=False)
    return folder


@cache
def made_report() -> tuple[Examination, Drawn]:
    """Nothing in it can be changed."""
    folder = material()
    return examine(folder / "small.amiss", [folder / "data"], [folder / "normal.csv"])
