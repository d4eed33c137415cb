"""The data sets of `benchmarks.detect`: which rows an encoder learns from, which a head is fitted to, which are judged.

They are looked for in one folder, as `skab/…` and `smd/…`; none of them is part of this repository.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge.errors import NoInputError
from edge.sensing.recordings import Recording, read_recording

NORMAL_ROWS = 400
"""Of each SKAB file: its authors' split."""


@dataclass(frozen=True, slots=True)
class Case:
    """One recording to be judged, or the part of it that is."""

    name: str
    normal: Recording
    """What the machine's own head is fitted to; without labels."""
    test: Recording
    """With labels; scored, and nothing else."""


@dataclass(frozen=True, slots=True)
class Group:
    """Cases that share an encoder."""

    name: str
    training: tuple[Recording, ...]
    """Without labels; every name once."""
    cases: tuple[Case, ...]


def skab(folder: Path, limit: int | None = None) -> list[Group]:
    """One encoder for all: the normal parts of the files and the anomaly-free one. Each file commissions on its own part."""
    files = sorted([*folder.glob("valve*/*.csv"), *folder.glob("other/*.csv")])
    files = [file for file in files if file.parts[-2:] != ("other", "2.csv")]  # 296 of its first 400 rows are anomalous
    free = sorted(folder.glob("anomaly-free/*.csv"))
    if not files or not free:
        raise NoInputError(f"{folder}: no SKAB here; amiss datasets fetch skab --out {folder.parent} --accept-license")
    recordings = {f"{file.parent.name}-{file.stem}": read_recording(file) for file in files}
    normal = {name: unlabelled(recording.part(0, NORMAL_ROWS), name) for name, recording in recordings.items()}
    cases = [Case(name, normal[name], recording.part(NORMAL_ROWS)) for name, recording in recordings.items()]
    training = (*normal.values(), *(unlabelled(read_recording(file), file.stem) for file in free))
    return [Group("all", training, tuple(cases[:limit]))]


def smd(folder: Path, limit: int | None = None) -> list[Group]:
    """An encoder for each machine, from its training half, to which the head is fitted too."""
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise NoInputError(f"{folder}: no SMD here; it takes <machine>.npz with train, test (rows, channels) and test_label")
    groups = []
    for file in files[:limit]:
        with np.load(file, allow_pickle=False) as arrays:
            train = minutes(file.stem, arrays["train"])
            test = minutes(file.stem, arrays["test"], arrays["test_label"])
        groups.append(Group(file.stem, (train,), (Case(file.stem, train, test),)))
    return groups


SETS: dict[str, Callable[[Path, int | None], list[Group]]] = {"skab": skab, "smd": smd}


def unlabelled(recording: Recording, name: str) -> Recording:
    return Recording(name, recording.channels, recording.time_ns, recording.x)


def minutes(name: str, rows: np.ndarray, label: np.ndarray | None = None) -> Recording:
    """(n, C), one row a minute, as a recording."""
    time_ns = np.arange(len(rows), dtype=np.int64) * 60_000_000_000
    channels = tuple(f"c{i:02}" for i in range(rows.shape[1]))
    x = np.ascontiguousarray(rows.T, np.float32)
    return Recording(name, channels, time_ns, x, None if label is None else (label > 0).astype(np.int8))
