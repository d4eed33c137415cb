"""`make packages`: everything that is handed out, built once and tried in Debians of its own. As root, with some minutes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_bundle import CHANNELS, build, normal

from edge.sensing.recordings import Recording, write_recording

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `make dist`. $AMISS_DIST names one that was made before."""
    if said := os.environ.get("AMISS_DIST"):
        return Path(said)
    assert os.geteuid() == 0, "chroots are root's: sudo make packages"
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "deploy.dist", "all", "--out", folder], check=True, cwd=REPOSITORY)
    return folder


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a device is given: a bundle, a recording, and `scores.csv` of this computer."""
    import numpy as np

    folder = tmp_path_factory.mktemp("device")
    build(folder / "small.amiss")
    time_ns = 10**18 + 10_000_000 * np.arange(400, dtype=np.int64)
    write_recording(folder / "r.csv", Recording("r.csv", CHANNELS, time_ns, normal(400, seed=3)))
    command = ["score", "small.amiss", "r.csv", "--out", "scores.csv"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-m", "amiss", *command], check=True, cwd=folder, env=environment, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def figures() -> Iterator[dict[str, dict[str, object]]]:
    """What was measured on the way; told at the end, and not judged."""
    found: dict[str, dict[str, object]] = {}
    yield found
    print("\n" + json.dumps(found, indent=2))


def deb(folder: Path, debian: int, architecture: str) -> Path:
    from deploy.deb import Target, released

    return folder / Target(debian, architecture).file_name(released())
