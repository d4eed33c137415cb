"""A real bundle that is small and quick to build: an ONNX graph of means, no training."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from edge.bundle import ChannelSpec, Golden, Manifest, pack_golden, pack_head, write_bundle
from edge.head import Head
from edge.scoring.backends import OUTPUTS, OnnxBackend, run_in_slices
from edge.scoring.budget import Tail
from edge.scoring.calibrate import Calibrator
from edge.scoring.ensemble import Ensemble
from edge.scoring.explain import Explainer
from edge.scoring.reference import Reference
from edge.scoring.smoothing import Smoother
from edge.sensing.health import Usual
from edge.sensing.windows import MissingPolicy

CHANNELS = ("vibration", "current")


def graph(channels: int = 2, length: int = 16, *, centred: bool = False) -> bytes:
    """embedding = level = mean of each channel, residual = its mean square, spectrum the logarithm of that; trace and map are
    the window itself. `centred`: the mean square is that around the mean, as in the graphs that ship."""
    window = helper.make_tensor_value_info("window", TensorProto.FLOAT, ["batch", channels, length])
    shapes = {"spectrum": [1, channels], "trace": [channels, length], "map": [channels, length]}
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shapes.get(name, [channels])]) for name in OUTPUTS
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [1], [2]),
        helper.make_tensor("first", TensorProto.INT64, [1], [1]),
        helper.make_tensor("floor", TensorProto.FLOAT, [], [1e-3]),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["window", "axes"], ["embedding"], keepdims=0),
        *(
            [
                helper.make_node("ReduceMean", ["window", "axes"], ["mean"], keepdims=1),
                helper.make_node("Sub", ["window", "mean"], ["around"]),
            ]
            if centred
            else [helper.make_node("Identity", ["window"], ["around"])]
        ),
        helper.make_node("Mul", ["around", "around"], ["square"]),
        helper.make_node("ReduceMean", ["square", "axes"], ["residual"], keepdims=0),
        helper.make_node("Identity", ["embedding"], ["level"]),
        helper.make_node("Add", ["residual", "floor"], ["energy"]),
        helper.make_node("Log", ["energy"], ["logarithm"]),
        helper.make_node("Unsqueeze", ["logarithm", "first"], ["spectrum"]),
        helper.make_node("Identity", ["window"], ["trace"]),
        helper.make_node("Identity", ["window"], ["map"]),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "means", [window], outputs, constants),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def normal(n: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """(2, n) of ordinary noise."""
    return np.random.default_rng(seed).normal(size=(2, n)).astype(np.float32)


def members(
    length: int = 16, scorer: str = "mahalanobis", windows: int = 2400, *, rate_hz: float = 100.0, hop: int | None = None
) -> tuple[Manifest, dict[str, bytes]]:
    x = normal(windows * length).reshape(2, windows, length).transpose(1, 0, 2).copy()
    return members_for(x, CHANNELS, rate_hz, scorer, hop=hop)


def members_for(
    x: npt.NDArray[np.float32],
    channels: tuple[str, ...],
    rate_hz: float,
    scorer: str,
    *,
    hop: int | None = None,
    centred: bool = False,
) -> tuple[Manifest, dict[str, bytes]]:
    """Of normal windows (n, C, N), that lie side by side."""
    windows, count, length = x.shape
    model = graph(count, length, centred=centred)
    backend = OnnxBackend(model)
    outputs = run_in_slices(backend, x)
    half = windows // 2
    held_back = outputs.part(slice(half, None))
    fitted = Ensemble.fit(scorer, outputs.part(slice(half)), held_back)
    scores = fitted.score(held_back)  # of windows that lie side by side
    calibrator = Calibrator.fit(scores)
    tail = Tail.fit(scores, np.arange(len(scores)) * length, Smoother(0, length, length), hour=3600 * rate_hz)
    reference = Reference.fit(held_back, scores, np.arange(half, windows) * length, length)
    golden = run_in_slices(backend, x[:4])
    manifest = Manifest(
        name="small",
        version="1",
        created="2026-01-01T00:00:00Z",
        channels=tuple(ChannelSpec(name) for name in channels),
        rate_hz=rate_hz,
        window=length,
        hop=hop or length // 4,
        missing=MissingPolicy(),
        scorer=scorer,
        calibration_windows=calibrator.windows,
        calibration_floor=calibrator.floor,
        precision="float32",
        precision_reason="a test",
        golden_tolerance=1e-4,
    )
    return manifest, {
        "model.onnx": model,
        "head.npz": pack_head(Head(fitted, calibrator, Explainer.fit(outputs), reference, Usual.fit(x), tail)),
        "golden.npz": pack_golden(Golden(x[:4], golden, fitted.score(golden))),
        "README.md": b"# small\n",
        "bom.cdx.json": b"{}\n",
    }


def build(path: Path, length: int = 16, scorer: str = "mahalanobis", windows: int = 2400) -> Path:
    write_bundle(path, *members(length, scorer, windows))
    return path
