"""Whole against depthwise-separable convolutions, float against int8: docs/adr/0004-convolutions.md.

    python -m benchmarks.convolutions

Untrained weights: speed and size do not depend on them. All variants take turns in every round, on one thread.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from edge.scoring.backends import open_backend
from quantize.export import export
from quantize.int8 import quantize_int8
from trainer.model import Detector
from trainer.recipe import EncoderRecipe, Recipe

CHANNELS, LENGTHS, BATCHES, WIDTHS, ROUNDS = 5, (32, 256), (1, 32), (32, 48, 64), 200


def models(width: int, separable: bool, length: int) -> tuple[bytes, bytes, int]:
    """Float and int8 model, and the number of parameters."""
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(64, CHANNELS, length)).astype(np.float32)
    detector = Detector(CHANNELS, Recipe(encoder=EncoderRecipe(width=width, separable=separable)))
    detector.fit_normalisation(x)
    with tempfile.TemporaryDirectory() as folder:
        float_path, int8_path = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        export(detector.eval(), x[:8], float_path)
        quantize_int8(float_path, x, int8_path)
        return float_path.read_bytes(), int8_path.read_bytes(), sum(p.numel() for p in detector.parameters())


def main() -> None:
    head = "| width | convolutions | parameters | int8 kB | N | batch | float µs | int8 µs | int8 speed-up |"
    print(head + "\n" + "|---" * 9 + "|")
    for length in LENGTHS:
        variants = {(w, s): models(w, s, length) for w in WIDTHS for s in (False, True)}
        backends = {key: (open_backend(f), open_backend(q)) for key, (f, q, _) in variants.items()}
        for batch in BATCHES:
            x = np.random.default_rng(1).normal(size=(batch, CHANNELS, length)).astype(np.float32)
            times: dict[tuple[int, bool], list[list[int]]] = {key: [[], []] for key in variants}
            for _ in range(ROUNDS):
                for key, pair in backends.items():
                    for kind, backend in enumerate(pair):
                        started = time.perf_counter_ns()
                        backend.run(x)
                        times[key][kind].append(time.perf_counter_ns() - started)
            for (width, separable), (_, int8, parameters) in variants.items():
                us = [float(np.median(values)) / 1000 for values in times[width, separable]]
                kind = "separable" if separable else "whole"
                sizes = f"{parameters} | {len(int8) / 1000:.0f} | {length} | {batch}"
                print(f"| {width} | {kind} | {sizes} | {us[0]:.0f} | {us[1]:.0f} | {us[0] / us[1]:.2f} |")


if __name__ == "__main__":
    main()
