"""Runs on the emulated processor: opens bundles as an agent does, and prints as JSON what came of it.

device.py WINDOWS.npy BUNDLE…
"""

import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edge.bundle import Bundle
from edge.errors import BundleError
from edge.scoring.backends import run_in_slices


def judged(path: Path, windows: np.ndarray) -> dict[str, Any]:
    """Raw scores of (B, C, N), and how far the golden ones are off; or why the bundle is refused."""
    try:
        bundle = Bundle.open(path)
        worst = bundle.self_test().worst
    except BundleError as error:
        return {"refused": str(error)}
    outputs = run_in_slices(bundle.backend, windows)
    return {"backend": bundle.backend.name, "worst": worst, "scores": bundle.head.scorer.score(outputs).tolist()}


if __name__ == "__main__":
    x = np.load(sys.argv[1])
    found = {Path(name).name: judged(Path(name), x) for name in sys.argv[2:]}
    print(json.dumps({"machine": platform.machine(), "bundles": found}))
