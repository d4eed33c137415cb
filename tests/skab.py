"""Where SKAB is, for the tests that need it."""

import os
from pathlib import Path

import pytest

from edge.sensing.recordings import read_recording, write_recording

FETCH = "amiss datasets fetch skab --out ../shared/data --accept-license"


def folder() -> Path:
    """`$AMISS_DATA/skab` (default ../shared/data). Where it is not, the test says in the summary how to get it."""
    path = Path(os.environ.get("AMISS_DATA") or Path(__file__).parents[2] / "shared" / "data") / "skab"
    if not path.is_dir():
        pytest.skip(f"SKAB is not at {path}: NOT TESTED on real recordings; fetch it: {FETCH}")
    return path


def own_part(skab: Path, name: str, out: Path) -> Path:
    """The normal part of one file."""
    part = read_recording(skab / name).part(0, 400)
    write_recording(out, type(part)(part.name, part.channels, part.time_ns, part.x))
    return out


def normal_parts(skab: Path, out: Path) -> Path:
    """The first 400 rows of each labelled file, which its authors call normal, and the anomaly-free file; without labels."""
    for file in [*skab.glob("valve*/*.csv"), *skab.glob("other/*.csv"), *skab.glob("anomaly-free/*.csv")]:
        name = f"{file.parent.name}-{file.name}"
        if name == "other-2.csv":  # 296 of its first 400 rows are anomalous
            continue
        recording = read_recording(file)
        part = recording if file.parent.name == "anomaly-free" else recording.part(0, 400)
        write_recording(out / name, type(part)(part.name, part.channels, part.time_ns, part.x))
    return out
