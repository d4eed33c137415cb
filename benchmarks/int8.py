"""int8 as `amiss quantize` makes it, against what a user would do: docs/compression.md.

    python -m benchmarks.int8 [--limit 6] [--ratio 0.5] [--data ../shared/data]

The same trained encoder of the default recipe, windows of 64, in float and in int8, under ONNX Runtime where nothing is said:

- *ours*: `quantize.int8`, then `quantize.compact`
- *ours as QDQ*: the same nodes, types and ranges in ONNX Runtime's other form
- *quantize_static*: ONNX Runtime's own function on the same float graph with all its defaults (QDQ, signed activations, one
  scale a tensor, every operator that it can), and ranges from normal windows
- *quantize_static, Conv*: the same for convolutions only, which is what one tries when the first gives nonsense
- *LiteRT float*, *LiteRT int8*: `quantize.tflite`
- *pruned …*: cut to `--ratio` of the MACs by `quantize.prune`, with the default cuts and recovery, whatever quality says on the
  way, as `benchmarks.prune` does; then as above. What the default limits would have said is in the curve on stderr

All models take turns in every round, on one thread, each called once before it is timed: what its neighbour left in the caches
is no figure of its own. What they find is measured with the scorer that ships, which reads nothing learned, and with
`mahalanobis(features)`, which does; each has a head of its own, fitted to its own outputs. Labels are for the figures and no
more. An embedding is compared with that of the same encoder in float; verdicts with those of float as trained, and of a pruned
encoder with those of the same in float as well.
"""

import argparse
import logging
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.detect import Judge, commissioned, row_scores
from benchmarks.detect_data import SETS
from edge.bundle import Bundle
from edge.scoring.backends import RUNTIMES, member_of, open_backend
from edge.scoring.ensemble import DEFAULT_SCORER
from edge.sensing.recordings import write_recording
from edge.sensing.windows import MissingPolicy
from edge.signal import Float32
from quantize.compact import compact
from quantize.export import export
from quantize.int8 import quantize_int8
from quantize.models import FORMATS, make_models
from quantize.pack import Description, pack
from quantize.parity import compare
from quantize.prune import Stopwatch, prune
from quantize.ranges import COUNT, WindowReader, representative
from trainer.checkpoint import load_detector, load_info, load_windows
from trainer.model import Detector
from trainer.recipe import PruneRecipe, Recipe
from trainer.train import train

WINDOW, ROUNDS, BATCHES = 64, 400, (1, 32)
SCORERS = (DEFAULT_SCORER, "mahalanobis(features)")
FLOAT, PRUNED_FLOAT = "float", "pruned, float"


def whole(detector: Detector, fit: Float32, calibration: Float32, folder: Path) -> dict[str, bytes]:
    """Name → model of the encoder as it was trained."""
    from onnxruntime.quantization import quantize_static

    made, _ = make_models(detector, FORMATS["both"], fit, calibration)
    graph = folder / "float.onnx"
    export(detector, calibration[:64], graph)
    quantize_int8(graph, representative(fit), folder / "qdq.onnx", form="QDQ")
    logging.getLogger().setLevel(logging.ERROR)
    some = fit[:: max(1, len(fit) // COUNT)][:COUNT]
    quantize_static(str(graph), str(folder / "static.onnx"), WindowReader(some))
    quantize_static(str(graph), str(folder / "conv.onnx"), WindowReader(some), op_types_to_quantize=["Conv"])
    return {
        FLOAT: made["model.onnx"]["float32"],
        "ours": made["model.onnx"]["int8"],
        "ours as QDQ": compact((folder / "qdq.onnx").read_bytes()),
        "quantize_static": (folder / "static.onnx").read_bytes(),
        "quantize_static, Conv": (folder / "conv.onnx").read_bytes(),
        "LiteRT float": made["model.tflite"]["float32"],
        "LiteRT int8": made["model.tflite"]["int8"],
    }


def smaller(detector: Detector, recipe: Recipe, fit: Float32, calibration: Float32, ratio: float) -> dict[str, bytes]:
    """The same of the pruned one; says on stderr what became of it."""
    settings = PruneRecipe(target="macs", ratio=ratio, allowed_loss=math.inf, allowed_detection=1.0)
    found, pruning = prune(detector, recipe, fit, calibration, settings, Stopwatch(fit, calibration, int8=True))
    print(*(f"{key}: {value}" for key, value in pruning.table().items()), sep="\n", file=sys.stderr, flush=True)
    made, _ = make_models(found, FORMATS["both"], fit, calibration)
    return {
        PRUNED_FLOAT: made["model.onnx"]["float32"],
        "pruned, ours": made["model.onnx"]["int8"],
        "pruned, LiteRT float": made["model.tflite"]["float32"],
        "pruned, LiteRT int8": made["model.tflite"]["int8"],
    }


def speeds(found: dict[str, bytes], windows: Float32) -> dict[str, list[float]]:
    """Name → µs for each of `BATCHES`: the least of all rounds, since whatever else the machine does only ever adds."""
    backends = {name: open_backend(model) for name, model in found.items()}
    least: dict[str, list[float]] = {name: [] for name in found}
    for batch in BATCHES:
        x = np.ascontiguousarray(windows[:batch])
        times: dict[str, list[int]] = {name: [] for name in found}
        for turn in range(ROUNDS + 20):
            for name, backend in backends.items():
                backend.run(x)
                started = time.perf_counter_ns()
                backend.run(x)
                if turn >= 20:
                    times[name].append(time.perf_counter_ns() - started)
        for name, ns in times.items():
            least[name].append(min(ns) / 1000)
    return least


def bundle(run: Path, model: bytes, scorer: str, precision: str, out: Path) -> Bundle:
    info, (fit, calibration, position) = load_info(run), load_windows(run)
    about = Description(
        name="int8",
        version="1",
        channels=info.channels,
        rate_hz=info.rate_hz,
        hop=info.hop,
        missing=MissingPolicy(),
        scorer=scorer,
        smoothing=info.recipe.smoothing_samples,
        precision=precision,
        precision_reason="",
        runtimes=tuple(name for name, runtime in RUNTIMES.items() if runtime.member == member_of(model))[:1],
    )
    pack(out, {member_of(model): model}, fit, calibration, position, about)
    return Bundle.open(out)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", default="skab,smd")
    parser.add_argument("--limit", type=int, default=6, help="recordings of a set that are judged")
    parser.add_argument("--ratio", type=float, default=PruneRecipe().ratio, help="of the MACs that pruning is to leave")
    parser.add_argument("--runs", type=Path, help="keep the runs here, and use those that are there")
    options = parser.parse_args(arguments)
    for name in options.sets.split(","):
        group = SETS[name](options.data / name, options.limit)[0]
        with tempfile.TemporaryDirectory(prefix="amiss-int8-") as text:
            folder = Path(text)
            run = (options.runs or folder) / f"{name}{WINDOW}"
            if not run.exists():
                (folder / "data").mkdir()
                for recording in group.training:
                    write_recording(folder / "data" / f"{recording.name}.csv", recording)
                train(Recipe(window=WINDOW), [folder / "data"], run)
            (detector, info), (fit, calibration, _) = load_detector(run), load_windows(run)
            pruned = smaller(detector, info.recipe, fit, calibration, options.ratio)
            found = whole(detector, fit, calibration, folder) | pruned
            us = speeds(found, calibration)
            print(f"\n**{name}**, {fit.shape[1]} channels, {len(group.cases)} recordings judged\n")
            print("| | kB | µs | µs, 32 | embedding error |\n|---|---|---|---|---|")
            parity, own = {}, {}
            for title, model in found.items():
                error = "not finite"
                if all(np.isfinite(each).all() for each in open_backend(model).run(calibration).arrays().values()):
                    parity[title] = own[title] = [compare(found[FLOAT], model, fit, calibration, s, rounds=1) for s in SCORERS]
                    if title in pruned:
                        own[title] = [compare(found[PRUNED_FLOAT], model, fit, calibration, s, rounds=1) for s in SCORERS]
                    error = f"{own[title][0].embedding_error:.3f}"
                print(f"| {title} | {len(model) / 1000:.1f} | {us[title][0]:.1f} | {us[title][1]:.0f} | {error} |", flush=True)
            print(
                "\n| scorer | model | VUS-PR | AUROC | flips | rank correlation | flips, the same in float |\n"
                + "|---" * 7
                + "|"
            )
            judges = [Judge(case.test) for case in group.cases]
            for place, scorer in enumerate(SCORERS):
                for title, model in ((title, found[title]) for title in parity):
                    precision = "float32" if title.endswith("float") else "int8"
                    opened = bundle(run, model, scorer, precision, folder / "bundle.amiss")
                    figures = [
                        judge.figures(row_scores(commissioned(opened, case.normal), case.test))
                        for judge, case in zip(judges, group.cases, strict=True)
                    ]
                    vus, auroc = (float(np.mean([each[key] for each in figures])) for key in ("vus_pr", "auroc"))
                    p = parity[title][place]
                    agreed = f"{p.flips:.2%} | {p.rank_correlation:.4f} | {own[title][place].flips:.2%}"
                    print(f"| {scorer} | {title} | {vus:.4f} | {auroc:.4f} | {agreed} |", flush=True)


if __name__ == "__main__":
    main()
