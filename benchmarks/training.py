"""What a training costs: seconds and peak memory by number of windows; `amiss train`, then `amiss quantize`, a process each.

    python -m benchmarks.training [--windows 10000,100000,1000000] [--set training.steps=600] [--out bench-out]

Recordings of three channels are made up, written to `--out` and read again; a window has 32 samples, a hop eight. *Steps* is
the loop alone, which costs the same however many windows there are; the rest is reading, cutting and writing.

*Own* memory is what the process has written (RssAnon): nobody but it can give it back. *Mapped* are pages of files, libraries
and the samples on disk: the system takes them back when something else needs the room, so they are no need. Both are looked at
from outside every 10 ms (Linux), and each has its own peak.
"""

import argparse
import contextlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.models import Shape, signal
from edge.sensing.recordings import Recording, write_recording

HOP = 8
EVERY_S = 0.01
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


def trained(folder: Path, overrides: Sequence[str]) -> dict[str, float]:
    """In a process of its own, whose peak of memory is that of this training."""
    from trainer.progress import Step
    from trainer.recipe import Recipe, apply_overrides
    from trainer.train import train

    told: list[tuple[int, float]] = []

    def report(step: Step) -> None:
        told.append((step.step, time.monotonic()))

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
    }


def quantized(folder: Path) -> dict[str, float]:
    """In a process of its own: the run beside the recordings becomes a bundle."""
    from quantize import quantize

    started, cpu_started = time.monotonic(), time.process_time()
    found = quantize(folder.parent / "run", folder.parent / "made.amiss")
    cpu_s = time.process_time() - cpu_started
    return {"windows": found.calibration_windows, "all_s": time.monotonic() - started, "cpu_s": cpu_s}


def watched(verb: str, folder: Path, settings: Sequence[str]) -> dict[str, float]:
    """What one process says of itself, and the peaks of its own memory and of mapped files, MB; NaN without /proc."""
    command = [sys.executable, "-m", "benchmarks.training", "--measure", verb, str(folder), *settings]
    peaks = {"RssAnon": math.nan, "RssFile": math.nan}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            with contextlib.suppress(OSError):  # it may end at any moment
                for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                    key, _, rest = line.partition(":")
                    if key in peaks:
                        peaks[key] = float(np.fmax(peaks[key], int(rest.split()[0]) / 1024))
            time.sleep(EVERY_S)
        said = process.communicate()[0]
    if process.returncode:
        raise SystemExit(process.returncode)
    found: dict[str, float] = json.loads(said)
    return found | {"own_mb": peaks["RssAnon"], "mapped_mb": peaks["RssFile"]}


def rows_of(folder: Path, settings: Sequence[str]) -> Iterator[str]:
    """Of the table: `amiss train` on these recordings, then `amiss quantize` of what it left."""
    size = sum(path.stat().st_size for path in folder.iterdir())
    for verb in ("train", "quantize"):
        found = watched(verb, folder, settings)
        steps = (f"{found['steps_s']:.0f} s", f"{found['step_ms']:.1f} ms") if verb == "train" else ("", "")
        memory = (f"{found[key]:.0f} MB" for key in ("own_mb", "mapped_mb"))
        cells = [verb, f"{found['windows']:.0f}", f"{size / 1e6:.0f} MB", f"{found['all_s']:.0f} s", f"{found['cpu_s']:.0f} s"]
        yield f"| {' | '.join([*cells, *steps, *memory])} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", default="10000,100000,1000000", help="how many, separated by commas")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the recipe")
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        verb, folder = options.measure[0], Path(options.measure[1])
        print(json.dumps(trained(folder, options.set) if verb == "train" else quantized(folder)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    settings = [argument for pair in options.set for argument in ("--set", pair)]
    print("| | windows | recordings | all | processor | steps | a step | own memory, peak | mapped, peak |")
    print("|---|---|---|---|---|---|---|---|---|")
    for count in map(int, options.windows.split(",")):
        with tempfile.TemporaryDirectory(dir=options.out) as folder:
            (Path(folder) / "data").mkdir()
            recordings(count, Path(folder) / "data")
            for row in rows_of(Path(folder) / "data", settings):
                print(row, flush=True)


if __name__ == "__main__":
    main()
