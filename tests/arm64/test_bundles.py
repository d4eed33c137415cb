"""What was built here is computed there: bundles open, prove themselves and score alike on the processors of small boards."""

import json
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import device
import msgspec
import numpy as np
import pytest

from edge.bundle import Bundle, Golden, members_of, pack_golden, pack_head, verify, write_bundle
from edge.scoring.ensemble import Ensemble
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
OTHER = "other.amiss"
"""int8.amiss with a head that finds everything a little stranger, and golden scores to go with it."""


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
    bundle = Bundle.open(folder / "int8.amiss")
    stranger = {name: array * np.float32(1.05) for name, array in bundle.head.scorer.arrays().items()}
    scorer = Ensemble.from_arrays(manifest.scorer, stranger)
    proven = Golden(golden.x, golden.outputs, scorer.score(golden.outputs))
    head = pack_head(replace(bundle.head, scorer=scorer))
    write_bundle(folder / OTHER, manifest, {**members, "head.npz": head, "golden.npz": pack_golden(proven)})
    overloaded = simulate(60, seed=2, rate_hz=50, fault="overload", fault_at_s=30)
    overloaded.x[0, 600:700] = np.nan  # and a hole
    write_recording(folder / "overload.csv", overloaded)
    normal = load_windows(folder / "run")[0][:16]
    faulty = inject(normal, usual_spread(normal), np.random.default_rng(7))
    np.save(folder / "windows.npy", np.concatenate([normal, faulty]))
    return folder


@pytest.fixture(scope="session")
def here(built: Path) -> dict[str, Any]:
    """What it says on the machine that this runs on."""
    x = np.load(built / "windows.npy")
    return {name: device.judged(built / name, x, built / "overload.csv") for name in (*GOOD, OTHER)}


@pytest.fixture(scope="session", params=list(PROCESSORS))
def there(request: pytest.FixtureRequest, built: Path) -> dict[str, Any]:
    """What `device.py` says on this processor."""
    arm64: Arm64 = find()
    names = [built / "windows.npy", built / "overload.csv", *(built / name for name in (*GOOD, OTHER, FORGED))]
    found: dict[str, Any] = json.loads(arm64.python(request.param, Path(device.__file__), *names))
    return found


def test_it_is_another_machine(there: dict[str, Any]) -> None:
    assert there["machine"] == "aarch64"


@pytest.mark.parametrize("name", GOOD)
def test_scores_there_are_scores_here(there: dict[str, Any], here: dict[str, Any], built: Path, name: str) -> None:
    tolerance = Bundle.open(built / name).manifest.golden_tolerance
    found = there["bundles"][name]
    assert "refused" not in found, found
    assert found["backend"] == here[name]["backend"]
    assert found["worst"] <= tolerance
    assert off(found["scores"], here[name]["scores"]) <= tolerance
    assert np.ptp(here[name]["scores"]) > 1, "the control: these windows do not all score alike"


def off(found: list[float], known: list[float]) -> float:
    """The largest difference, measured as those of golden scores are."""
    a, b = np.array(found), np.array(known)
    return float((np.abs(a - b) / (1 + np.abs(b))).max())


def differences(found: dict[str, Any], known: dict[str, Any], bundle: Bundle) -> list[str]:
    """What is told of a recording in two places: events of the same kind, about the same samples, for the same reasons, and
    figures as near to one another as golden scores have to be."""
    if found["ends"] != known["ends"]:
        return ["other windows"]
    tolerance, wrong = bundle.manifest.golden_tolerance, []
    if (distance := off(found["smoothed"], known["smoothed"])) > tolerance:
        wrong.append(f"scores differ by {distance:.2g}")
    score = np.array(known["smoothed"], np.float32)
    near = tolerance * (1 + np.abs(score))
    rarest, commonest = (bundle.head.calibrator.p_value(score + sign * near) for sign in (1, -1))
    p = np.array(found["p_values"])
    if ((p < rarest * (1 - 1e-6)) | (p > commonest * (1 + 1e-6))).any():
        wrong.append("p-values are not those of such scores")
    plain = ("type", "episode", "time_ns", "since_ns", "until_ns", "threshold", "reason", "model")
    for a, b in zip_longest(found["events"], known["events"], fillvalue={}):
        if [a.get(name) for name in plain] != [b.get(name) for name in plain]:
            wrong.append(f"{a} and not {b}")
        shares = [{share["channel"]: share["share"] for share in event.get("channels", [])} for event in (a, b)]
        if shares[0].keys() != shares[1].keys() or any(abs(n - shares[1][name]) > tolerance for name, n in shares[0].items()):
            wrong.append(f"{shares[0]} and not {shares[1]}")
    return wrong


@pytest.mark.parametrize("name", GOOD)
def test_the_same_is_told_of_a_recording_there_and_here(
    there: dict[str, Any], here: dict[str, Any], built: Path, name: str
) -> None:
    bundle, known = Bundle.open(built / name), here[name]
    assert not differences(there["bundles"][name], known, bundle)
    assert {"gap", "anomaly_started"} <= {event["type"] for event in known["events"]}, "the control: there is something to tell"
    later = known | {"events": [{**event, "since_ns": event["since_ns"] + 1} for event in known["events"]]}
    assert len(differences(there["bundles"][name], later, bundle)) == len(known["events"]), "the control: a sample late"
    assert differences(there["bundles"][name], known | {"events": known["events"][:-1]}, bundle)


def test_another_head_is_noticed(there: dict[str, Any], here: dict[str, Any], built: Path) -> None:
    """The control: what it tells there is what it tells here, and not what the right one tells."""
    other, right = Bundle.open(built / OTHER), Bundle.open(built / "int8.amiss")
    assert not differences(there["bundles"][OTHER], here[OTHER], other)
    wrong = differences(there["bundles"][OTHER], here["int8.amiss"], right)
    assert any(text.startswith("scores differ") for text in wrong), wrong


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
