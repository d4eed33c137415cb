"""One small run, trained once, that all tests of this folder read."""

import sys
from pathlib import Path

import numpy as np
import pytest

from edge.sensing.recordings import write_recording
from edge.sensing.simulate import simulate
from quantize.export import export
from quantize.int8 import quantize_int8
from quantize.models import FORMATS, Models, make_models
from quantize.ranges import representative
from trainer.checkpoint import load_detector, load_windows
from trainer.recipe import Recipe, apply_overrides
from trainer.train import train


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    write_recording(folder / "normal.csv", simulate(120, seed=1, rate_hz=50))
    small = ["training.steps=80", "training.batch=32", "encoder.width=32", "encoder.embedding=8", "qat.steps=2"]
    recipe = apply_overrides(Recipe(), small)
    train(recipe, [folder / "normal.csv"], folder / "run")
    return folder / "run"


@pytest.fixture(scope="session")
def windows(run: Path) -> tuple[np.ndarray, ...]:
    """(n, C, N) windows that were learned from, that were held back, and where these start."""
    return load_windows(run)


@pytest.fixture(scope="session")
def models(run: Path, windows: tuple[np.ndarray, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Float and int8."""
    folder = tmp_path_factory.mktemp("models")
    export(load_detector(run)[0], windows[1][:16], folder / "float.onnx")
    quantize_int8(folder / "float.onnx", representative(windows[0]), folder / "int8.onnx")
    return folder / "float.onnx", folder / "int8.onnx"


@pytest.fixture(scope="session")
def models_of_all(run: Path, windows: tuple[np.ndarray, ...]) -> Models:
    """Float and int8 of both formats."""
    return make_models(load_detector(run)[0], FORMATS["both"], *windows[:2])[0]


@pytest.fixture(scope="session")
def tflite_runtime() -> Path:
    """The Python that has it, and numpy 1. `make test` sees to it; without it nothing is shown."""
    if sys.version_info >= (3, 12):
        pytest.skip("tflite-runtime has no wheels for this Python; the last that it has are for 3.11")
    found = Path(__file__).parents[2] / ".venv/tflite-runtime/bin/python"
    assert found.exists(), "make .venv/tflite-runtime/.done"
    return found
