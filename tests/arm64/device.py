"""Runs on the emulated processor: opens bundles as an agent does, and prints as JSON what came of it.

device.py WINDOWS.npy RECORDING.csv BUNDLE…
"""

import json
import platform
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge.bundle import Bundle
from edge.errors import BundleError
from edge.scoring.backends import run_in_slices
from edge.sensing.recordings import Recording, match_channels, read_recording
from edge.signal import Samples

CHUNK = 25


def judged(path: Path, windows: np.ndarray, recording: Path) -> dict[str, Any]:
    """Raw scores of (B, C, N), how far the golden ones are off, what is told of a recording; or why the bundle is refused."""
    try:
        bundle = Bundle.open(path)
        worst = bundle.self_test().worst
    except BundleError as error:
        return {"refused": str(error)}
    outputs = run_in_slices(bundle.backend, windows)
    scores = bundle.head.scorer.score(outputs).tolist()
    return {"backend": bundle.backend.name, "worst": worst, "scores": scores} | told(bundle, read_recording(recording))


def told(bundle: Bundle, recording: Recording) -> dict[str, Any]:
    """The end of each window, its score and its p-value, and the events, of samples that come as from a port."""
    recording = match_channels(recording, bundle.channels)
    pipeline = bundle.pipeline()
    ends, scores, p_values, events = list[int](), list[float](), list[float](), list[Any]()
    for at in range(0, len(recording.time_ns), CHUNK):
        some = slice(at, at + CHUNK)
        verdicts = pipeline.judge(Samples(recording.time_ns[some], recording.x[:, some]))
        ends += verdicts.end_ns.tolist()
        scores += verdicts.score.tolist()
        p_values += verdicts.p_value.tolist()
        events += msgspec.to_builtins(verdicts.events)
    return {"ends": ends, "smoothed": scores, "p_values": p_values, "events": events}


if __name__ == "__main__":
    x = np.load(sys.argv[1])
    found = {Path(name).name: judged(Path(name), x, Path(sys.argv[2])) for name in sys.argv[3:]}
    print(json.dumps({"machine": platform.machine(), "bundles": found}))
