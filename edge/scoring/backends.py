"""Run the model: a window in; out comes what there is to know about it, learned and measured.

    model.onnx      OnnxBackend            onnxruntime, any number of windows at once
    model.tflite    LiteRtBackend          ai-edge-litert, 64 bit
                    TfliteRuntimeBackend   tflite-runtime, for 32-bit Arm; one window at a time, as LiteRT

Each runs on one thread: on a small board the other cores belong to the reader, the broker and the user. ONNX Runtime can hand
operations to a *provider*, a GPU's say; what it then really does is asked and not believed. This module and what it imports do
with numpy 1 too, which tflite-runtime wants.
"""

import ctypes
import importlib.metadata
import importlib.util
import logging
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edge.errors import BundleError
from edge.signal import Bool, Float32, Int64

log = logging.getLogger(__name__)


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

    def finite(self) -> Bool:
        """(B,) all that is said of a window are finite numbers."""
        found = np.ones(len(self), bool)
        flat = [array.ravel() for array in self.arrays().values()]
        with np.errstate(all="ignore"):
            if all(math.isfinite(np.dot(array, array)) for array in flat):  # nearly always, and a third of the time
                return found
        for array in self.arrays().values():
            found &= np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        return found

    def part(self, index: slice | Int64) -> "Outputs":
        """Of some of the windows."""
        return Outputs(*(getattr(self, name)[index] for name in OUTPUTS))

    def __len__(self) -> int:
        return len(self.embedding)


OUTPUTS = ("embedding", "residual", "level", "spectrum", "trace", "map")


CPU = "cpu"
_SUFFIX = "ExecutionProvider"
MOST_AT_ONCE = 32
"""Windows that a model is given at a time."""


class Backend(Protocol):
    name: str

    @property
    def provider(self) -> str:
        """What computes: `cpu`, or ONNX Runtime's provider that does some of it, as in `cuda`."""
        ...

    def run(self, x: Float32) -> Outputs:
        """Windows (B, C, N) in the units of the sensor; the graph normalises them itself."""
        ...

    def versions(self) -> dict[str, str]:
        """Of the library behind it."""
        ...


class OnnxBackend:
    """ONNX Runtime; raises `BundleError`, also where `provider` is not there or takes nothing of this model upon itself."""

    name = "onnxruntime"

    def __init__(self, model: bytes, provider: str = CPU) -> None:
        self._session, self._version = onnx_session(model, provider)
        inputs = [str(entry.name) for entry in self._session.get_inputs()]
        if len(inputs) != 1:
            raise BundleError(f"the model takes {', '.join(inputs)}; an encoder takes windows and nothing else")
        self._input = inputs[0]
        names = {entry.name for entry in self._session.get_outputs()}
        if not names.issuperset(OUTPUTS):
            raise BundleError(f"the model gives {', '.join(sorted(names))}; an encoder gives {', '.join(OUTPUTS)}")
        self.provider = _short(self._session.get_providers()[0])
        self.operations = _operations(self._session)
        """How many of the model's each provider computes; empty where ONNX Runtime does not tell."""

    def versions(self) -> dict[str, str]:
        return {"onnxruntime": self._version}

    def run(self, x: Float32) -> Outputs:
        # Windows overlap and share their memory; only the slice that is run now becomes an array of its own.
        return Outputs(*self._session.run(OUTPUTS, {self._input: np.ascontiguousarray(x)}))


def onnx_session(model: bytes, provider: str = CPU) -> tuple[Any, str]:
    """A session, and the version of ONNX Runtime. Raises `BundleError`.

    ONNX Runtime itself takes the CPU where a provider cannot be had, and says so in passing or not at all.
    """
    try:
        import onnxruntime  # here, because a board with another runtime has none
    except ImportError as error:
        raise _not_loaded("ONNX Runtime", error, "pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # The arena keeps every peak for ever; with these small models it buys no speed and costs resident memory.
    options.enable_cpu_mem_arena = False
    wanted: list[tuple[str, dict[str, str]]] = []
    if provider != CPU:
        there = {_short(name): name for name in onnxruntime.get_available_providers()}
        if provider not in there:
            raise BundleError(f"this ONNX Runtime {onnxruntime.__version__} has no {provider}, but {', '.join(there)}")
        wanted = [(there[name], _options(name, model)) for name in (provider, *_BESIDE.get(provider, ())) if name in there]
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # What keeps a provider from starting is an error to ONNX Runtime, on several lines; to us it is a reason, on one.
    onnxruntime.set_default_logger_severity(4 if wanted else 3)
    try:
        session = onnxruntime.InferenceSession(model, options, providers=[*wanted, f"CPU{_SUFFIX}"], enable_fallback=0)
    except Exception as error:  # ONNX Runtime raises bare pybind classes, one per status code, without a common base
        if wanted and (missing := _missing(onnxruntime.__file__, provider)):
            raise BundleError(f"ONNX Runtime could not start {provider}: {missing}") from None
        raise BundleError(f"ONNX Runtime cannot load the model: {str(error).splitlines()[0]}") from None
    finally:
        onnxruntime.set_default_logger_severity(3)
    if wanted:
        if wanted[0][0] not in session.get_providers():
            why = _missing(onnxruntime.__file__, provider) or "is there such a device, and has this user the right to it?"
            raise BundleError(f"ONNX Runtime could not start {provider}: {why}")
        shares = _operations(session)
        if shares and not shares.keys() - {CPU}:
            raise BundleError(f"{provider} takes none of the model's {shares[CPU]} operations")
    return session, str(onnxruntime.__version__)


def _not_loaded(what: str, error: ImportError, install: str) -> BundleError:
    """To install once more what is there and does not fit would help nobody."""
    if isinstance(error, ModuleNotFoundError):
        return BundleError(f"the model needs {what}, which is not installed: {install}")
    told = str(error).strip().splitlines()[-1]
    return BundleError(f"the model needs {what}, which is installed and cannot be loaded ({told}); `amiss doctor` says why")


_BESIDE = {"tensorrt": ("cuda",)}
"""What takes the operations that the first does not know, before the CPU does."""


def _short(provider: str) -> str:
    """CUDAExecutionProvider → cuda"""
    return provider.removesuffix(_SUFFIX).lower()


def _options(provider: str, model: bytes) -> dict[str, str]:
    """What a provider is told. Neither of the two could be tried on a GPU."""
    if provider == "cuda":
        # Nearer to the scores of a CPU; no search that is done anew for every number of windows; no more memory than is asked
        # for, because on a Jetson it is the system's.
        return {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
    if provider == "tensorrt":
        # One engine for any number of windows, built at the start: else one is built whenever a number is new, for a minute, in
        # the middle of watching. It is not kept on the disk: it would be code that no signature covers.
        entry, _ = onnx_session(model)
        shapes = {str(one.name): one.shape[1:] for one in entry.get_inputs()}
        profile = {
            key: ",".join(f"{name}:{'x'.join(map(str, (count, *shape)))}" for name, shape in shapes.items())
            for key, count in (("min", 1), ("opt", 1), ("max", MOST_AT_ONCE))
        }
        return {"trt_engine_cache_enable": "0", **{f"trt_profile_{key}_shapes": text for key, text in profile.items()}}
    return {}


def _operations(session: Any) -> dict[str, int]:
    """How many operations each provider takes, largest part first; empty where that was not recorded."""
    try:
        parts = session.get_provider_graph_assignment_info()
    except Exception:  # one of ONNX Runtime's bare classes: not asked for when the session was made, or too old
        return {}
    found: dict[str, int] = {}
    for part in parts:
        found[_short(part.ep_name)] = found.get(_short(part.ep_name), 0) + len(part.get_nodes())
    return dict(sorted(found.items(), key=lambda one: -one[1]))


def _missing(onnxruntime: str, provider: str) -> str:
    """Which library it lacks, in the loader's own words."""
    library = Path(onnxruntime).parent / f"capi/libonnxruntime_providers_{provider}.so"
    if not library.exists():
        return ""
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return ""


class _Interpreted:
    """A .tflite file under the interpreter that LiteRT has from TensorFlow Lite. It takes one window at a time."""

    name: str
    package: str
    """As pip knows it."""
    provider = CPU

    def __init__(self, model: bytes, interpreter: Callable[..., Any]) -> None:
        self._version = importlib.metadata.version(self.package)
        self._lock = threading.Lock()  # one set of tensors, and a thread for each stream
        try:
            self._interpreter = interpreter(model_content=model, num_threads=1)
            self._interpreter.allocate_tensors()
            (signature,) = self._interpreter.get_signature_list()
            # Only looked at: while it lives, the interpreter refuses to be run in any other way, and it is the slower one.
            runner = self._interpreter.get_signature_runner(signature)
            inputs, outputs = runner.get_input_details(), runner.get_output_details()
            del runner
        except (ValueError, RuntimeError) as error:
            raise BundleError(f"{self.name} cannot load the model: {str(error).splitlines()[0]}") from None
        if not set(outputs).issuperset(OUTPUTS):
            raise BundleError(f"the model gives {', '.join(sorted(outputs))}; an encoder gives {', '.join(OUTPUTS)}")
        given = [*inputs.values(), *(outputs[name] for name in OUTPUTS)]
        if len(inputs) != 1 or any(each["dtype"] != np.float32 or each["shape"][0] != 1 for each in given):
            raise BundleError("the model is not one of a single float32 window in and float32 out")
        self._input: int = given[0]["index"]
        self._shapes = [(each["index"], tuple(int(n) for n in each["shape"][1:])) for each in given[1:]]

    def versions(self) -> dict[str, str]:
        return {self.name: self._version}

    def run(self, x: Float32) -> Outputs:
        with self._lock:
            return self._run(np.ascontiguousarray(x))

    def _run(self, x: Float32) -> Outputs:
        if len(x) == 1:  # what an agent asks for most of the time; half of the time went into copying copies
            self._interpreter.set_tensor(self._input, x)
            self._interpreter.invoke()
            return Outputs(*(self._interpreter.get_tensor(index) for index, _ in self._shapes))
        found = [np.empty((len(x), *shape), np.float32) for _, shape in self._shapes]
        for at in range(len(x)):
            self._interpreter.set_tensor(self._input, x[at : at + 1])
            self._interpreter.invoke()
            for array, (index, _) in zip(found, self._shapes, strict=True):
                array[at] = self._interpreter.get_tensor(index)[0]
        return Outputs(*found)


class LiteRtBackend(_Interpreted):
    """LiteRT, what became of TensorFlow Lite."""

    name, package = "litert", "ai-edge-litert"

    def __init__(self, model: bytes) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise _not_loaded("LiteRT", error, RUNTIMES[self.name].install) from None
        super().__init__(model, Interpreter)


class TfliteRuntimeBackend(_Interpreted):
    """tflite-runtime 2.14, the last one: the only runtime with wheels for 32-bit Arm.

    With int8 weights under float activations (dynamic range) it computes matrix products wrongly and says nothing.
    `quantize.tflite` never writes such a file.
    """

    name, package = "tflite-runtime", "tflite-runtime"

    def __init__(self, model: bytes) -> None:
        if int(np.__version__.partition(".")[0]) > 1:  # it can be imported, and ends the process when it is used
            raise BundleError(f"tflite-runtime needs numpy 1, this is {np.__version__}: {RUNTIMES[self.name].install}")
        try:
            from tflite_runtime.interpreter import Interpreter
        except ImportError as error:
            raise _not_loaded(self.name, error, RUNTIMES[self.name].install) from None
        super().__init__(model, Interpreter)


@dataclass(frozen=True, slots=True)
class Runtime:
    member: str
    """Of a bundle; what it runs."""
    module: str
    """Whether it is installed is seen by this one."""
    install: str
    open: Callable[[bytes], Backend]


RUNTIMES = {
    "litert": Runtime("model.tflite", "ai_edge_litert", "pip install ai-edge-litert", LiteRtBackend),
    "onnxruntime": Runtime("model.onnx", "onnxruntime", "pip install onnxruntime", OnnxBackend),
    "tflite-runtime": Runtime(
        "model.tflite", "tflite_runtime", "pip install tflite-runtime==2.14.0 'numpy<2'", TfliteRuntimeBackend
    ),
}
"""By the name that a manifest has for it; where it says nothing, the fastest for one window comes first."""


def installed(runtime: str) -> bool:
    """Is it there, and with a numpy that it works with?"""
    if runtime == "tflite-runtime" and int(np.__version__.partition(".")[0]) > 1:
        return False
    return importlib.util.find_spec(RUNTIMES[runtime].module) is not None


def first_installed(runtimes: Sequence[str]) -> str:
    """The first of these that this machine has; raises `BundleError` that says what to install when there is none."""
    known = [name for name in runtimes if name in RUNTIMES]
    for name in known:
        if installed(name):
            return name
        log.info("%s is not installed; the next runtime that the bundle names is tried", name)
    if not known:
        raise BundleError(f"made for {', '.join(runtimes) or 'no runtime'}; this agent knows {', '.join(RUNTIMES)}")
    cure = ", or ".join(RUNTIMES[name].install for name in known)
    raise BundleError(f"the model needs {' or '.join(known)}, which is not installed: {cure}")


def member_of(model: bytes) -> str:
    """`model.tflite` or `model.onnx`: the former carries a mark."""
    return "model.tflite" if model[4:8] == b"TFL3" else "model.onnx"


def open_backend(model: bytes) -> Backend:
    """A backend for the bytes of a model, whose SHA-256 the caller has checked: of the first installed runtime that reads it.

    Raises `BundleError`.
    """
    able = [name for name, runtime in RUNTIMES.items() if runtime.member == member_of(model)]
    return RUNTIMES[first_installed(able)].open(model)


def run_in_slices(backend: Backend, x: Float32, size: int = MOST_AT_ONCE) -> Outputs:
    """`backend.run`, at most `size` windows at a time, so that a burst never needs more memory than that."""
    if len(x) <= size:
        return backend.run(x)
    return Outputs.concatenate([backend.run(x[at : at + size]) for at in range(0, len(x), size)])
