"""Checks that every detector (an encoder with a pretext task) must pass on its way to a device."""

from pathlib import Path

import numpy as np
import onnx

from edge.scoring.backends import OUTPUTS, open_backend
from edge.signal import Float32
from quantize.export import TOLERANCE, export
from quantize.int8 import quantize_int8
from quantize.parity import compare
from quantize.ranges import representative
from trainer.model import Detector
from trainer.recipe import Budget


def check_export(detector: Detector, windows: Float32, folder: Path) -> Path:
    """It becomes a float ONNX model with the names, shapes and values that a device expects; returns its file.

    `windows` (B, C, N) are normal ones, at least 32 of them.
    """
    path = folder / "float.onnx"
    exported = export(detector, windows[:8], path)
    assert exported.difference <= TOLERANCE, f"torch and ONNX Runtime differ by {exported.difference:.2g}"
    model = onnx.load(str(path))
    names = [entry.name for entry in (*model.graph.input, *model.graph.output)]
    assert names == ["window", *OUTPUTS], f"the graph has {names}"
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}, "normalisation layers were not folded"
    backend = open_backend(path.read_bytes())
    together = backend.run(windows[:32])
    assert together.embedding.ndim == 2, f"the embedding has shape {together.embedding.shape}, it is to be (B, D)"
    assert together.residual.shape == windows[:32].shape[:2], f"the residual has shape {together.residual.shape}"
    for size in (1, 5):
        part = backend.run(windows[:size])
        assert np.allclose(part.embedding, together.embedding[:size], rtol=1e-4, atol=1e-5), f"a batch of {size} differs"
    wild = windows[:4].copy()
    wild[0], wild[1], wild[2, 0] = 0.0, 1e30, -1e30
    outputs = backend.run(wild)
    for name, array in outputs.arrays().items():
        assert np.isfinite(array).all(), f"an absurd window gives {name} that is not finite"
    return path


def check_int8(
    path: Path, fit: Float32, calibration: Float32, scorer: str = "mahalanobis", budget: Budget | None = None
) -> Path:
    """It stays within budget in int8, apart from its speed, which is another matter on every machine; returns its file."""
    out = path.with_name("int8.onnx")
    quantize_int8(path, representative(fit), out)
    measured = compare(path.read_bytes(), out.read_bytes(), fit, calibration, scorer, rounds=5)
    failures = [failure for failure in measured.failures(budget or Budget()) if "slower" not in failure]
    assert not failures, "; ".join(failures)
    assert measured.int8_bytes < measured.float_bytes, f"{measured.int8_bytes} bytes in int8, {measured.float_bytes} in float"
    return out
