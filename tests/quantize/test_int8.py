"""int8: what is quantized, from which ranges, and how close it stays to float."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edge.errors import GateError
from edge.scoring.backends import open_backend
from edge.scoring.inject import inject, usual_spread
from quantize.int8 import quantize_int8
from quantize.parity import Parity, compare, rank_correlation
from quantize.ranges import WindowReader, representative
from trainer.recipe import Budget

GOOD = Parity(
    windows=100,
    embedding_error=0.01,
    rank_correlation=0.999,
    flips=0.0,
    p_value=0.001,
    float_us=50.0,
    int8_us=40.0,
    float_p99_us=200.0,
    int8_p99_us=100.0,
    float_bytes=100_000,
    int8_bytes=40_000,
)


def test_half_of_the_representative_windows_have_a_fault(windows: tuple[np.ndarray, ...]) -> None:
    fit = windows[0]
    found = representative(fit, count=64)
    assert len(found) == 64
    assert all(any(np.array_equal(x, y) for y in fit) for x in found[:32])
    assert not any(np.array_equal(x, y) for x, y in zip(found[:32], found[32:], strict=True))
    assert np.array_equal(found, representative(fit, count=64))
    batches = WindowReader(found)
    sizes = []
    while (batch := batches.get_next()) is not None:
        sizes.append(len(batch["window"]))
    assert sum(sizes) == 64


def test_the_encoder_is_int8_and_the_rest_is_float(models: tuple[Path, Path]) -> None:
    graph = onnx.load(str(models[1])).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QLinearConv") == 5  # stem and four blocks
    assert kinds.count("QLinearAdd") == 3
    assert kinds.count("Conv") == 4  # projection, the two of the decoder, and the bands of the spectrum
    assert kinds.count("QuantizeLinear") == kinds.count("DequantizeLinear") == 1
    zero = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer if i.name.endswith("_zero_point")}
    assert {str(array.dtype) for name, array in zero.items() if name.startswith("encoder.")} <= {"int8", "int32"}
    assert any(array.dtype == np.uint8 for array in zero.values())
    assert any(array.size > 1 for array in zero.values())  # weights: one scale a channel


def test_close_to_float(models: tuple[Path, Path], windows: tuple[np.ndarray, ...]) -> None:
    measured = compare(models[0].read_bytes(), models[1].read_bytes(), *windows[:2], "mahalanobis", rounds=5)
    assert measured.embedding_error < 0.1
    assert measured.rank_correlation > 0.98
    assert measured.flips <= 0.02
    assert measured.int8_bytes < 0.7 * measured.float_bytes
    assert measured.float_us > 0
    assert measured.int8_us > 0


def test_ranges_from_normal_windows_alone_clip_the_anomalies(
    models: tuple[Path, Path], windows: tuple[np.ndarray, ...], tmp_path: Path
) -> None:
    """Why `representative` injects faults: without them, what is strange is what int8 gets wrong."""
    fit, calibration, _ = windows
    quantize_int8(models[0], fit, tmp_path / "clipped.onnx")
    strange = inject(calibration, usual_spread(fit), np.random.default_rng(5))

    def error(model: Path) -> float:
        wanted = open_backend(models[0].read_bytes()).run(strange).embedding
        got = open_backend(model.read_bytes()).run(strange).embedding
        return float(np.abs(got - wanted).max())

    assert error(tmp_path / "clipped.onnx") > 3 * error(models[1])


def test_nothing_to_quantize_is_told(tmp_path: Path) -> None:
    window = helper.make_tensor_value_info("window", TensorProto.FLOAT, ["batch", 2, 8])
    output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 2, 8])
    graph = helper.make_graph([helper.make_node("Abs", ["window"], ["embedding"])], "abs", [window], [output])
    onnx.save(helper.make_model(graph, ir_version=9), str(tmp_path / "abs.onnx"))
    with pytest.raises(GateError, match="stays float: it has no convolution to quantize"):
        quantize_int8(tmp_path / "abs.onnx", np.zeros((4, 2, 8), np.float32), tmp_path / "out.onnx")


def test_an_int8_lstm_judges_a_window_by_its_neighbours(tmp_path: Path) -> None:
    """Why one is refused. Should this fail with a newer ONNX Runtime, `RECURRENT` is to be thought about again."""
    import onnxruntime  # here: `edge` has to be first, which turns its telemetry off
    from onnxruntime.quantization import quantize_dynamic

    rng = np.random.default_rng(0)
    steps, width = 8, 16
    weights = {"w": (1, 4 * width, width), "r": (1, 4 * width, width)}
    arrays = [onnx.numpy_helper.from_array(rng.normal(0, 0.3, s).astype(np.float32), n) for n, s in weights.items()]
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], name="lstm", hidden_size=width)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [steps, "batch", width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [steps, 1, "batch", width])
    graph = helper.make_graph([node], "lstm", [x], [y], arrays)
    opset = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, ir_version=9, opset_imports=opset), str(tmp_path / "float.onnx"))
    quantize_dynamic(str(tmp_path / "float.onnx"), str(tmp_path / "int8.onnx"), op_types_to_quantize=["LSTM"])
    window = rng.normal(size=(steps, 1, width)).astype(np.float32)
    beside = np.concatenate([window, 10 * window[::-1]], axis=1)

    def difference(name: str) -> float:
        session = onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"])
        alone, together = (session.run(None, {"x": x})[0][:, :, 0] for x in (window, beside))
        return float(np.abs(alone - together).max() / np.abs(alone).max())

    assert difference("float.onnx") < 1e-5
    assert difference("int8.onnx") > 1e-2
    with pytest.raises(GateError, match=r"stays float: .* LSTM"):
        quantize_int8(tmp_path / "float.onnx", np.zeros((4, 2, 8), np.float32), tmp_path / "out.onnx")


def test_rank_correlation() -> None:
    a = np.array([1.0, 2, 3, 4])
    assert rank_correlation(a, a**3) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    # scipy.stats.spearmanr([1, 2, 2, 3], [1, 3, 2, 4]) = 0.9486832980505138
    assert rank_correlation(np.array([1.0, 2, 2, 3]), np.array([1.0, 3, 2, 4])) == pytest.approx(0.9486832980505138)
    assert rank_correlation(np.ones(3), np.ones(3)) == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"embedding_error": 0.5}, "embedding error"),
        ({"rank_correlation": 0.5}, "rank correlation"),
        ({"rank_correlation": float("nan")}, "rank correlation"),
        ({"flips": 0.2}, "verdicts differ"),
        ({"int8_us": 80.0}, "slower than float"),
    ],
)
def test_over_budget(change: dict[str, float], told: str) -> None:
    import msgspec

    GOOD.require(Budget())
    with pytest.raises(GateError, match=told):
        msgspec.structs.replace(GOOD, **change).require(Budget())


def test_a_few_microseconds_are_nobodys_loss() -> None:
    import msgspec

    assert not msgspec.structs.replace(GOOD, float_us=25.0, int8_us=30.0).failures(Budget())


def test_quantizing_needs_no_torch() -> None:
    code = (
        "import sys; import quantize.ranges, quantize.int8, quantize.compact, quantize.parity, quantize.pack; "
        "print([m for m in ('torch', 'trainer.model') if m in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert answer.stdout.strip() == "[]"
