"""What a model costs under each runtime: `python -m benchmarks.runtimes`; a table for docs/compression.md on stdout.

Every figure is of a fresh process that holds numpy, the device's backend and the model, on one thread. Times are of the
processor, which on a busy machine are the steadier ones; the processes take turns, several times round, and the least median
counts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

HOME = Path(__file__).parents[1]
OLDEST = HOME / ".venv/tflite-runtime/bin/python"
CHANNELS = 5
CHILD = """
import json, sys, time
import numpy as np
sys.path.insert(0, sys.argv[1])
import edge
from edge.scoring.backends import RUNTIMES
with open(sys.argv[3], "rb") as file:
    backend = RUNTIMES[sys.argv[2]].open(file.read())
x = np.load(sys.argv[4])
def median_us(size, turns):
    times = []
    for turn in range(turns):
        started = time.process_time_ns()
        backend.run(x[:size])
        times.append(time.process_time_ns() - started)
    return float(np.median(times[10:])) / 1000
found = {"us_1": median_us(1, 200), "us_32": median_us(32, 60)}
with open("/proc/self/status") as file:
    found["rss_mb"] = next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1000
print(json.dumps(found))
"""


def main() -> None:
    import numpy as np
    import torch

    from edge.scoring.backends import RUNTIMES
    from edge.sensing.simulate import simulate
    from quantize.models import FORMATS, make_models
    from trainer.model import Detector
    from trainer.recipe import Recipe, apply_overrides

    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--windows", type=int, nargs="+", default=[32, 256])
    arguments.add_argument("--rounds", type=int, default=5)
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    print("| window | runtime | precision | kB | µs, 1 window | µs, 32 windows | RSS MB |")
    print("|---|---|---|---|---|---|---|")
    for length in chosen.windows:
        torch.manual_seed(0)
        samples = simulate(300, seed=1, rate_hz=50).x  # (C, n); weights as they were drawn take as long as others
        starts = np.arange(0, samples.shape[1] - length, max(length // 4, samples.shape[1] // 600))
        x = np.stack([samples[:CHANNELS, at : at + length] for at in starts])
        detector = Detector(CHANNELS, apply_overrides(Recipe(), [f"window={length}"])).eval()
        detector.fit_normalisation(x)
        models, _ = make_models(detector, FORMATS["both"], x[:-64], x[-64:])
        with tempfile.TemporaryDirectory(prefix="amiss-runtimes-") as name:
            folder = Path(name)
            np.save(folder / "x.npy", x[:32])
            found: dict[tuple[str, str], list[dict[str, float]]] = {}
            for _ in range(chosen.rounds):
                for runtime in FORMATS["both"]:
                    for precision in ("float32", "int8"):
                        python = str(OLDEST) if runtime == "tflite-runtime" else sys.executable
                        model = folder / f"{runtime}-{precision}"
                        model.write_bytes(models[RUNTIMES[runtime].member][precision])
                        command = [python, "-c", CHILD, str(HOME), runtime, str(model), str(folder / "x.npy")]
                        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                        found.setdefault((runtime, precision), []).append(json.loads(said.stdout))
        for (runtime, precision), rounds in found.items():
            least = {key: min(each[key] for each in rounds) for key in rounds[0]}
            size = len(models[RUNTIMES[runtime].member][precision]) / 1000
            print(
                f"| {length} | {runtime} | {precision} | {size:.0f} | {least['us_1']:.0f} | {least['us_32']:.0f} "
                f"| {least['rss_mb']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
