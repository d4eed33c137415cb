"""What a sample costs, windowed and streamed, against the hop: docs/compression.md.

    python -m benchmarks.streaming                        time, 2 minutes
    python -m benchmarks.streaming --instructions         the same in instructions; needs valgrind and a C compiler

Samples arrive 32 at a time. Measured is what the model costs from the windows that a chunk completes to their outputs, on one
thread, overhead of the runtime and of Python included; cutting and scoring are the same for both. Weights are untrained, on
which speed does not depend. Instructions are counted by callgrind, whose processor knows AVX2 and nothing newer; they are the
same on a busy machine as on an idle one. Times are of the processor, medians of rounds in which all variants take turns.
"""

import argparse
import ctypes
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from edge.scoring.backends import open_backend, run_in_slices
from edge.scoring.streaming import open_stream
from edge.sensing.windows import Windower
from edge.signal import Samples

CHANNELS, CHUNK, HOPS = 8, 32, (1, 2, 4, 8, 16, 32)
SHAPES = ((64, 3, 4), (64, 3, 2), (128, 4, 4), (128, 4, 2), (256, 4, 4), (256, 4, 2))
"""Window, depth, stride. A deeper encoder would reach beyond its window."""
ROUNDS, COUNTED = 40, 2
MARK = """#include <valgrind/callgrind.h>
void watch(void) { CALLGRIND_START_INSTRUMENTATION; }
void begin(void) { CALLGRIND_ZERO_STATS; }
void end(const char *name) { CALLGRIND_DUMP_STATS_AT(name); }
"""
Key = tuple[int, int, str, str, int]
"""Window, stride, precision, `windowed` or `streamed`, hop."""


def build(folder: Path) -> None:
    """Windowed and stateful models of all shapes, float and int8."""
    import torch

    from quantize.export import export
    from quantize.int8 import quantize_int8
    from quantize.stream import export_stream
    from trainer.model import Detector
    from trainer.recipe import EncoderRecipe, Recipe

    torch.set_num_threads(1)
    for window, depth, stride in SHAPES:
        torch.manual_seed(0)
        x = np.random.default_rng(0).normal(size=(64, CHANNELS, window)).astype(np.float32)
        encoder = EncoderRecipe(width=48, depth=depth, stride=stride, causal=True)  # type: ignore[arg-type]
        detector = Detector(CHANNELS, Recipe(window=window, encoder=encoder))
        detector.fit_normalisation(x)
        detector.eval()
        models = {precision: folder / f"{window}-{stride}-{precision}.onnx" for precision in ("float", "int8")}
        export(detector, x[:8], models["float"])
        quantize_int8(models["float"], x, models["int8"])
        for path in models.values():
            made = export_stream(detector, path.read_bytes(), x[:2], path.with_suffix(".stream"))
            print(f"{path.name}: equal within {made.difference:.1g}, declared up to a hop of {made.hop}", file=sys.stderr)


def variants(folder: Path) -> Iterator[tuple[Key, Callable[[], None]]]:
    """What is measured: each call takes one chunk's windows, the same every time."""
    rng = np.random.default_rng(1)
    for window, _, stride in SHAPES:
        for precision in ("float", "int8"):
            path = folder / f"{window}-{stride}-{precision}.onnx"
            backend, graph = open_backend(path.read_bytes()), open_stream(path.with_suffix(".stream").read_bytes())
            for hop in HOPS:
                windower, stream = Windower(CHANNELS, 100.0, window, hop), graph.start(hop)
                n = 4 * window
                x = rng.normal(size=(CHANNELS, n + CHUNK)).astype(np.float32)
                times = np.arange(n + CHUNK) * 10_000_000
                stream.run(windower.feed(Samples(times[:n], x[:, :n])))
                windows = windower.feed(Samples(times[n:], x[:, n:]))
                assert len(windows) == CHUNK // hop

                def windowed(backend=backend, windows=windows) -> None:  # type: ignore[no-untyped-def]
                    run_in_slices(backend, windows.x)

                def streamed(stream=stream, windows=windows) -> None:  # type: ignore[no-untyped-def]
                    stream.run(windows)

                yield (window, stride, precision, "windowed", hop), windowed
                yield (window, stride, precision, "streamed", hop), streamed


def timed(folder: Path) -> dict[Key, float]:
    """µs a sample."""
    runs = dict(variants(folder))
    taken: dict[Key, list[int]] = {key: [] for key in runs}
    for _ in range(ROUNDS):
        for key, run in runs.items():
            run()  # so that what is measured finds its own weights in the cache
            started = time.process_time_ns()
            run()
            taken[key].append(time.process_time_ns() - started)
    return {key: float(np.median(values)) / 1000 / CHUNK for key, values in taken.items()}


def counted(folder: Path) -> dict[Key, float]:
    """Instructions a sample."""
    (folder / "mark.c").write_text(MARK)
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(folder / "mark.so"), str(folder / "mark.c")], check=True)
    command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/counts"]
    command += [sys.executable, "-m", "benchmarks.streaming", "--inside", str(folder)]
    subprocess.run(command, check=True, env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"})
    found: dict[Key, float] = {}
    for path in folder.glob("counts.*"):
        text = path.read_text("utf-8", "replace")
        name = re.search(r"Client Request: (\d+) (\d+) (\w+) (\w+) (\d+)", text)
        if name:
            (total,) = re.findall(r"^totals: (\d+)", text, re.MULTILINE)
            key = (int(name[1]), int(name[2]), name[3], name[4], int(name[5]))
            found[key] = int(total) / COUNTED / CHUNK
    return found


def inside(folder: Path) -> None:
    """Under callgrind."""
    mark = ctypes.CDLL(str(folder / "mark.so"))
    runs = sorted(variants(folder), key=lambda variant: variant[0][4])  # what matters most first
    mark.watch()  # once: each time it has to translate everything anew
    for key, run in runs:
        run()
        run()
        mark.begin()
        for _ in range(COUNTED):
            run()
        mark.end(" ".join(map(str, key)).encode())


def table(found: dict[Key, float], unit: str) -> list[str]:
    """Markdown."""
    lines = [f"| window | stride | precision | | {' | '.join(f'hop {hop}' for hop in HOPS)} |", "|---" * (4 + len(HOPS)) + "|"]
    for window, _, stride in SHAPES:
        for precision in ("float", "int8"):
            rows = {kind: [found[window, stride, precision, kind, hop] for hop in HOPS] for kind in ("windowed", "streamed")}
            for kind, values in rows.items():
                cells = " | ".join(f"{value:.2f}" if value < 100 else f"{value:.0f}" for value in values)
                lines.append(f"| {window} | {stride} | {precision} | {kind}, {unit} | {cells} |")
            ratios = " | ".join(f"{a / b:.1f}" for a, b in zip(rows["windowed"], rows["streamed"], strict=True))
            lines.append(f"| {window} | {stride} | {precision} | windowed ÷ streamed | {ratios} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instructions", action="store_true", help="count instead of taking the time")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(options.inside)
        return
    with tempfile.TemporaryDirectory(prefix="amiss-streaming-") as name:
        build(Path(name))
        found, unit = (counted(Path(name)), "instructions") if options.instructions else (timed(Path(name)), "µs")
    print("\n".join(table(found, unit)))


if __name__ == "__main__":
    main()
