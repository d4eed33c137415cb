"""What was built here is computed there: bundles open, prove themselves and score alike on the processors of small boards."""

import json
from pathlib import Path
from typing import Any

import device
import msgspec
import numpy as np
import pytest

from edge.bundle import Bundle, Golden, members_of, pack_golden, verify, write_bundle
from edge.scoring.inject import inject, usual_spread
from edge.sensing.recordings import write_recording
from edge.sensing.simulate import simulate
from quantize import quantize
from quantize.emulation import PROCESSORS, Arm64, find
from quantize.target import board
from trainer.checkpoint import load_windows
from trainer.recipe import Budget, Recipe, apply_overrides
from trainer.train import train

GOOD = ("float32.amiss", "int8.amiss", "signed.amiss", "litert.amiss")
FORGED = "forged.amiss"
"""Its golden scores are none that its model gives."""


class Indifferent:
    """Stands for an emulator, so that what is shipped here depends on no figure."""

    def instructions(self, models: Any, windows: Any, processor: str, batches: Any = (1,)) -> dict[str, dict[int, int]]:
        return {name: {1: 1000} for name in models}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundles, and windows.npy: normal ones and the same with a fault, that no bundle holds."""
    folder = tmp_path_factory.mktemp("arm64")
    write_recording(folder / "normal.csv", simulate(60, seed=1, rate_hz=50))
    # The default scorer reads nothing of what the encoder makes, and that is what int8 changes.
    recipe = apply_overrides(Recipe(), ["training.steps=2", "scorer=subspace(trace) + mahalanobis(embedding)"])
    train(recipe, [folder / "normal.csv"], folder / "run")
    anything = Budget(embedding_error=1e9, rank_correlation=-1, flips=1, auroc_loss=1, unnoticed_us=1e9)
    quantize(folder / "run", folder / "float32.amiss", precision="float32")
    quantize(folder / "run", folder / "int8.amiss", precision="int8", budget=anything)
    pi5 = msgspec.structs.replace(board("pi5"), flips=1.0)
    quantize(folder / "run", folder / "signed.amiss", precision="int8", budget=anything, target=pi5, arm64=Indifferent)
    quantize(folder / "run", folder / "litert.amiss", precision="int8", budget=anything, runtime="tflite")
    manifest, members = verify((folder / "int8.amiss").read_bytes())
    golden = Bundle.open(folder / "int8.amiss").golden
    forged = Golden(golden.x, golden.outputs, golden.score * np.float32(1.1) + np.float32(0.1))
    write_bundle(folder / FORGED, manifest, {**members, "golden.npz": pack_golden(forged)})
    normal = load_windows(folder / "run")[0][:16]
    faulty = inject(normal, usual_spread(normal), np.random.default_rng(7))
    np.save(folder / "windows.npy", np.concatenate([normal, faulty]))
    return folder


@pytest.fixture(scope="session", params=list(PROCESSORS))
def there(request: pytest.FixtureRequest, built: Path) -> dict[str, Any]:
    """What `device.py` says on this processor."""
    arm64: Arm64 = find()
    names = [built / "windows.npy", *(built / name for name in (*GOOD, FORGED))]
    found: dict[str, Any] = json.loads(arm64.python(request.param, Path(device.__file__), *names))
    return found


def test_it_is_another_machine(there: dict[str, Any]) -> None:
    assert there["machine"] == "aarch64"


@pytest.mark.parametrize("name", GOOD)
def test_scores_there_are_scores_here(there: dict[str, Any], built: Path, name: str) -> None:
    tolerance = Bundle.open(built / name).manifest.golden_tolerance
    found, here = there["bundles"][name], device.judged(built / name, np.load(built / "windows.npy"))
    assert "refused" not in found, found
    assert found["backend"] == here["backend"]
    assert found["worst"] <= tolerance
    a, b = np.array(found["scores"]), np.array(here["scores"])
    assert (np.abs(a - b) / (1 + np.abs(b))).max() <= tolerance
    assert np.ptp(b) > 1, "the control: these windows do not all score alike"


def test_what_does_not_prove_itself_is_refused_there(there: dict[str, Any]) -> None:
    assert "self-test failed" in there["bundles"][FORGED]["refused"]


def test_the_bundles_differ_as_they_say(built: Path) -> None:
    """Otherwise the same thing would be shown three times."""
    members = [members_of(built / name) for name in GOOD]
    assert len({each.get("model.onnx") or each["model.tflite"] for each in members}) == len(GOOD)


@pytest.mark.parametrize(("kind", "shipped"), [("tcn", "int8"), ("transformer", "float32")])
def test_what_takes_more_instructions_in_int8_ships_in_float(built: Path, tmp_path: Path, kind: str, shipped: str) -> None:
    """With a real count. The tiny transformer's few matrices do not pay for what converting costs; the TCN is the control."""
    small = ["encoder.size=5k"] if kind == "transformer" else []
    recipe = apply_overrides(Recipe(), ["training.steps=2", f"encoder.kind={kind}", *small])
    train(recipe, [built / "normal.csv"], tmp_path / "run")
    pi4 = msgspec.structs.replace(board("pi4"), flips=1.0)
    anything = Budget(embedding_error=1e9, rank_correlation=-1, auroc_loss=1)
    result = quantize(tmp_path / "run", tmp_path / "x.amiss", budget=anything, target=pi4)
    assert result.precision == shipped
    assert result.instructions, result.not_counted
    counted = result.instructions["onnxruntime"]
    assert (counted.int8 > counted.float32) == (shipped == "float32")
    assert "on cortex-a72" in Bundle.open(tmp_path / "x.amiss").manifest.precision_reason
