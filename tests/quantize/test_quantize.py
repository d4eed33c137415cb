"""From a run to a bundle: whole or not at all, fitted on what is shipped, the same bytes for the same run."""

import hashlib
import json
import os
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

import quantize as package
from edge.bundle import Bundle
from edge.errors import DataError, GateError, NoInputError
from edge.scoring.ensemble import Ensemble
from edge.scoring.smoothing import Smoother, smoothed
from edge.sensing.recordings import write_recording
from edge.sensing.simulate import simulate
from quantize import Quantized, quantize
from quantize.choice import choose
from quantize.parity import Parity
from trainer.evaluate import evaluate
from trainer.progress import Step
from trainer.recipe import Budget, Recipe, apply_overrides
from trainer.train import train

# Speed is another matter on every machine, and so it is no matter here.
PATIENT = Budget(unnoticed_us=1e9)


@pytest.fixture(scope="module")
def made(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Quantized, list[Step]]:
    out = tmp_path_factory.mktemp("bundles") / "pump.amiss"
    told: list[Step] = []
    os.environ["SOURCE_DATE_EPOCH"] = "1767225600"
    try:
        result = quantize(run, out, told.append, budget=PATIENT)
    finally:
        del os.environ["SOURCE_DATE_EPOCH"]
    return out, result, told


def test_the_bundle_opens_and_proves_itself(made: tuple[Path, Quantized, list[Step]]) -> None:
    path, result, told = made
    bundle = Bundle.open(path)
    assert bundle.self_test().worst == 0
    assert bundle.digest == result.digest
    m = bundle.manifest
    assert (m.name, m.precision, m.window, m.hop, m.created) == ("pump", "int8", 32, 8, "2026-01-01T00:00:00Z")
    assert bundle.channels == ("vibration_x", "vibration_y", "current", "temperature", "speed")
    assert "aware" not in m.precision_reason, "it is within budget without"
    assert m.calibration_windows == result.calibration_windows
    assert {"recipe", "run", "checkpoint", "data/normal.csv"} <= set(m.lineage)
    assert [step.step for step in told] == [0, 1, 2, 3, 4, 5]
    assert all("\n" not in line for line in result.lines())


def test_scorer_and_calibrator_are_those_of_the_model_that_is_shipped(
    made: tuple[Path, Quantized, list[Step]], windows: tuple[np.ndarray, ...]
) -> None:
    bundle = Bundle.open(made[0])
    fit, calibration, position = windows
    scores = bundle.head.scorer.score(bundle.backend.run(calibration))
    manifest = bundle.manifest
    means, _ = smoothed(Smoother(manifest.smoothing, manifest.hop, manifest.window), position, scores)
    # Exactly: each calibration window's own score is among the stored ones.
    assert np.array_equal(np.sort(means), bundle.head.calibrator.arrays()["scores"])
    assert len(means) < len(scores), "the control: they are averaged"
    fitted = Ensemble.fit(manifest.scorer, bundle.backend.run(fit), bundle.backend.run(calibration))
    for name, array in fitted.arrays().items():
        assert np.allclose(bundle.head.scorer.arrays()[name], array, rtol=1e-5, atol=1e-5), name


def test_members_are_well_formed(made: tuple[Path, Quantized, list[Step]]) -> None:
    with zipfile.ZipFile(made[0]) as archive:
        card = archive.read("README.md").decode()
        text = archive.read("bom.cdx.json").decode()
        model = archive.read("model.onnx")
    bom = json.loads(text)
    published = JsonStrictValidator(SchemaVersion.V1_6)  # ships the schema as cyclonedx.org has it
    assert published.validate_str(text) is None
    assert published.validate_str(text.replace('"self-supervised"', '"self-taught"')) is not None, "the control"
    assert card.startswith("---\nlibrary_name: amiss\n")
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    assert bom["metadata"]["component"]["type"] == "machine-learning-model"
    parts = {component["bom-ref"]: component for component in bom["components"]}
    sets = {d["ref"] for d in bom["metadata"]["component"]["modelCard"]["modelParameters"]["datasets"]}
    assert sets == {ref for ref, component in parts.items() if component["type"] == "data"} != set()
    assert parts["model.onnx"]["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(model).hexdigest()}]
    assert set(bom["dependencies"][0]["dependsOn"]) == parts.keys()
    lineage = Bundle.open(made[0]).manifest.lineage
    assert {p["name"]: p["value"] for p in bom["metadata"]["component"]["properties"]} == {
        f"amiss:{name}": lineage[name] for name in ("recipe", "run", "checkpoint", "seed")
    }


def test_the_same_run_gives_the_same_bytes(
    made: tuple[Path, Quantized, list[Step]], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767225600")
    again = quantize(run, tmp_path / "pump.amiss", budget=PATIENT)
    assert again.digest == made[1].digest


def test_a_fault_is_seen_and_judged(made: tuple[Path, Quantized, list[Step]], tmp_path: Path) -> None:
    write_recording(tmp_path / "fault.csv", simulate(60, seed=1, rate_hz=50, fault="imbalance", fault_at_s=30.0, severity=3.0))
    found = evaluate(made[0], [tmp_path])
    assert found.event_recall == 1
    assert found.auroc is not None
    assert found.auroc > 0.9
    assert len(found.lines()) == 4
    assert msgspec.json.decode(msgspec.json.encode(found))["recordings"][0]["name"] == "fault.csv"


def test_nothing_to_judge_by(made: tuple[Path, Quantized, list[Step]], tmp_path: Path) -> None:
    from edge.sensing.recordings import Recording, write_recording

    whole = simulate(10, seed=1, rate_hz=50)
    write_recording(tmp_path / "x.csv", Recording(whole.name, whole.channels, whole.time_ns, whole.x))
    with pytest.raises(DataError, match="no recording has a label"):
        evaluate(made[0], [tmp_path])


def test_over_budget_ships_float_or_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = Budget(embedding_error=1e-4)
    result = quantize(run, tmp_path / "float.amiss", budget=strict)
    assert result.precision == "float32"
    reason = Bundle.open(tmp_path / "float.amiss").manifest.precision_reason
    assert "embedding error" in reason
    assert "after 2 steps of quantization-aware training still: embedding error" in reason
    Bundle.open(tmp_path / "float.amiss").self_test()
    with pytest.raises(GateError, match="embedding error"):
        quantize(run, tmp_path / "none.amiss", precision="int8", budget=strict)
    assert [path.name for path in tmp_path.iterdir()] == ["float.amiss"]


def test_choose() -> None:
    good = Parity(
        windows=100,
        embedding_error=0.01,
        rank_correlation=0.999,
        flips=0.01,
        p_value=0.001,
        float_us=100.0,
        int8_us=50.0,
        float_p99_us=200.0,
        int8_p99_us=100.0,
        float_bytes=2,
        int8_bytes=1,
    )
    assert choose(good, "auto", Budget())[0] == "int8"
    assert choose(good, "float32", Budget()) == choose("none", "float32", Budget()) == ("float32", "asked for")
    assert choose("none", "auto", Budget()) == ("float32", "none")
    slow = msgspec.structs.replace(good, int8_us=150.0)
    precision, reason = choose(slow, "auto", Budget())
    assert precision == "float32"
    assert "slower than float" in reason
    assert not any(time in reason for time in ("µs", "150")), "a clock says something else each time"
    with pytest.raises(GateError):
        choose(slow, "int8", Budget())


def test_without_an_int8_model_float_is_shipped_and_says_why(tmp_path: Path) -> None:
    write_recording(tmp_path / "normal.csv", simulate(60, seed=1, rate_hz=50))
    recipe = apply_overrides(Recipe(), ["training.steps=2", "encoder.kind=gru", "encoder.size=5k"])
    train(recipe, [tmp_path / "normal.csv"], tmp_path / "run")
    result = quantize(tmp_path / "run", tmp_path / "gru.amiss")
    assert (result.precision, result.parity) == ("float32", None)
    assert "no GRU in int8" in result.reason
    assert all("\n" not in line for line in result.lines())
    bundle = Bundle.open(tmp_path / "gru.amiss")
    assert bundle.self_test().worst == 0
    assert bundle.manifest.precision_reason == result.reason
    assert bundle.manifest.lineage["encoder"] == "gru"
    assert "int8_bytes" not in bundle.manifest.metrics
    with pytest.raises(GateError, match="no int8 model: stays float"):
        quantize(tmp_path / "run", tmp_path / "none.amiss", precision="int8")
    assert not (tmp_path / "none.amiss").exists()


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match="no training run"):
        quantize(tmp_path, tmp_path / "x.amiss")


def test_many_recordings_become_one_digest(run: Path) -> None:
    from trainer.checkpoint import load_info

    info = load_info(run)
    many = msgspec.structs.replace(info, data={f"{i}.csv": "0" * 64 for i in range(1000)})
    found = package.lineage(run, many)
    assert "data" in found
    assert not any(key.startswith("data/") for key in found)
