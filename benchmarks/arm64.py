"""Instructions for one window on the processors of small Arm boards, emulated: docs/compression.md.

    python -m benchmarks.arm64            a table
    python -m benchmarks.arm64 --write    … and the figures that tests/arm64 holds the encoder to

Untrained weights: how many instructions a model takes does not depend on them. About three minutes on an idle machine.
"""

import argparse
import importlib
import importlib.util
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from edge.signal import Float32
from quantize.emulation import PROCESSORS, prepare
from quantize.export import export
from quantize.int8 import quantize_int8
from trainer.model import Detector
from trainer.recipe import Recipe, apply_overrides

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {FIGURES.name}")
    write = parser.parse_args().write
    arm64 = prepare()
    print("| encoder | processor | batch | float, thousand | int8 unsigned | int8 signed | LiteRT float | LiteRT int8 |")
    print("|---" * 8 + "|")
    figures = {}
    for encoder in ENCODERS:
        built = models(encoder) | tflite_models(encoder)
        for processor in PROCESSORS:
            counted = arm64.instructions(built, windows(), processor, BATCHES)
            if encoder == GATE:
                figures[processor] = {variant: counted[variant] for variant in VARIANTS}
            for batch in BATCHES:
                whole = counted["float32"][batch]
                row = [f"{counted[v][batch] / 1000:.0f} ({counted[v][batch] / whole:.2f})" for v in built if v != "float32"]
                row += ["–"] * (len(VARIANTS) + len(LITERT) - len(built))
                print(f"| {encoder} | {processor} | {batch} | {whole / 1000:.0f} | {' | '.join(row)} |", flush=True)
    if write:
        FIGURES.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
