"""fp32 ONNX → int8 ONNX.

The encoder's convolutions and the sums between them become int8; in a TCN that is one conversion in, one out. Normalisation,
attention, pooling, the last projection and the heads of the pretext stay float; a recurrent encoder does altogether.
Activations are unsigned unless a board wants them signed: on x86 signed ones are slower than float. QOperator, not QDQ: it is a
fifth smaller and says the same (docs/adr/0009-int8.md).
"""

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from edge.errors import GateError
from edge.signal import Float32
from quantize.ranges import Range, WindowReader

INT8_WEIGHTS = "encoder."
FLOAT_WEIGHTS = "encoder.project."
"""How the names of weights begin. The projection has few weights, and every error of its is one of the score."""
RECURRENT = {
    "GRU": "ONNX Runtime has no GRU in int8",
    "LSTM": "ONNX Runtime's int8 LSTM takes its ranges from the whole batch; a window's score would depend on its neighbours",
}
"""Why what holds one of these stays float altogether: its convolutions alone would make the file but a fifth smaller."""


def quantize_int8(
    model: Path,
    windows: Float32,
    out: Path,
    ranges: Mapping[str, Range] | None = None,
    *,
    form: Literal["QOperator", "QDQ"] = "QOperator",
    activations: Literal["unsigned", "signed"] = "unsigned",
) -> None:
    """Write `out` with activation ranges from `windows` (B, C, N), see `quantize.ranges.representative`.

    `ranges` come before those, by the names that `tensors` gives; see `quantize.qat`.

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
                quant_format=QuantFormat[form],
                op_types_to_quantize=["Conv", "Add", "Relu"],
                nodes_to_quantize=nodes,
                per_channel=True,
                activation_type=QuantType.QInt8 if activations == "signed" else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={"TensorQuantOverrides": _overrides(graph, ranges or {})},
            )
        finally:
            quiet.setLevel(level)


def becomes_int8(weight: str) -> bool:
    """Whether a convolution with a weight of that name does."""
    return weight.startswith(INT8_WEIGHTS) and not weight.startswith(FLOAT_WEIGHTS)


def key_of_input(weight: str) -> str:
    """Of a tensor that comes from float: by the convolution that reads it first."""
    return f"into {weight}"


def key_of_relu(key: str) -> str:
    return f"relu({key})"


def key_of_sum(first: str, second: str) -> str:
    return f"({first} + {second})"


def tensors(graph: Any) -> dict[str, list[str]]:
    """Name → tensors of the graph that get one range, for all that become int8.

    What comes out of a convolution is named like its weight, the rest by how it came about: names of tensors are the exporter's
    business, and whoever learns ranges has none.
    """
    names = set(convolutions(graph))
    readers: dict[str, int] = {}
    for node in graph.node:
        for tensor in node.input:
            readers[tensor] = readers.get(tensor, 0) + 1
    key: dict[str, str] = {}
    found: dict[str, list[str]] = {}
    for node in graph.node:
        if node.name not in names:
            continue
        (out,) = node.output
        if node.op_type == "Conv":
            x, weight = node.input[0], node.input[1]
            if x not in key:
                key[x] = key_of_input(weight)
                found[key[x]] = [x]
            key[out] = weight
            found[weight] = [out]
        elif node.op_type == "Relu":
            before = key[node.input[0]]
            key[out] = key_of_relu(before)
            found[key[out]] = [out]
            if readers[node.input[0]] == 1:  # the two become one node
                found[key[out]] += found.pop(before)
        else:
            key[out] = key_of_sum(key[node.input[0]], key[node.input[1]])
            found[key[out]] = [out]
    return found


def _overrides(graph: Any, ranges: Mapping[str, Range]) -> dict[str, list[dict[str, Any]]]:
    """What ONNX Runtime calls TensorQuantOverrides; it wants arrays, not numbers."""
    return {
        tensor: [{"scale": np.array(ranges[key].scale, np.float32), "zero_point": np.array(ranges[key].zero_point, np.uint8)}]
        for key, together in tensors(graph).items()
        if key in ranges
        for tensor in together
    }


def convolutions(graph: Any) -> list[str]:
    """Names of the nodes that become int8: convolutions that are not to stay float, and the sums of their outputs."""
    by_output = {output: node for node in graph.node for output in node.output}
    names = {node.name for node in graph.node if node.op_type == "Conv" and becomes_int8(node.input[1])}

    # A ReLU behind an int8 node costs nothing once it is part of that node's range; left float it would cost two conversions.
    for node in graph.node:  # in order of computation, so a sum of sums is found too
        inputs = [by_output.get(tensor) for tensor in node.input]
        if node.op_type in ("Add", "Relu") and all(before is not None and before.name in names for before in inputs):
            names.add(node.name)
    return [node.name for node in graph.node if node.name in names]
