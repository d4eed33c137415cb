"""Checkpoint → float .tflite → int8 .tflite.

As in `quantize.int8`, the encoder's convolutions and the sums between them become int8, and all else stays float:
normalisation, spectrum, trace, attention, the last projection, the pretext's heads.

Three traps. Quantization is always *static*: of a file with int8 weights under float activations (dynamic range),
tflite-runtime computes matrix products wrongly, with no error, where each channel has a scale of its own; see `hybrid`. Ranges
are smallest and largest values: the quantizer's own way is a moving average, which forgets the few windows with a fault. The
batch is one window, since the format knows no other than a fixed one; a second signature for 32 would make the file a third
larger.
"""

import contextlib
import io
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edge.errors import GateError
from edge.scoring.backends import OUTPUTS, LiteRtBackend
from edge.signal import Float32
from quantize.export import Exported, fold, require_equal
from trainer.model import Detector

SIGNATURE = "window"
CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
ENCODER = re.compile(r"_encoder/(?!.*Conv2d_project)")
"""In the name that the converter gives to what comes out of a convolution, which leads through the modules that it lies in: of
those that become int8."""
MARK = "encoder."
"""How that name begins in the files that are written here."""


class _Named(nn.Module):
    """Outputs by name, which become those of the signature."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, window: Tensor) -> dict[str, Tensor]:
        return dict(zip(OUTPUTS, self.detector(window), strict=True))


def require_convertible(detector: Detector) -> None:
    """To be asked before any work is done. Raises `GateError` for a recurrent encoder, ModuleNotFoundError without the extra
    `tflite`."""
    if any(isinstance(module, nn.RNNBase) for module in detector.modules()):
        raise GateError(
            "no .tflite for a recurrent encoder: each step is written out, and with a window of 256 samples the file of a GRU "
            "is 1.8 times as large as ONNX's, in int8 2.8 times; take --runtime onnx"
        )
    with _quiet():
        import ai_edge_quantizer  # noqa: F401
        import litert_torch  # noqa: F401


def export_tflite(detector: Detector, windows: Float32, out: Path) -> Exported:
    """Write `out`: one `window` (1, C, N) → what `edge.scoring.backends.Outputs` says, in float.

    `windows` (B, C, N) is what torch and LiteRT have to agree on. Raises `GateError` when they do not, and for a recurrent
    encoder.
    """
    require_convertible(detector)
    example = torch.from_numpy(np.array(windows[:1]))
    with _quiet():
        import litert_torch

        model = litert_torch.signature(SIGNATURE, _Named(fold(detector)).eval(), sample_kwargs={"window": example}).convert()
        with tempfile.TemporaryDirectory(prefix="amiss-tflite-") as folder:
            model.export(str(Path(folder) / "float.tflite"))
            out.write_bytes(_shortened((Path(folder) / "float.tflite").read_bytes()))
    difference = require_equal(detector, windows, LiteRtBackend(out.read_bytes()).run(windows))
    return Exported(out.stat().st_size, difference)


def quantize_tflite(model: Path, windows: Float32, out: Path) -> None:
    """Write `out` with activation ranges from `windows` (B, C, N), see `quantize.ranges.representative`.

    `model` is what `export_tflite` wrote. Raises `GateError` with the reason when it is to stay float.
    """
    data = model.read_bytes()
    with _quiet():
        from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe_manager
        from ai_edge_quantizer.utils import qsv_utils

        names = integer(data)
        if not names:
            raise GateError("stays float: it has no convolution to quantize")
        recipe = recipe_manager.RecipeManager()
        for name in names:
            recipe.add_static_config(f"^{re.escape(name)};?$", qtyping.TFLOperationName.ALL_SUPPORTED, 8, 8)
        ranges = calibrator.Calibrator(data, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
        inputs = [{"window": np.ascontiguousarray(windows[at : at + 1])} for at in range(len(windows))]
        ranges.calibrate({SIGNATURE: inputs}, recipe)
        work = quantizer.Quantizer(data, recipe.get_quantization_recipe())
        done = bytes(work.quantize(ranges.get_model_qsvs(), enable_progress_report=False).quantized_model)
    if found := hybrid(done):
        raise GateError(f"stays float: {len(found)} operations have int8 weights and float activations")
    out.write_bytes(done)


def integer(model: bytes) -> list[str]:
    """Names of what the operations that become int8 give: convolutions of the encoder, and padding and sums between them."""
    graph, kinds = _graph(_read(model))
    makers = {int(index): at for at, operator in enumerate(graph.operators) for index in operator.outputs}
    names = [str(graph.tensors[operator.outputs[0]].name, "utf-8") for operator in graph.operators]
    chosen: set[int] = set()

    def between(at: int) -> bool:
        """Padding behind or before what is int8: left float it would cost two conversions."""
        users = [n for n, operator in enumerate(graph.operators) if graph.operators[at].outputs[0] in operator.inputs]
        return makers.get(int(graph.operators[at].inputs[0])) in chosen or all(user in chosen for user in users)

    chosen |= {at for at, kind in enumerate(kinds) if kind in CONVOLUTIONS and names[at].startswith(MARK)}
    for at, operator in enumerate(graph.operators):  # in order of computation, so a sum of sums is found too
        added = kinds[at] == "ADD" and all(makers.get(int(index)) in chosen for index in operator.inputs)
        if added or (kinds[at] == "PAD" and between(at)):
            chosen.add(at)
    return [names[at] for at in sorted(chosen)]


def hybrid(model: bytes) -> list[str]:
    """Kinds of the operations with int8 weights and a float input: what makes a dynamic-range file. Empty for any other."""
    from ai_edge_litert.schema_py_generated import TensorType

    read = _read(model)
    graph, kinds = _graph(read)
    found = []
    for kind, operator in zip(kinds, graph.operators, strict=True):
        tensors = [graph.tensors[index] for index in operator.inputs if index >= 0]
        weights = [tensor for tensor in tensors if read.buffers[tensor.buffer].data is not None]
        floats = any(tensor.type == TensorType.FLOAT32 for tensor in tensors)
        if floats and any(tensor.type in (TensorType.INT8, TensorType.INT4) for tensor in weights) and kind != "DEQUANTIZE":
            found.append(kind)
    return found


def _shortened(model: bytes) -> bytes:
    """With numbers for the names of tensors, which say where in the source each comes from and take more bytes than all but the
    weights. Inputs and outputs keep their names in the signature.
    """
    from ai_edge_litert.tools.flatbuffer_utils import convert_object_to_bytearray

    read = _read(model)
    read.description = None
    graph, kinds = _graph(read)
    marked = {int(operator.outputs[0]) for kind, operator in zip(kinds, graph.operators, strict=True) if kind in CONVOLUTIONS}
    for at, tensor in enumerate(graph.tensors):
        found = at in marked and ENCODER.search(str(tensor.name, "utf-8"))
        tensor.name = f"{MARK if found else ''}{at}".encode()
    return bytes(convert_object_to_bytearray(read))


def _read(model: bytes) -> Any:
    from ai_edge_litert.tools.flatbuffer_utils import read_model_from_bytearray

    return read_model_from_bytearray(bytearray(model))


def _graph(model: Any) -> tuple[Any, list[str]]:
    """The one graph there is, and the kind of each of its operations."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    names = {number: kind for kind, number in vars(BuiltinOperator).items() if isinstance(number, int)}
    (graph,) = model.subgraphs
    return graph, [names[model.operatorCodes[operator.opcodeIndex].builtinCode] for operator in graph.operators]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Converter and quantizer write to the process's own outputs, past Python: progress, and what is to become of them."""
    with contextlib.ExitStack() as stack:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, nowhere)
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            stream.flush()
            kept = os.dup(number)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, number)
            os.dup2(nowhere, number)
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        level = logging.getLogger().level
        stack.callback(logging.getLogger().setLevel, level)
        logging.getLogger().setLevel(logging.ERROR)
        yield
