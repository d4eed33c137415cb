"""`runtime.provider`: what ONNX Runtime really does is asked, and nothing that computes something else is taken."""

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args, get_type_hints

import msgspec
import numpy as np
import onnxruntime
import pytest
import small_bundle

from edge import config as configs
from edge.bundle import Bundle, write_bundle
from edge.errors import BundleError, ConfigError
from edge.operating import doctor
from edge.scoring import backends
from edge.scoring.backends import CPU, OnnxBackend, onnx_session

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests/golden/schema-1.amiss"
OPENVINO = ROOT / ".venv/openvino"


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(record.levelno, record.message) for record in caplog.records]


def test_without_a_word_it_is_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        bundle = Bundle.open(GOLDEN)
    assert (bundle.backend.provider, bundle.declined, told(caplog)) == (CPU, "", [])


@pytest.mark.parametrize(
    ("provider", "level"), [("cuda", logging.WARNING), ("tensorrt", logging.WARNING), ("auto", logging.INFO)]
)
def test_one_that_is_absent_gives_way_with_one_line(
    provider: str,
    level: int,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    assert "CUDAExecutionProvider" not in onnxruntime.get_available_providers(), "the tests are to run where there is none"
    with caplog.at_level(logging.INFO):
        bundle = Bundle.open(GOLDEN, provider=provider)
    assert bundle.backend.provider == CPU
    assert bundle.self_test().runtime == "onnxruntime"
    ((found, line),) = told(caplog)
    assert found == level
    assert line.startswith(f'runtime.provider = "{provider}" is not used, the CPU computes: this ONNX Runtime ')
    assert line.endswith("but azure, cpu")
    assert capfd.readouterr().out == ""
    assert not recwarn.list, "ONNX Runtime warns when it is asked for what it has not"


def test_onnx_runtime_itself_says_nothing_worth_the_name() -> None:
    """The control: why its answer is looked at."""
    model = small_bundle.graph()
    with pytest.warns(UserWarning, match="not in available"):
        session = onnxruntime.InferenceSession(model, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_one_that_is_there_is_asked_for_and_counts_only_if_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Azure's is in every wheel. It is taken into the session, and computes nothing."""
    session = onnxruntime.InferenceSession(small_bundle.graph(), providers=["AzureExecutionProvider", "CPUExecutionProvider"])
    assert session.get_providers()[0] == "AzureExecutionProvider", "which sounds well"
    with pytest.raises(BundleError, match=r"azure takes none of the model's [0-9]+ operations"):
        onnx_session(small_bundle.graph(), "azure")
    monkeypatch.setattr(backends, "_operations", lambda session: {})  # an ONNX Runtime that is too old to tell
    backend = OnnxBackend(small_bundle.graph(), "azure")
    assert backend.provider == "azure"
    x = small_bundle.normal(16)[None]
    assert np.array_equal(backend.run(x).embedding, OnnxBackend(small_bundle.graph()).run(x).embedding)


class Off:
    """A provider that computes other numbers, or fails when it is used."""

    name, provider = "onnxruntime", "cuda"

    def __init__(self, model: bytes, provider: str) -> None:
        self._real = OnnxBackend(model)

    def versions(self) -> dict[str, str]:
        return self._real.versions()

    def run(self, x: np.ndarray) -> backends.Outputs:
        return backends.Outputs(*(1.5 * array for array in self._real.run(x).arrays().values()))


class Dies(Off):
    def run(self, x: np.ndarray) -> backends.Outputs:
        raise RuntimeError("CUDA failure 2: out of memory\nand much more")


@pytest.mark.parametrize(
    ("kind", "says"), [(Off, "self-test failed: with onnxruntime on cuda"), (Dies, "CUDA failure 2: out of memory")]
)
def test_other_numbers_are_refused(
    kind: type, says: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("edge.bundle.OnnxBackend", kind)
    bundle = Bundle.open(GOLDEN, provider="cuda")
    assert bundle.backend.provider == CPU
    assert bundle.self_test().worst <= 1e-4
    assert bundle.declined.startswith(says)
    ((level, line),) = told(caplog)
    assert level == logging.WARNING
    assert says in line
    assert "\n" not in line


def test_the_right_numbers_are_taken(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The control."""

    class Same(Off):
        def run(self, x: np.ndarray) -> backends.Outputs:
            return self._real.run(x)

    monkeypatch.setattr("edge.bundle.OnnxBackend", Same)
    bundle = Bundle.open(GOLDEN, provider="cuda")
    assert (bundle.backend.provider, bundle.declined, told(caplog)) == ("cuda", "", [])
    assert bundle.self_test().runtime == "onnxruntime on cuda"


def test_a_bundle_of_another_runtime_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(GOLDEN)
    bundle.manifest = msgspec.structs.replace(bundle.manifest, runtimes=("litert",))
    bundle._hand_to("cuda", b"")
    assert bundle.declined == "onnxruntime runs this bundle, and providers are ONNX Runtime's"


class Clock:
    """The doctor's, which goes on by what a run is said to take: on a real one the two differ by what else runs here."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize(("times", "severity"), [(0.5, "ok"), (1.1, "ok"), (1.3, "warning")])
def test_the_doctor_says_whether_it_is_worth_it(times: float, severity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, real = Clock(), OnnxBackend.run
    runs = 0

    def run(self: OnnxBackend, x: np.ndarray) -> backends.Outputs:
        nonlocal runs
        runs += 1
        clock.now += 0.030 if 20 <= runs < 40 else 0.001  # for ten pairs something else runs
        return real(self, x)

    class Far(Off):
        def run(self, x: np.ndarray) -> backends.Outputs:
            before = clock.now
            found = self._real.run(x)
            clock.now = before + times * (clock.now - before)
            return found

    with monkeypatch.context() as patch:
        patch.setattr("edge.bundle.OnnxBackend", Far)
        bundle = Bundle.open(GOLDEN, provider="cuda")
    monkeypatch.setattr(OnnxBackend, "run", run)
    monkeypatch.setattr(doctor, "time", clock)
    found = doctor._provider("cuda", bundle, GOLDEN)
    assert found.severity == severity
    assert found.message.startswith(f"cuda takes {times:.2g} ms a window, the CPU 1 ms")
    assert bool(found.repair) == (severity == "warning")


@pytest.mark.parametrize(("wanted", "severity"), [("cuda", "warning"), ("auto", "ok")])
def test_the_doctor_says_that_it_is_absent(wanted: str, severity: str) -> None:
    found = doctor._provider(wanted, Bundle.open(GOLDEN, provider=wanted), GOLDEN)
    assert found.severity == severity
    assert "has no cuda" in found.message


def test_a_model_that_is_broken_is_the_models_fault(capfd: pytest.CaptureFixture[str]) -> None:
    for provider in (CPU, "azure"):
        with pytest.raises(BundleError, match="cannot load the model"):
            onnx_session(b"no model", provider)
    assert capfd.readouterr().out == "", "stdout is for data, and ONNX Runtime's own fallback prints to it"


def test_its_own_falling_back_is_turned_off(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """As TensorRT's provider fails without its libraries: stdout is for data, and ONNX Runtime prints to it."""
    real = onnxruntime.InferenceSession._create_inference_session

    def fails(self: object, providers: list[object], *more: object) -> None:
        if len(providers) > 1:
            raise RuntimeError("Please install TensorRT libraries")
        real(self, providers, *more)

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", fails)
    assert Bundle.open(GOLDEN, provider="cuda").backend.provider == CPU
    with pytest.raises(BundleError, match="Please install"):
        onnx_session(small_bundle.graph(), "azure")
    assert capfd.readouterr().out == ""
    with contextlib.suppress(AttributeError):  # its next step wants what only the real one leaves behind
        onnxruntime.InferenceSession(small_bundle.graph(), providers=["AzureExecutionProvider", "CPUExecutionProvider"])
    assert "EP Error" in capfd.readouterr().out, "the control"


def test_what_tensorrt_is_told() -> None:
    """One engine for 1 to 32 windows, and nothing on the disk. Whether TensorRT likes it has never been tried."""
    assert backends._options("tensorrt", small_bundle.graph(channels=3, length=16)) == {
        "trt_engine_cache_enable": "0",
        "trt_profile_min_shapes": "window:1x3x16",
        "trt_profile_opt_shapes": "window:1x3x16",
        "trt_profile_max_shapes": "window:32x3x16",
    }


def test_a_library_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi/libonnxruntime_providers_cuda.so").write_bytes(b"no library")
    assert "file too short" in backends._missing(str(tmp_path / "__init__.py"), "cuda")
    assert backends._missing(str(tmp_path / "__init__.py"), "azure") == ""
    assert backends._missing(onnxruntime.__file__, "shared") == "", "the control: one that can be loaded"


# A provider that really computes: OpenVINO, on the processor of any PC, in an ONNX Runtime of its own.

OPEN = """
import json, logging, sys
from pathlib import Path
from edge.bundle import Bundle
logging.basicConfig(level=logging.INFO, format="%(message)s")
bundle = Bundle.open(Path(sys.argv[1]), provider=sys.argv[2])
proof = bundle.self_test()
print(json.dumps([bundle.backend.provider, bundle.backend.operations, proof.worst, proof.runtime, bundle.declined]))
"""


def with_openvino(bundle: Path, provider: str) -> tuple[str, dict[str, int], float, str, str]:
    assert (OPENVINO / "onnxruntime").is_dir(), "make .venv/openvino/.done"
    path = os.pathsep.join([str(OPENVINO), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(bundle), provider],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return tuple(json.loads(done.stdout))


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that asks for the very scores."""
    manifest, members = small_bundle.members(windows=200)
    path = tmp_path_factory.mktemp("strict") / "strict.amiss"
    write_bundle(path, msgspec.structs.replace(manifest, golden_tolerance=1e-9), members)
    return path


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="onnxruntime-openvino 1.24 has wheels up to Python 3.13")
def test_one_that_computes_is_taken_and_one_that_rounds_otherwise_than_a_bundle_allows_is_not(strict: Path) -> None:
    provider, operations, worst, runtime, declined = with_openvino(GOLDEN, "openvino")
    assert (provider, runtime, declined) == ("openvino", "onnxruntime on openvino", "")
    assert operations == {"openvino": 9}
    assert 0 < worst <= 1e-4, "other numbers than the CPU's: it was really another one"
    assert with_openvino(GOLDEN, CPU)[2] == 0, "the control"

    provider, _, worst, _, declined = with_openvino(strict, "openvino")
    assert (provider, worst) == (CPU, 0)
    assert declined.startswith("self-test failed: with onnxruntime on openvino this machine's scores differ")


def test_what_the_page_about_the_jetson_says_can_be_read() -> None:
    (block,) = re.findall(r"^```toml\n(.*?)^```", (ROOT / "docs/howto/jetson.md").read_text(), re.MULTILINE | re.DOTALL)
    data = tomllib.loads(configs.EXAMPLE + block)
    assert configs.parse(data).runtime.provider == "cuda"
    kinds = get_args(get_type_hints(configs.RuntimeConfig)["provider"])
    assert {kind for kind in kinds if kind not in block} == set()


def test_the_setting(tmp_path: Path) -> None:
    path = tmp_path / "device.toml"
    path.write_text(configs.EXAMPLE + '[runtime]\nprovider = "tensorrt"\n')
    assert configs.load(path, environ={}).runtime.provider == "tensorrt"
    assert configs.load(path, environ={"AMISS_RUNTIME__PROVIDER": "auto"}).runtime.provider == "auto"
    assert configs.load(path, environ={"AMISS_RUNTIME": "x"}).runtime.provider == "tensorrt"
    path.write_text(configs.EXAMPLE + '[runtime]\nprovider = "cudda"\n')
    with pytest.raises(ConfigError, match=r"runtime\.provider: invalid enum value 'cudda'"):
        configs.load(path, environ={})
