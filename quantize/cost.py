"""What each model costs on this machine, on one thread: time, and memory in a process of its own."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from edge.scoring.backends import RUNTIMES
from edge.signal import Float32
from quantize.models import Models
from quantize.parity import ROUNDS, Parity, latency

TOGETHER = 32
"""Windows of a batch."""
ROUNDS_TOGETHER = 100
PRECISIONS = ("float32", "int8")

CODE = """
import sys
sys.path.insert(0, sys.argv[1])
import edge
import numpy as np
from edge.scoring.backends import RUNTIMES
with open(sys.argv[3] + "/model", "rb") as file:
    backend = RUNTIMES[sys.argv[2]].open(file.read())
x = np.load(sys.argv[3] + "/x.npy")
for _ in range(20):
    backend.run(x)
with open("/proc/self/status") as file:
    print(next(int(line.split()[1]) for line in file if line.startswith("VmRSS")))
"""


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Of one model under one runtime. Times are medians and 99 % quantiles; the models take turns."""

    runtime: str
    precision: str
    bytes: int
    one_us: float
    one_p99_us: float
    """One window at a time."""
    batch_us: float
    batch_p99_us: float
    """`TOGETHER` windows at once, all of them."""
    memory_mb: float | None
    """Resident in a fresh process that holds numpy, the device's backend and the model. None: this system does not say."""


def costs(models: Models, runtimes: Sequence[str], windows: Float32, measured: Mapping[str, Parity | str]) -> tuple[Cost, ...]:
    """Of every model under every one of these runtimes. What was `measured` already, one window at a time, is not measured
    again: two figures for one thing would only differ by what else the machine did."""
    named = [(name, kind) for name in runtimes for kind in PRECISIONS if kind in models[RUNTIMES[name].member]]
    sources = [models[RUNTIMES[name].member][kind] for name, kind in named]
    backends = [RUNTIMES[name].open(model) for (name, _), model in zip(named, sources, strict=True)]
    batch = np.resize(windows, (TOGETHER, *windows.shape[1:]))
    ones = list(zip(*latency(backends, batch[:1], ROUNDS), strict=True))
    batches = list(zip(*latency(backends, batch, ROUNDS_TOGETHER), strict=True))
    found = []
    for at, (name, kind) in enumerate(named):
        parity, one = measured[name], ones[at]
        if isinstance(parity, Parity):
            one = (parity.int8_us, parity.int8_p99_us) if kind == "int8" else (parity.float_us, parity.float_p99_us)
        found.append(
            Cost(
                runtime=name,
                precision=kind,
                bytes=len(sources[at]),
                one_us=one[0],
                one_p99_us=one[1],
                batch_us=batches[at][0],
                batch_p99_us=batches[at][1],
                memory_mb=memory_mb(name, sources[at], batch[:1]),
            )
        )
    return tuple(found)


def memory_mb(runtime: str, model: bytes, windows: Float32) -> float | None:
    """Of a fresh process that runs the model on these windows (B, C, N), again and again."""
    if not os.path.exists("/proc/self/status"):
        return None
    with tempfile.TemporaryDirectory(prefix="amiss-cost-") as folder:
        (Path(folder) / "model").write_bytes(model)
        np.save(Path(folder) / "x.npy", windows)
        command = [sys.executable, "-c", CODE, str(Path(__file__).parents[1]), runtime, folder]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return int(done.stdout) / 1000
