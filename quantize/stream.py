"""The windowed graph of a causal model → a graph with state: new samples in, what each window that ends with one gives, out.

    samples (1, C, n), state_* ──▶ embedding (n, 2 D), residual (n, C), level (n, C), spectrum (n, 1 + K, C),
                                   trace (1, C, n), map (1, D, 1, n), next_*

Of `trace` and `map` only the newest column is given, not averaged yet: windows share all others, so whoever runs the graph
keeps them (`edge.scoring.streaming`). The first window − 1 rows behind a start are of windows that nobody saw, to be dropped.

Strides become dilations: at every sample there is a step, and a window takes every stride-th of them, counted from its end
("algorithme à trous", Holschneider et al. 1989). Each convolution carries the inputs that its next step will need. The
encoder's nodes are those of the windowed graph, float or int8, so what was found out about that one holds here.

Nothing can drift, because nothing is summed for ever: every sum is over one window, taken anew from what is carried.
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge.errors import GateError
from edge.scoring.backends import open_backend
from edge.scoring.streaming import MOST, open_stream
from edge.signal import Float32, Windows
from trainer.model import CLIP, LEVEL_CLIP, MAP_STEPS, TRACE_STEPS, Detector, Spectrum

TOLERANCE = 1e-4
"""Largest difference between an output of the stream and of the window, relative to 1 + its size."""
DEARER, GATHERED = 7.0, 300
"""What a multiplication in a stream costs, calls being short and state to be carried, and what a value of a step that a window
gathers: in multiplications of the windowed graph, fitted to times on x86 with AVX-512, where streams gain least
(docs/compression.md)."""


@dataclass(frozen=True, slots=True)
class Streamed:
    size: int
    """Bytes of the model."""
    difference: float
    """Between stream and window, relative to 1 + size of the output."""
    hop: int
    """Samples. Up to this hop the stream is taken to be the cheaper of the two."""


def export_stream(detector: Detector, model: bytes, windows: Float32, out: Path) -> Streamed:
    """Write `out`, the stateful twin of the windowed ONNX graph `model` of a causal detector.

    `windows` (B, C, N) is what both have to agree on; raises `GateError` when they do not.
    """
    windowed = onnx.load_from_string(model)
    stream = stream_graph(detector, windowed, windows.shape[2])
    onnx.checker.check_model(stream)
    out.write_bytes(stream.SerializeToString())
    difference = _difference(model, out.read_bytes(), windows)
    if not difference <= TOLERANCE:
        raise GateError(f"the stream differs from the window by {difference:.2g}, {TOLERANCE:g} is allowed")
    sizes = {entry.key: int(entry.value) for entry in stream.metadata_props}
    gathered = sizes["steps"] * (detector.encoder.dimension + windows.shape[1])
    cheaper = multiplications(windowed) / (DEARER * multiplications(stream) + GATHERED * gathered)
    return Streamed(out.stat().st_size, difference, max(1, min(windows.shape[2] - 1, int(cheaper))))


def _difference(model: bytes, stream: bytes, windows: Float32) -> float:
    rows, wanted, worst = open_stream(stream).start(hop=1), open_backend(model), 0.0
    for window in windows:
        # Once forth and once back: the second half is judged from a state, and not from a start.
        twice = np.concatenate([window, window[:, ::-1]], axis=1)
        x = np.lib.stride_tricks.sliding_window_view(twice, windows.shape[2], axis=1).transpose(1, 0, 2)
        ends = np.arange(len(x))
        found = rows.run(Windows(ends, ends, x, fresh=ends == 0)).arrays()
        for name, array in wanted.run(x).arrays().items():
            worst = max(worst, float((np.abs(found[name] - array) / (1 + np.abs(array))).max()))
    return worst


def multiplications(model: Any) -> int:
    """Of the convolutions, for one window or for one new sample."""
    sizes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shapes = {
        value.name: [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    total = 0
    for node in model.graph.node:
        if "Conv" in node.op_type:
            total += prod(sizes[_weight(node)]) * prod(shapes.get(node.output[0], [1])[2:])
    return total


def stream_graph(detector: Detector, windowed: Any, window: int) -> Any:
    """The graph itself, for windows of so many samples."""
    put = _Graph()
    channels, encoder = len(detector.mean), detector.encoder
    to_between, to_within = (spread.numpy(force=True) for spread in detector.spreads())
    kept = {tensor.name: tensor for tensor in windowed.graph.initializer}
    put.inputs.append(helper.make_tensor_value_info("samples", TensorProto.FLOAT, [1, channels, "n"]))
    # The very nodes of the windowed graph: with another last bit an int8 step would now and then round to the other side.
    centre = next(node for node in windowed.graph.node if node.input[0] == "window")
    scale = next(node for node in windowed.graph.node if node.input[0] == centre.output[0])
    put.clip(put.again(scale, put.again(centre, "samples", kept), kept), LEVEL_CLIP, to="trace")
    put.carry("trace", (1, channels, window), to="buffer")

    # level (n, C), and energy (1, C, n) around it. In float64: the square of a level far from the mean would leave nothing of a
    # small movement in float32.
    put.node("Cast", "buffer", to="exact", to_=TensorProto.DOUBLE)
    put.node("Mul", "exact", "exact", to="squares")
    put.node("Concat", "exact", "squares", to="moments", axis=1)
    put.node("CumSum", "moments", put.number("time", 2, np.int64), to="sums")
    put.cut("sums", window, None, 2, to="until")
    put.cut("sums", 0, -window, 2, to="before")
    put.node("Sub", "until", "before", to="sums_of_windows")
    put.node("Mul", "sums_of_windows", put.number("per_sample", 1 / window, np.float64), to="means")  # (1, 2 C, n)
    put.node("Split", "means", to=["mean_level", "mean_square"], axis=1, num_outputs=2)
    put.node("Mul", "mean_level", "mean_level", to="level_square")
    put.node("Sub", "mean_square", "level_square", to="variance")
    put.node("Cast", "variance", to="energy", to_=TensorProto.FLOAT)
    put.node("Cast", "mean_level", to="level_in_all", to_=TensorProto.FLOAT)
    put.node("Mul", "level_in_all", put.number("to_between", to_between), to="level_columns")
    put.node("Squeeze", "level_columns", put.axes(0), to="level_of_channels")
    put.node("Transpose", "level_of_channels", to="level", perm=[1, 0])

    # spectrum (n, 1 + K, C). A band's cosine and sine lie side by side, so that one grouped convolution adds both squares over
    # all segments of a window.
    bands = detector.spectrum.bands
    segments = window // bands - 1
    pairs = detector.spectrum.filters.numpy(force=True).reshape(2, bands, -1).swapaxes(0, 1)
    put.cut("buffer", window - 2 * bands + 2, None, 2, to="later")
    put.cut("buffer", window - 2 * bands + 1, -1, 2, to="earlier")
    put.node("Sub", "later", "earlier", to="heard")
    put.node("Unsqueeze", "heard", put.axes(1), to="heard_by_filters")
    put.node(
        "Conv", "heard_by_filters", put.number("filters", pairs.reshape(2 * bands, 1, 1, -1)), to="found"
    )  # (1, 2 K, C, n)
    put.node("Mul", "found", "found", to="power")
    put.carry("power", (1, 2 * bands, channels, (segments - 1) * bands), to="powers")
    mean = put.number("mean_of_segments", np.full((bands, 2, 1, segments), 1 / segments))
    put.node("Conv", "powers", mean, to="bands", group=bands, dilations=[1, bands])  # (1, K, C, n)
    put.node("Unsqueeze", "energy", put.axes(1), to="energy_in_all")
    put.node("Concat", "energy_in_all", "bands", to="energies", axis=1)
    put.node("Mul", "energies", put.number("to_within", to_within**2), to="energies_within")
    put.node("Add", "energies_within", put.number("floor", Spectrum.FLOOR), to="energies_floored")
    put.node("Log", "energies_floored", to="logarithms")
    put.node("Squeeze", "logarithms", put.axes(0), to="spectrum_columns")
    put.node("Transpose", "spectrum_columns", to="spectrum", perm=[2, 0, 1])

    # map (1, D, 1, n). The first convolution takes its past from the samples that are kept anyhow.
    chain, decoder = _path(windowed.graph, "encoder."), _path(windowed.graph, "pretext.")
    taps = kept[_weight(next(node for node in chain if "Conv" in node.op_type))].dims[3]
    stride, longest = encoder.stride, max(taps, encoder.stride)
    put.cut("buffer", window - longest + 1, None, 2, to="recent")
    put.clip("recent", CLIP, to="bounded")
    put.node("Unsqueeze", "bounded", put.axes(2), to="target")
    tensor, apart, first = "target", 1, True
    if longest > taps:
        tensor = put.cut("target", longest - taps, None, 3, to="seen")
    for node in chain:
        if "Conv" in node.op_type:
            _, inside, _, taps = kept[_weight(node)].dims
            pitch = apart * _attribute(node, "dilations", [1, 1])[1]
            if taps > 1 and not first:
                kind = TensorProto.UINT8 if node.op_type == "QLinearConv" else TensorProto.FLOAT
                tensor = put.carry(tensor, (1, inside, 1, (taps - 1) * pitch), to=f"past_{len(put.inputs)}", kind=kind)
            apart *= _attribute(node, "strides", [1, 1])[1]
            first = False
            tensor = put.again(node, tensor, kept, dilations=[1, pitch])
        else:
            tensor = put.again(node, tensor, kept)
    put.node("Identity", tensor, to="map")

    # The mean square error of each step in what it says of the last `stride` samples: (1, C, 1, n).
    for node in decoder:
        tensor = put.again(node, tensor, kept)
    shifts = np.zeros((channels, stride, channels, 1, longest))
    for i in range(stride):
        shifts[np.arange(channels), i, np.arange(channels), 0, longest - stride + i] = -1
    shifts = shifts.reshape(channels * stride, channels, 1, longest)
    put.node("Conv", "target", put.number("shifts", shifts), to="less")
    put.node("Add", tensor, "less", to="error")
    put.node("Mul", "error", "error", to="error_square")
    mean = put.number("mean_of_samples", np.kron(np.eye(channels), np.full(stride, 1 / stride))[:, :, None, None])
    put.node("Conv", "error_square", mean, to="step_residual")

    # What a window's steps come to. They are gathered, not summed up: their spread is then as exact as in the window.
    steps, dimension = (window - encoder.reach) // stride + 1, encoder.dimension  # type: ignore[attr-defined]
    put.node("Concat", "map", "step_residual", to="step_columns", axis=1)
    put.node("Squeeze", "step_columns", put.axes(0, 2), to="step_of_features")
    put.node("Transpose", "step_of_features", to="new_steps", perm=[1, 0])  # (n, D + C)
    put.carry("new_steps", ((steps - 1) * stride, dimension + channels), to="all_steps", axis=0)
    table = put.number("steps_of_rows", np.arange(MOST)[:, None] + stride * np.arange(steps), np.int32)
    put.node("Shape", "samples", to="count", start=2, end=3)
    put.node("Slice", table, put.axes(0), "count", put.axes(0), to="which")
    put.node("Gather", "all_steps", "which", to="steps", axis=0)  # (n, T', D + C)
    put.node("ReduceMean", "steps", put.axes(1), to="mean_step", keepdims=1)
    put.node("Sub", "steps", "mean_step", to="away")
    put.node("Mul", "away", "away", to="away_square")
    put.node("ReduceMean", "away_square", put.axes(1), to="spread_of_all", keepdims=0)
    put.node("Squeeze", "mean_step", put.axes(1), to="mean_of_all")
    put.node(
        "Split", "mean_of_all", put.number("parts", [dimension, channels], np.int64), to=["mean_of_map", "residual"], axis=1
    )
    put.cut("spread_of_all", 0, dimension, 1, to="spread_of_map")
    put.node("Add", "spread_of_map", put.number("least_spread", 1e-4), to="spread_floored")
    put.node("Log", "spread_floored", to="log_spread")
    put.node("Mul", "log_spread", put.number("half", 0.5), to="log_deviation")
    put.node("Concat", "mean_of_map", "log_deviation", to="embedding", axis=1)

    shapes: dict[str, list[str | int | None]] = {
        "embedding": ["n", 2 * dimension],
        "residual": ["n", channels],
        "level": ["n", channels],
        "spectrum": ["n", 1 + bands, channels],
        "trace": [1, channels, "n"],
        "map": [1, dimension, 1, "n"],
    }
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    graph = helper.make_graph(put.nodes, "stream", put.inputs, [*outputs, *put.states], list(put.constants.values()))
    model = helper.make_model(graph, opset_imports=list(windowed.opset_import), ir_version=windowed.ir_version)
    depth = {"trace_each": -(-window // TRACE_STEPS), "map_each": -(-steps // MAP_STEPS)}
    sizes = {"window": window, "steps": steps, "stride": stride} | depth
    helper.set_model_props(model, {name: str(value) for name, value in sizes.items()})
    return model


class _Graph:
    """Nodes and constants as they are put down. Times are columns, the newest last."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self.states: list[Any] = []
        """Outputs that are the next call's inputs."""
        self.constants: dict[str, Any] = {}

    def node(self, kind: str, *inputs: str, to: str | list[str], to_: int | None = None, **attributes: Any) -> str:
        outputs = [to] if isinstance(to, str) else to
        if to_ is not None:  # the one attribute of Cast
            attributes["to"] = to_
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, **attributes))
        return outputs[0]

    def number(self, name: str, value: npt.ArrayLike, kind: npt.DTypeLike = np.float32) -> str:
        self.constants[name] = numpy_helper.from_array(np.array(value, kind), name)
        return name

    def axes(self, *values: int) -> str:
        return self.number(f"whole_{'_'.join(map(str, values))}", values, np.int64)

    def clip(self, tensor: str, bound: float, to: str) -> str:
        return self.node("Clip", tensor, self.number(f"{to}_low", -bound), self.number(f"{to}_high", bound), to=to)

    def cut(self, tensor: str, start: int, stop: int | None, axis: int, to: str) -> str:
        return self.node("Slice", tensor, self.axes(start), self.axes(2**31 if stop is None else stop), self.axes(axis), to=to)

    def carry(
        self, tensor: str, shape: tuple[int, ...], to: str, axis: int | None = None, kind: int = TensorProto.FLOAT
    ) -> str:
        """A state of this shape in front of `tensor`, along the last axis or the one that is named."""
        axis = len(shape) - 1 if axis is None else axis
        self.inputs.append(helper.make_tensor_value_info(f"state_{to}", kind, shape))
        self.states.append(helper.make_tensor_value_info(f"next_{to}", kind, shape))
        self.node("Concat", f"state_{to}", tensor, to=to, axis=axis)
        self.cut(to, -shape[axis], None, axis, to=f"next_{to}")
        return to

    def again(self, node: Any, tensor: str, kept: dict[str, Any], **attributes: Any) -> str:
        """The same node on another tensor; a convolution with a stride of 1, without padding."""
        found = onnx.NodeProto()
        found.CopyFrom(node)
        found.input[0] = tensor
        found.output[0] = f"stream_{node.output[0]}"
        for name in found.input[1:]:
            if name:
                self.constants[name] = kept[name]
        if "Conv" in found.op_type:
            group = _attribute(node, "group", 1)
            del found.attribute[:]
            found.attribute.extend(helper.make_attribute(key, value) for key, value in ({"group": group} | attributes).items())
        self.nodes.append(found)
        return str(found.output[0])


def _path(graph: Any, prefix: str) -> list[Any]:
    """The nodes from the first to the last whose weights are called so, one behind the other."""
    named = [node for node in graph.node if "Conv" in node.op_type and _weight(node).startswith(prefix)]
    before = {node.output[0]: node for node in graph.node}
    node, found = named[-1], [named[-1]]
    while node is not named[0]:
        node = before[node.input[0]]
        found.insert(0, node)
    earlier = before.get(node.input[0])
    if earlier is not None and earlier.op_type == "QuantizeLinear":
        found.insert(0, earlier)
    return found


def _weight(node: Any) -> str:
    return str(node.input[3 if node.op_type == "QLinearConv" else 1])


def _attribute(node: Any, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)
