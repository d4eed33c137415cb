"""Instructions for one window on the processors of small Arm boards, emulated: of the model alone (docs/compression.md), and
of the agent, from the bytes of its sensor to the alarm (docs/performance.md).

    python -m benchmarks.arm64            two tables
    python -m benchmarks.arm64 --write    … and the figures that tests/arm64 holds encoder and agent to

Untrained weights for the model alone: how many instructions it takes does not depend on them. About four minutes on an idle
machine.
"""

import argparse
import importlib
import importlib.util
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import wire
from benchmarks.models import SHAPES, Shape, signal
from edge.sensing.recordings import Recording, write_recording
from edge.sensing.sources import collect_s
from edge.signal import Float32
from quantize import quantize
from quantize.emulation import PROCESSORS, Arm64, prepare
from quantize.export import export
from quantize.int8 import quantize_int8
from trainer.model import Detector
from trainer.recipe import Budget, Recipe, TrainingRecipe, apply_overrides
from trainer.train import train

CHANNELS, LENGTH, BATCHES = 5, 64, (1, 32)
GATE = "tcn"
"""The default encoder: what is built for devices unless somebody says otherwise."""
ENCODERS = {
    GATE: [],
    "tcn 5k": ["encoder.size=5k"],
    "transformer 5k": ["encoder.kind=transformer", "encoder.size=5k"],
}
VARIANTS = ("float32", "unsigned", "signed")
"""Of ONNX Runtime."""
LITERT = ("litert float32", "litert int8")
PRECISIONS = ("float32", "int8")
LEARN_WINDOWS, STEPS = 1500, 2
"""What is learned from says how much a scorer knows; how well the encoder has learned changes no count."""
COUNTED = 32
"""Windows, after as many that are not counted: enough that sensor health and smoothing have begun, and that what is done now
and then has its share."""
FIGURES = Path(__file__).parents[1] / "tests" / "arm64" / "instructions.json"


def windows() -> Float32:
    x: Float32 = np.random.default_rng(0).normal(size=(64, CHANNELS, LENGTH)).astype(np.float32)
    return x


def models(encoder: str) -> dict[str, bytes]:
    """Float, and int8 with unsigned and with signed activations."""
    torch.manual_seed(0)
    x = windows()
    detector = Detector(CHANNELS, apply_overrides(Recipe(), ENCODERS[encoder]))
    detector.fit_normalisation(x)
    with tempfile.TemporaryDirectory(prefix="amiss-arm64-") as folder:
        paths = {variant: Path(folder) / f"{variant}.onnx" for variant in VARIANTS}
        export(detector.eval(), x[:8], paths["float32"])
        quantize_int8(paths["float32"], x, paths["unsigned"])
        quantize_int8(paths["float32"], x, paths["signed"], activations="signed")
        return {variant: path.read_bytes() for variant, path in paths.items()}


def tflite_models(encoder: str) -> dict[str, bytes]:
    """LiteRT's; none where nothing is there that writes them."""
    if not importlib.util.find_spec("quantize.tflite"):
        return {}
    tflite = importlib.import_module("quantize.tflite")
    torch.manual_seed(0)
    x = windows()
    detector = Detector(CHANNELS, apply_overrides(Recipe(), ENCODERS[encoder]))
    detector.fit_normalisation(x)
    with tempfile.TemporaryDirectory(prefix="amiss-arm64-") as folder:
        paths = {variant: Path(folder) / f"{variant}.tflite" for variant in LITERT}
        tflite.export_tflite(detector.eval(), x[:8], paths[LITERT[0]])
        tflite.quantize_tflite(paths[LITERT[0]], x, paths[LITERT[1]])
        return {variant: path.read_bytes() for variant, path in paths.items()}


def agents(folder: Path) -> dict[str, dict[str, Path]]:
    """Shape → precision → its bundle, with the default recipe and a hop of a quarter window."""
    found: dict[str, dict[str, Path]] = {}
    for number, shape in enumerate(SHAPES):
        n = LEARN_WINDOWS * shape.window // 4
        time_ns = np.rint(np.arange(n) * 1e9 / shape.rate_hz).astype(np.int64)
        normal, run = folder / f"{number}.csv", folder / f"{number}.run"
        write_recording(normal, Recording("normal", shape.names, time_ns, signal(shape, n, seed=0)))
        train(Recipe(window=shape.window, rate_hz=shape.rate_hz, training=TrainingRecipe(steps=STEPS)), [normal], run)
        anything = Budget(embedding_error=1e9, rank_correlation=-1, flips=1, auroc_loss=1, unnoticed_us=1e9)
        found[shape.name] = {}
        for precision in PRECISIONS:
            path = found[shape.name][precision] = folder / f"{number}-{precision}.amiss"
            quantize(run, path, precision=precision, budget=anything)
    return found


def agent_instructions(arm64: Arm64, bundles: Mapping[str, Mapping[str, Path]], processor: str) -> dict[str, dict[str, int]]:
    """Shape → precision → instructions for one window of the agent, fed as it feeds itself in real time."""
    cases = []
    with tempfile.TemporaryDirectory(prefix="amiss-arm64-") as folder:
        for number, shape in enumerate(SHAPES):
            size = chunk_frames(shape)
            counted = COUNTED * shape.window // 4 // (size * shape.frame)
            x = signal(shape, 2 * counted * size * shape.frame, seed=4)
            frames = wire.frames(shape, x)
            chunks = [b"".join(frames[at : at + size]) for at in range(0, len(frames), size)]
            Path(folder, str(number)).write_bytes(b"".join(chunks))
            sizes = [len(chunk) for chunk in chunks]
            cases += [
                {"bundle": str(bundle), "frames": f"{folder}/{number}", "chunks": sizes, "before": counted}
                for bundle in bundles[shape.name].values()
            ]
        marks = arm64.marks(processor, Path(__file__).with_name("arm64_agent.py"), {"cases": cases}, 2 * len(cases))
    each = iter(np.diff(marks.reshape(-1, 2))[:, 0] / COUNTED)
    return {shape: {precision: round(next(each)) for precision in paths} for shape, paths in bundles.items()}


def chunk_frames(shape: Shape) -> int:
    """Frames that are there when the serial source has collected: the one that it was woken by, and those that follow."""
    return 1 + int(collect_s(shape.window / 4 / shape.rate_hz) * shape.rate_hz / shape.frame)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {FIGURES.name}")
    write = parser.parse_args().write
    arm64 = prepare()
    print("| encoder | processor | batch | float, thousand | int8 unsigned | int8 signed | LiteRT float | LiteRT int8 |")
    print("|---" * 8 + "|")
    figures: dict[str, dict[str, Any]] = {processor: {} for processor in PROCESSORS}
    for encoder in ENCODERS:
        built = models(encoder) | tflite_models(encoder)
        for processor in PROCESSORS:
            counted = arm64.instructions(built, windows(), processor, BATCHES)
            if encoder == GATE:
                figures[processor]["model"] = {variant: counted[variant] for variant in VARIANTS}
            for batch in BATCHES:
                whole = counted["float32"][batch]
                row = [f"{counted[v][batch] / 1000:.0f} ({counted[v][batch] / whole:.2f})" for v in built if v != "float32"]
                row += ["–"] * (len(VARIANTS) + len(LITERT) - len(built))
                print(f"| {encoder} | {processor} | {batch} | {whole / 1000:.0f} | {' | '.join(row)} |", flush=True)
    print("\n| sensor, chunk | processor | float, thousand | int8 |")
    print("|---" * 4 + "|")
    with tempfile.TemporaryDirectory(prefix="amiss-arm64-") as folder:
        bundles = agents(Path(folder))
        for processor in PROCESSORS:
            figures[processor]["agent"] = counted = agent_instructions(arm64, bundles, processor)
            for shape in SHAPES:
                row = " | ".join(f"{n / 1000:.0f}" for n in counted[shape.name].values())
                print(f"| {shape.name}, {chunk_frames(shape) * shape.frame} | {processor} | {row} |", flush=True)
    if write:
        FIGURES.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
