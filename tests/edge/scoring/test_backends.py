"""Which runtime is taken: of those that the manifest names, the first that this machine has."""

import importlib.util
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import small_bundle

from edge.bundle import Bundle, self_tests, write_bundle
from edge.errors import BundleError
from edge.scoring.backends import OUTPUTS, RUNTIMES, LiteRtBackend, Outputs, first_installed, installed, open_backend
from edge.signal import Float32

GOLDEN = Path(__file__).parents[2] / "golden"


def build(path: Path, runtimes: tuple[str, ...], models: tuple[str, ...] = ("model.onnx", "model.tflite")) -> Path:
    manifest, members = small_bundle.members(windows=200)
    members["model.tflite"] = b"no runtime that reads this is installed here, so nobody does"
    chosen = {name: content for name, content in members.items() if not name.startswith("model.") or name in models}
    write_bundle(path, msgspec.structs.replace(manifest, runtimes=runtimes), chosen)
    return path


def test_a_bundle_of_the_first_format_still_opens() -> None:
    bundle = Bundle.open(GOLDEN / "schema-1.amiss")
    assert bundle.manifest.runtimes == ("onnxruntime",)
    assert bundle.self_test().worst <= 1e-4
    assert [proof.runtime for proof in self_tests(GOLDEN / "schema-1.amiss")] == ["onnxruntime"]


def test_a_missing_runtime_gives_way_to_the_next_with_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert importlib.util.find_spec("tflite_runtime") is None, "the tests are to run where it is not installed"
    path = build(tmp_path / "b.amiss", ("tflite-runtime", "onnxruntime"))
    with caplog.at_level(logging.INFO):
        bundle = Bundle.open(path)
    assert bundle.backend.name == "onnxruntime"
    assert bundle.self_test().runtime == "onnxruntime"
    assert [record.message for record in caplog.records] == [
        "tflite-runtime is not installed; the next runtime that the bundle names is tried"
    ]


def test_none_installed_says_what_to_install(tmp_path: Path) -> None:
    path = build(tmp_path / "b.amiss", ("tflite-runtime",), ("model.tflite",))
    for attempt in (Bundle.open, self_tests):
        with pytest.raises(BundleError, match=r"needs tflite-runtime, .*: pip install tflite-runtime==2\.14\.0 'numpy<2'"):
            attempt(path)


def test_a_runtime_of_the_future_is_passed_over(tmp_path: Path) -> None:
    assert Bundle.open(build(tmp_path / "b.amiss", ("quantum", "onnxruntime"))).backend.name == "onnxruntime"
    with pytest.raises(BundleError, match="made for quantum; this agent knows litert, onnxruntime, tflite-runtime"):
        Bundle.open(build(tmp_path / "c.amiss", ("quantum",)))


def test_a_runtime_without_its_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not the members"):
        build(tmp_path / "b.amiss", ("litert", "onnxruntime"), ("model.onnx",))
    assert not list(tmp_path.iterdir())


def test_a_model_is_told_by_its_bytes() -> None:
    x = small_bundle.normal(16)[None]
    backend = open_backend(small_bundle.graph())
    assert np.allclose(backend.run(x).embedding, x.mean(axis=2), atol=1e-6)
    assert backend.name == "onnxruntime"
    with pytest.raises(BundleError, match="litert cannot load the model"):
        open_backend(b"\0\0\0\0TFL3")


def test_what_is_installed_and_broken_is_not_called_absent(tmp_path: Path) -> None:
    code = "from edge.scoring.backends import open_backend\nopen_backend(b'model')"

    def said(package: str) -> str:
        (tmp_path / "onnxruntime").mkdir(exist_ok=True)
        (tmp_path / "onnxruntime/__init__.py").write_text(package)
        path = os.pathsep.join([str(tmp_path), *sys.path])
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path}
        )
        return done.stderr.splitlines()[-1]

    broken = said("raise ImportError('libfoo.so: cannot open shared object file')")
    assert "is installed and cannot be loaded (libfoo.so: cannot open shared object file)" in broken
    assert "pip install" not in broken
    assert "is not installed: pip install onnxruntime" in said("import onnxruntime.nothing"), "the control: half of it"


def test_what_is_installed() -> None:
    assert installed("onnxruntime")
    assert first_installed(["tflite-runtime", "onnxruntime"]) == "onnxruntime"
    assert all(runtime.member in ("model.onnx", "model.tflite") for runtime in RUNTIMES.values())


def test_streams_that_share_an_interpreter_do_not_get_each_others_scores() -> None:
    """Each stream has a thread of its own, and all of them the one interpreter of the bundle."""
    backend = LiteRtBackend((GOLDEN / "recurrent.tflite").read_bytes())
    shape = tuple(backend._interpreter.get_input_details()[0]["shape"])
    windows = [np.random.default_rng(k).normal(size=shape).astype(np.float32) for k in range(4)]
    wanted = [backend.run(x).embedding.copy() for x in windows]

    def wrong(run: Callable[[Float32], Outputs], rounds: int) -> int:
        found: list[int] = []

        def judge(k: int) -> None:
            for _ in range(rounds):
                try:
                    found.append(not np.array_equal(run(windows[k]).embedding, wanted[k]))
                except RuntimeError:  # it notices some of it
                    found.append(1)

        threads = [threading.Thread(target=judge, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(found)

    assert wrong(backend.run, 300) == 0
    assert any(wrong(backend._run, 1000) for _ in range(20)), "the control: without taking turns they do"


def test_which_windows_have_numbers_that_are_not_finite() -> None:
    def said() -> Outputs:
        shapes = {"embedding": (8,), "residual": (2,), "level": (2,), "spectrum": (5, 2), "trace": (2, 8), "map": (8, 4)}
        return Outputs(**{name: np.full((3, *shape), 1e30, np.float32) for name, shape in shapes.items()})

    assert said().finite().tolist() == [True, True, True], "whose squares are not"
    for name in OUTPUTS:
        for value in (np.nan, np.inf, -np.inf):
            outputs = said()
            getattr(outputs, name)[1].flat[-1] = value
            assert outputs.finite().tolist() == [True, False, True]
