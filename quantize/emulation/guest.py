"""Runs on the emulated processor: models, by the very backend that a device uses, with a mark between numbers of runs.

    guest.py JOB.json    {"models": [file, …], "windows": file.npy, "batches": [1, …], "runs": [few, many]}

A mark is a call of getppid, which `count.c` sees. For each model and batch there are three: before few, before many, after.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

from edge.scoring.backends import open_backend

WARM_UP = 2


def main(job: Path) -> None:
    plan = json.loads(job.read_text())
    windows = np.load(plan["windows"])
    for model in plan["models"]:
        backend = open_backend(Path(model).read_bytes())
        for batch in plan["batches"]:
            x = windows[:batch].copy()
            for _ in range(WARM_UP):
                backend.run(x)
            for runs in plan["runs"]:
                os.getppid()
                for _ in range(runs):
                    backend.run(x)
            os.getppid()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
