"""What each kind of encoder costs, and whether it finds more: docs/encoders.md.

    python -m benchmarks.encoders                          size and speed, about 3 minutes
    python -m benchmarks.encoders --skab ../shared/data/skab [--seeds 3] [--limit 8] [--size 30k]

Size and speed are of untrained weights, on which they do not depend: 8 channels, windows of 64, one window at a time and 32, on
one thread. All models take turns in every round, and what is given is the median.

With `--skab` each kind is trained with the default recipe but for its window of 64, its kind and its size, on what
`benchmarks.detect` trains on; the bundle that `amiss quantize` would ship, speed apart, is commissioned for each recording and
judged as there. AUROC per row; labels are for that figure and nothing else.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import torch

from benchmarks.detect import commissioned, row_scores
from benchmarks.detect_data import Group, skab
from edge.bundle import Bundle
from edge.errors import GateError
from edge.scoring.backends import open_backend
from edge.sensing.recordings import write_recording
from quantize import quantize
from quantize.export import export
from quantize.int8 import quantize_int8
from trainer.encoders import ENCODERS
from trainer.metrics import auroc
from trainer.model import Detector
from trainer.recipe import Budget, EncoderRecipe, Recipe, Size
from trainer.train import train

CHANNELS, LENGTH, BATCHES, ROUNDS = 8, 64, (1, 32), 300
PATIENT = Budget(slower=math.inf)
"""What ships is not to depend on what else this machine is doing."""


def models(encoder: EncoderRecipe) -> tuple[int, bytes, bytes | None]:
    """Parameters of the encoder, float model, int8 model if there is one."""
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(64, CHANNELS, LENGTH)).astype(np.float32)
    detector = Detector(CHANNELS, Recipe(window=LENGTH, encoder=encoder))
    detector.fit_normalisation(x)
    with tempfile.TemporaryDirectory() as folder:
        float_path, int8_path = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        export(detector.eval(), x[:8], float_path)
        try:
            quantize_int8(float_path, x, int8_path)
        except GateError:
            int8 = None
        else:
            int8 = int8_path.read_bytes()
        return sum(p.numel() for p in detector.encoder.parameters()), float_path.read_bytes(), int8


def cost() -> list[str]:
    """The table of size and speed, as markdown. `random` is missing: on a device it is a TCN."""
    made = {
        (kind, size): models(EncoderRecipe(kind=kind, size=size))
        for kind in ENCODERS
        if kind != "random"
        for size in get_args(Size)
    }
    backends = {
        (*key, precision): open_backend(model)
        for key, (_, *pair) in made.items()
        for precision, model in zip(("float", "int8"), pair, strict=True)
        if model is not None
    }
    us: dict[tuple[str, str, str, int], float] = {}
    for batch in BATCHES:
        x = np.random.default_rng(1).normal(size=(batch, CHANNELS, LENGTH)).astype(np.float32)
        times: dict[tuple[str, str, str], list[int]] = {key: [] for key in backends}
        for _ in range(ROUNDS):
            for key, backend in backends.items():
                backend.run(x)  # so that what is measured finds its own weights in the cache, and not those of the one before
                started = time.perf_counter_ns()
                backend.run(x)
                times[key].append(time.perf_counter_ns() - started)
        us |= {(*key, batch): float(np.median(values)) / 1000 / batch for key, values in times.items()}
    lines = [
        "| kind | size | parameters | float kB | int8 kB | float µs | int8 µs | float µs, 32 at once | int8 µs, 32 at once |",
        "|---" * 9 + "|",
    ]
    for (kind, size), (parameters, float_model, int8) in made.items():
        cells = [kind, size, str(parameters), f"{len(float_model) / 1000:.0f}", f"{len(int8) / 1000:.0f}" if int8 else "–"]
        for batch in BATCHES:
            found = [us.get((kind, size, precision, batch)) for precision in ("float", "int8")]
            cells += ["–" if value is None else f"{value:.{0 if batch == 1 else 1}f}" for value in found]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def detection(group: Group, size: Size, seeds: int) -> list[str]:
    """The table of AUROC, as markdown."""
    lines = ["| kind | AUROC | of every seed | ships | training, s |", "|---" * 5 + "|"]
    for kind in ENCODERS:
        means, shipped, took = [], [], []
        for seed in range(seeds):
            recipe = Recipe(window=LENGTH, encoder=EncoderRecipe(kind=kind, size=size))  # type: ignore[arg-type]
            recipe = msgspec.structs.replace(recipe, training=msgspec.structs.replace(recipe.training, seed=seed))
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                for recording in group.training:
                    write_recording(folder / f"{recording.name}.csv", recording)
                started = time.monotonic()
                train(recipe, [folder], folder / "run")
                took.append(time.monotonic() - started)
                made = quantize(folder / "run", folder / "encoder.amiss", budget=PATIENT)
                bundle = Bundle.open(folder / "encoder.amiss")
            scores = [row_scores(commissioned(bundle, case.normal), case.test) for case in group.cases]
            labels = [case.test.label for case in group.cases]
            means.append(float(np.mean([auroc(score, label) for score, label in zip(scores, labels, strict=True)])))  # type: ignore[arg-type]
            shipped.append(made.precision)
            print(f"{kind}, seed {seed}: {means[-1]:.3f}, {made.precision} ({made.reason})", file=sys.stderr, flush=True)
        spread = f" ± {np.std(means, ddof=1):.3f}" if seeds > 1 else ""
        each = ", ".join(f"{mean:.3f}" for mean in means)
        ships = ", ".join(sorted(set(shipped)))
        lines.append(f"| {kind} | {np.mean(means):.3f}{spread} | {each} | {ships} | {np.median(took):.0f} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skab", type=Path, help="folder of the set; with it detection is measured and not cost")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="judge only so many recordings")
    parser.add_argument("--size", choices=get_args(Size), default="30k")
    options = parser.parse_args(arguments)
    if options.skab is None:
        print("\n".join(cost()))
    else:
        (group,) = skab(options.skab, options.limit)
        print(f"{len(group.cases)} recordings", *detection(group, options.size, options.seeds), sep="\n")


if __name__ == "__main__":
    main()
