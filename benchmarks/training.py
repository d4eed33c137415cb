"""What a training costs: seconds and peak memory by number of windows, the whole of `amiss train`, one process each.

    python -m benchmarks.training [--windows 10000,100000] [--set training.steps=600] [--out bench-out]

Recordings of three channels are made up, written to `--out` and read again; a window has 32 samples, a hop eight. *Steps* is
the loop alone, which costs the same however many windows there are; the rest is reading, cutting and writing.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.models import Shape, signal
from edge.sensing.recordings import Recording, write_recording

HOP = 8
PER_FILE = 50_000
"""Windows, so that no more than that is in memory at once where files are read one by one."""


def recordings(windows: int, folder: Path) -> list[Path]:
    shape = Shape("3 ch, 100 Hz", 3, 100.0, 4 * HOP, 4)
    paths = []
    for number, at in enumerate(range(0, windows, PER_FILE)):
        rows = min(PER_FILE, windows - at) * HOP + 3 * HOP
        time_ns = 1_700_000_000_000_000_000 + np.arange(rows, dtype=np.int64) * 10_000_000
        paths.append(folder / f"normal-{number:03}.csv")
        write_recording(paths[-1], Recording(paths[-1].name, shape.names, time_ns, signal(shape, rows, seed=number)))
    return paths


def measured(folder: Path, overrides: Sequence[str]) -> dict[str, float]:
    """In a process of its own, whose peak of memory is that of this training."""
    from trainer.progress import Step
    from trainer.recipe import Recipe, apply_overrides
    from trainer.train import train

    told: list[tuple[int, float]] = []

    def report(step: Step) -> None:
        told.append((step.step, time.monotonic()))

    before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started, cpu_started = time.monotonic(), time.process_time()
    info = train(apply_overrides(Recipe(), overrides), [folder], folder.parent / "run", report)
    ended = time.monotonic()
    (first, first_s), (last, last_s) = told[0], told[-1]
    return {
        "windows": info.fit_windows + info.calibration_windows,
        "step_ms": 1000 * (last_s - first_s) / max(1, last - first),
        "steps_s": (last_s - first_s) * info.steps / max(1, last - first),
        "all_s": ended - started,
        "cpu_s": time.process_time() - cpu_started,
        "imports_mb": before_mb,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", default="10000,100000", help="how many, separated by commas")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the recipe")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(measured(options.measure, options.set)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    print("| windows | recordings | all | processor | steps | a step | peak memory | of it before reading |")
    print("|---|---|---|---|---|---|---|---|")
    for count in map(int, options.windows.split(",")):
        with tempfile.TemporaryDirectory(dir=options.out) as folder:
            (Path(folder) / "data").mkdir()
            size = sum(path.stat().st_size for path in recordings(count, Path(folder) / "data"))
            settings = [argument for pair in options.set for argument in ("--set", pair)]
            command = [sys.executable, "-m", "benchmarks.training", "--measure", f"{folder}/data", *settings]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout)
        cells = [
            f"{found['windows']:.0f}",
            f"{size / 1e6:.0f} MB",
            *(f"{found[key]:.0f} s" for key in ("all_s", "cpu_s", "steps_s")),
            f"{found['step_ms']:.1f} ms",
            *(f"{found[key]:.0f} MB" for key in ("peak_mb", "imports_mb")),
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
