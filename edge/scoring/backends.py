"""Run the model: a window in; out comes what there is to know about it, learned and measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from edge.errors import BundleError
from edge.signal import Float32, Int64


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the graph gives, under these names."""

    embedding: Float32
    """(B, D)"""
    residual: Float32
    """(B, C) mean squared reconstruction error of each channel's shape, in normalised units; never negative."""
    level: Float32
    """(B, C) mean of each channel, in normalised units. The encoder sees only the shape around it."""
    spectrum: Float32
    """(B, 1 + K, C) logarithm of the energy of each channel's shape: in all, and in each of K bands of equal width."""
    trace: Float32
    """(B, C, M) the window itself, levels and all, averaged down to at most 32 steps."""
    map: Float32
    """(B, D, S) what the encoder saw, averaged down to at most 16 steps."""

    @classmethod
    def concatenate(cls, parts: "Sequence[Outputs]") -> "Outputs":
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in OUTPUTS))

    def arrays(self) -> dict[str, Float32]:
        return {name: getattr(self, name) for name in OUTPUTS}

    def part(self, index: slice | Int64) -> "Outputs":
        """Of some of the windows."""
        return Outputs(*(getattr(self, name)[index] for name in OUTPUTS))

    def __len__(self) -> int:
        return len(self.embedding)


OUTPUTS = ("embedding", "residual", "level", "spectrum", "trace", "map")


class Backend(Protocol):
    name: str

    def run(self, x: Float32) -> Outputs:
        """Windows (B, C, N) in the units of the sensor; the graph normalises them itself."""
        ...

    def versions(self) -> dict[str, str]:
        """Of the library behind it."""
        ...


class OnnxBackend:
    """ONNX Runtime on one thread: on a small board the other cores belong to the reader, the broker and the user."""

    name = "onnxruntime"

    def __init__(self, model: bytes) -> None:
        self._session, self._version = onnx_session(model)
        inputs = [str(entry.name) for entry in self._session.get_inputs()]
        if len(inputs) != 1:
            raise BundleError(f"the model takes {', '.join(inputs)}; an encoder takes windows and nothing else")
        self._input = inputs[0]
        names = {entry.name for entry in self._session.get_outputs()}
        if not names.issuperset(OUTPUTS):
            raise BundleError(f"the model gives {', '.join(sorted(names))}; an encoder gives {', '.join(OUTPUTS)}")

    def versions(self) -> dict[str, str]:
        return {"onnxruntime": self._version}

    def run(self, x: Float32) -> Outputs:
        # Windows overlap and share their memory; only the slice that is run now becomes an array of its own.
        return Outputs(*self._session.run(OUTPUTS, {self._input: np.ascontiguousarray(x)}))


def onnx_session(model: bytes) -> tuple[Any, str]:
    """A session, and the version of ONNX Runtime. Raises `BundleError`."""
    try:
        import onnxruntime  # here, because a board with another runtime has none
    except ImportError:
        raise BundleError("the model needs ONNX Runtime, which is not installed: pip install onnxruntime") from None
    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # The arena keeps every peak for ever; with these small models it buys no speed and costs resident memory.
    options.enable_cpu_mem_arena = False
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises bare pybind classes, one per status code, without a common base
        raise BundleError(f"ONNX Runtime cannot load the model: {str(error).splitlines()[0]}") from None
    return session, str(onnxruntime.__version__)


def open_backend(model: bytes) -> Backend:
    """A backend for the bytes of `model.onnx`, whose SHA-256 the caller has checked. Raises `BundleError`."""
    return OnnxBackend(model)


def run_in_slices(backend: Backend, x: Float32, size: int = 32) -> Outputs:
    """`backend.run`, at most `size` windows at a time, so that a burst never needs more memory than that."""
    if len(x) <= size:
        return backend.run(x)
    return Outputs.concatenate([backend.run(x[at : at + size]) for at in range(0, len(x), size)])
