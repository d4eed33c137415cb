"""Checkpoint → fp32 ONNX. The only step of quantizing, beside pruning, that needs PyTorch."""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edge.errors import GateError
from edge.scoring.backends import OUTPUTS, Outputs, open_backend
from edge.signal import Float32
from trainer.encoders.tcn import Block
from trainer.model import Detector

TOLERANCE = 1e-4
"""Largest difference between torch and ONNX Runtime, relative to the largest output."""
MAX_BATCH = 4096
AT_ONCE = 256
"""Windows that torch is given at a time: what lies between its layers takes memory."""


@dataclass(frozen=True, slots=True)
class Exported:
    size: int
    """Bytes of the model."""
    difference: float
    """Between torch and ONNX Runtime, relative to the largest output."""


def export(detector: Detector, windows: Float32, out: Path) -> Exported:
    """Write `out`: `window` (B, C, N) → `embedding` (B, D), `residual` and `level` (B, C), with any B up to `MAX_BATCH`.

    `windows` (B, C, N) is what torch and ONNX Runtime have to agree on; raises `GateError` when they do not.
    """
    folded = fold(detector)
    # Two of them: with a batch of one the exporter would take the 1 for a constant.
    example = torch.from_numpy(np.array(windows[:2] if len(windows) > 1 else np.repeat(windows, 2, axis=0)))
    with _quiet():
        torch.onnx.export(
            folded,
            (example,),
            str(out),
            dynamo=True,
            input_names=["window"],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},),
            external_data=False,
            verbose=False,
        )
    _strip(out)
    return Exported(out.stat().st_size, require_equal(detector, windows, open_backend(out.read_bytes()).run(np.array(windows))))


def require_equal(detector: Detector, windows: Float32, got: Outputs) -> float:
    """The largest difference of `got` from what the trained module says of `windows`, relative to the largest output.

    Raises `GateError` when it is more than `TOLERANCE`.
    """
    wanted = outputs_of(detector, windows).arrays()
    difference = max(
        float(np.abs(array - wanted[name]).max() / max(float(np.abs(wanted[name]).max()), 1e-6))
        for name, array in got.arrays().items()
    )
    if not difference <= TOLERANCE:
        raise GateError(f"the exported model differs from the trained one by {difference:.2g}, {TOLERANCE:g} is allowed")
    return difference


def outputs_of(detector: Detector, windows: Float32) -> Outputs:
    """What the trained module itself says of windows (B, C, N): what every file made from it is compared with."""
    parts = [torch.from_numpy(np.array(windows[at : at + AT_ONCE])) for at in range(0, len(windows), AT_ONCE)]
    with torch.no_grad():
        return Outputs.concatenate([Outputs(*(tensor.numpy() for tensor in detector.eval()(part))) for part in parts])


def fold(detector: Detector) -> Detector:
    """A copy in evaluation mode in which every BatchNorm behind a convolution has become part of it.

    So has the shortcut around a causal convolution: it is one more tap's worth of the newest sample, and costs no sum.
    """
    folded = copy.deepcopy(detector).eval()
    for module in folded.modules():
        if isinstance(module, nn.Sequential):
            for at in range(len(module) - 1):
                convolution, norm = module[at], module[at + 1]
                if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    module[at], module[at + 1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
    for module in folded.modules():
        if isinstance(module, Block) and module.shortcut and folded.causal:
            weight = cast(nn.Conv2d, module.convolution[0]).weight  # (W, W, 1, taps)
            with torch.no_grad():
                weight[:, :, 0, -1] += torch.eye(len(weight))
            module.shortcut = False
    return folded


def _strip(path: Path) -> None:
    """Leave out where in the source each node came from: more bytes than the weights, and paths of the build machine."""
    model = onnx.load(str(path))
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    graph.doc_string = ""
    for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    onnx.save(model, str(path))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress and warns about its own future; neither is news to whoever quantizes a model."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
