"""fp32 ONNX → int8 ONNX.

The encoder's convolutions and the sums between them become int8; in a TCN that is one conversion in, one out. Normalisation,
attention, pooling, the last projection and the heads of the pretext stay float; a recurrent encoder does altogether.
Activations are unsigned unless a board wants them signed: on x86 signed ones are slower than float. QOperator, not QDQ: in QDQ
form ONNX Runtime quantizes the float consumers of a tensor too when another consumer asks for it.
"""

import logging
import tempfile
from pathlib import Path
from typing import Any, Literal

import onnx

from edge.errors import GateError
from edge.signal import Float32
from quantize.ranges import WindowReader

INT8_WEIGHTS = "encoder."
FLOAT_WEIGHTS = "encoder.project."
"""How the names of weights begin. The projection has few weights, and every error of its is one of the score."""
RECURRENT = {
    "GRU": "ONNX Runtime has no GRU in int8",
    "LSTM": "ONNX Runtime's int8 LSTM takes its ranges from the whole batch; a window's score would depend on its neighbours",
}
"""Why what holds one of these stays float altogether: its convolutions alone would make the file but a fifth smaller."""


def quantize_int8(model: Path, windows: Float32, out: Path, *, activations: Literal["unsigned", "signed"] = "unsigned") -> None:
    """Write `out` with activation ranges from `windows` (B, C, N), see `quantize.ranges.representative`.

    Raises `GateError` with the reason when the model is to stay float.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    graph = onnx.load(str(model)).graph
    for kind, reason in RECURRENT.items():
        if any(node.op_type == kind for node in graph.node):
            raise GateError(f"stays float: {reason}")
    nodes = convolutions(graph)
    if not nodes:
        raise GateError("stays float: it has no convolution to quantize")
    with tempfile.TemporaryDirectory(prefix="amiss-int8-") as folder:
        shaped = Path(folder) / "shaped.onnx"
        # Shapes are what lets the quantizer see which sums join two quantized tensors.
        onnx.save(onnx.shape_inference.infer_shapes(onnx.load(str(model))), str(shaped))
        quiet = logging.getLogger()
        level = quiet.level
        quiet.setLevel(logging.ERROR)  # it suggests pre-processing that has been done
        try:
            quantize_static(
                str(shaped),
                str(out),
                WindowReader(windows),
                quant_format=QuantFormat.QOperator,
                op_types_to_quantize=["Conv", "Add", "Relu"],
                nodes_to_quantize=nodes,
                per_channel=True,
                activation_type=QuantType.QInt8 if activations == "signed" else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
        finally:
            quiet.setLevel(level)


def convolutions(graph: Any) -> list[str]:
    """Names of the nodes that become int8: convolutions that are not to stay float, and the sums of their outputs."""
    by_output = {output: node for node in graph.node for output in node.output}
    names = {
        node.name
        for node in graph.node
        if node.op_type == "Conv" and node.input[1].startswith(INT8_WEIGHTS) and not node.input[1].startswith(FLOAT_WEIGHTS)
    }

    # A ReLU behind an int8 node costs nothing once it is part of that node's range; left float it would cost two conversions.
    for node in graph.node:  # in order of computation, so a sum of sums is found too
        inputs = [by_output.get(tensor) for tensor in node.input]
        if node.op_type in ("Add", "Relu") and all(before is not None and before.name in names for before in inputs):
            names.add(node.name)
    return [node.name for node in graph.node if node.name in names]
