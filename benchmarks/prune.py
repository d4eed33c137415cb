"""What pruning costs and what it saves: docs/compression.md, section Pruning.

    python -m benchmarks.prune --skab ../shared/data/skab [--every 3] [--seed 0] [--out bench-out]

The default TCN is trained on what `benchmarks.detect` trains on, then cut in steps to a fifth of its MACs with the recovery
that `amiss quantize` does, whatever quality says on the way. Every model of the curve becomes a bundle in int8, is commissioned
for each recording and judged as in `benchmarks.detect`, by a scorer that reads the encoder and by the default one.

Controls: the whole model with as many steps of recovery, so that learning for longer is not put down to pruning; and smaller
encoders trained from the start with all the steps that the pruned ones had. Labels are for AUROC and VUS-PR and nothing else.
Latency: all models take turns in every round, one thread, medians.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.detect import commissioned, row_scores, scaled
from benchmarks.detect_data import Group, skab
from edge.bundle import Bundle
from edge.scoring.backends import open_backend
from edge.scoring.ensemble import DEFAULT_SCORER
from edge.sensing.recordings import write_recording
from quantize.export import export
from quantize.int8 import quantize_int8
from quantize.pack import Description, pack
from quantize.prune import Judge, Point, descend, recover
from quantize.ranges import representative
from trainer.checkpoint import load_detector, load_windows
from trainer.evaluate import buffer_of
from trainer.metrics import auroc, vus_pr
from trainer.model import Detector
from trainer.recipe import EncoderRecipe, PruneRecipe, Recipe
from trainer.train import RunInfo, deterministic, train

BATCHES, ROUNDS = (1, 32), 300
SCORERS = ("mahalanobis(features)", DEFAULT_SCORER)
SMALLER = (24, 16)
"""Widths of the controls that are trained from the start."""


@dataclass(slots=True)
class Model:
    name: str
    point: Point
    info: RunInfo
    float_model: bytes
    int8: bytes
    figures: dict[str, Any]


def built(name: str, detector: Detector, point: Point, run: Path, info: RunInfo, group: Group, folder: Path) -> Model:
    fit, calibration, position = load_windows(run)
    export(detector, calibration[:64], folder / "float.onnx")
    quantize_int8(folder / "float.onnx", representative(fit), folder / "int8.onnx")
    model = Model(name, point, info, (folder / "float.onnx").read_bytes(), (folder / "int8.onnx").read_bytes(), {})
    for scorer in SCORERS:
        about = Description(
            name="pruned",
            version="1",
            channels=info.channels,
            rate_hz=info.rate_hz,
            hop=info.hop,
            missing=info.missing,
            scorer=scorer,
            smoothing=info.recipe.smoothing_samples,
            precision="int8",
            precision_reason="asked for",
        )
        pack(folder / "x.amiss", {"model.onnx": model.int8}, fit, calibration, position, about)
        bundle = Bundle.open(folder / "x.amiss")
        found = []
        for case in group.cases:
            score = scaled(row_scores(commissioned(bundle, case.normal), case.test))
            assert case.test.label is not None
            found.append((auroc(score, case.test.label), vus_pr(score, case.test.label, buffer_of(case.test))))
        model.figures[scorer] = dict(zip(("auroc", "vus_pr"), np.mean(found, axis=0).tolist(), strict=True))
    told = ", ".join(f"{value['auroc']:.4f} {value['vus_pr']:.4f}" for value in model.figures.values())
    print(
        f"{name}: {point.macs} MACs, loss {point.loss_cut:.4f} → {point.loss:.4f}, {point.detection:.4f}; SKAB {told}",
        flush=True,
    )
    return model


def trained(recipe: Recipe, group: Group, run: Path) -> tuple[Detector, RunInfo, Judge]:
    with tempfile.TemporaryDirectory() as folder:
        for recording in group.training:
            write_recording(Path(folder) / f"{recording.name}.csv", recording)
        train(recipe, [Path(folder)], run, overwrite=True)
    detector, info = load_detector(run)
    fit, calibration, _ = load_windows(run)
    return detector, info, Judge(info.recipe, fit, calibration)


def curve(group: Group, settings: PruneRecipe, seed: int, folder: Path) -> list[Model]:
    recipe = Recipe()
    recipe = msgspec.structs.replace(recipe, training=msgspec.structs.replace(recipe.training, seed=seed))
    run = folder / "run"
    detector, info, judge = trained(recipe, group, run)
    models = [built("trained", detector, judge.point(detector, detector, 1.0), run, info, group, folder)]
    whole, cuts = judge.macs(detector), 0
    with deterministic(seed, recipe.training.threads):
        for cut, recovered in descend(detector, info.recipe, judge, settings):
            cuts += 1
            point = judge.point(cut, recovered, judge.macs(recovered) / whole)
            models.append(built(f"pruned to {point.share:.0%}", recovered, point, run, info, group, folder))
        more = cuts * settings.recovery_steps
        longer = recover(detector, info.recipe, judge.windows, judge.held_back, more)
    models.append(built(f"trained, {more} steps more", longer, judge.point(detector, longer, 1.0), run, info, group, folder))
    for width in SMALLER:
        training = msgspec.structs.replace(recipe.training, steps=recipe.training.steps + more)
        small = msgspec.structs.replace(recipe, encoder=EncoderRecipe(width=width), training=training)
        detector, info, judge = trained(small, group, folder / f"width-{width}")
        point = judge.point(detector, detector, judge.macs(detector) / whole)
        models.append(built(f"trained with width {width}", detector, point, folder / f"width-{width}", info, group, folder))
    return models


def latencies(models: Sequence[Model]) -> dict[tuple[int, str, int], float]:
    """(number of the model, precision, batch) → µs a window."""
    backends = {(i, "float"): open_backend(model.float_model) for i, model in enumerate(models)}
    backends |= {(i, "int8"): open_backend(model.int8) for i, model in enumerate(models)}
    channels, length = len(models[0].info.channels), models[0].info.window
    found = {}
    for batch in BATCHES:
        x = np.random.default_rng(1).normal(size=(batch, channels, length)).astype(np.float32)
        times: dict[tuple[int, str], list[int]] = {key: [] for key in backends}
        for _ in range(ROUNDS):
            for key, backend in backends.items():
                backend.run(x)  # so that what is measured finds its own weights in the cache, and not those of the one before
                started = time.perf_counter_ns()
                backend.run(x)
                times[key].append(time.perf_counter_ns() - started)
        found |= {(*key, batch): float(np.median(values)) / 1000 / batch for key, values in times.items()}
    return found


def table(models: Sequence[Model]) -> list[str]:
    us = latencies(models)
    lines = [
        "| | MACs | parameters | loss, cut → recovered | injected faults | SKAB AUROC, VUS-PR | by the default scorer "
        "| float, int8 kB | float µs: 1, 32 at once | int8 µs: 1, 32 at once |",
        "|---" * 10 + "|",
    ]
    for i, model in enumerate(models):
        point = model.point
        loss = f"{point.loss:.3f}" if point.loss_cut == point.loss else f"{point.loss_cut:.3f} → {point.loss:.3f}"
        cells = [model.name, f"{point.macs / 1000:.0f}k ({point.share:.0%})", str(point.parameters), loss]
        cells.append(f"{point.detection:.3f}")
        cells += [f"{model.figures[scorer]['auroc']:.3f}, {model.figures[scorer]['vus_pr']:.3f}" for scorer in SCORERS]
        cells.append(f"{len(model.float_model) / 1000:.0f}, {len(model.int8) / 1000:.0f}")
        for kind in ("float", "int8"):
            model.figures[f"{kind}_us"] = [us[i, kind, batch] for batch in BATCHES]
            cells.append(", ".join(f"{us[i, kind, batch]:.1f}" for batch in BATCHES))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skab", type=Path, required=True, help="folder of the set")
    parser.add_argument("--every", type=int, default=1, help="judge only every n-th recording")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4, help="cuts on the way")
    parser.add_argument("--recovery-steps", type=int, default=PruneRecipe().recovery_steps)
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    options = parser.parse_args(arguments)
    (group,) = skab(options.skab)
    group = Group(group.name, group.training, group.cases[:: options.every])
    settings = PruneRecipe(target="macs", ratio=0.2, steps=options.steps, recovery_steps=options.recovery_steps)
    with tempfile.TemporaryDirectory(prefix="amiss-prune-") as folder:
        models = curve(group, settings, options.seed, Path(folder))
    print(f"{len(group.cases)} recordings", *table(models), sep="\n")
    options.out.mkdir(parents=True, exist_ok=True)
    figures = [{"name": m.name, **msgspec.to_builtins(m.point), **m.figures} for m in models]
    (options.out / "prune.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    print(options.out / "prune.json", file=sys.stderr)


if __name__ == "__main__":
    main()
