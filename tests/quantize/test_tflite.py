"""The .tflite files: what is int8, from which ranges, that none is of the kind that goes wrong unseen, and who runs them."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

import quantize as package
from edge.bundle import Bundle, members_of, self_tests
from edge.errors import BundleError, GateError
from edge.operating.commission import commission
from edge.scoring.backends import OUTPUTS, LiteRtBackend, OnnxBackend, TfliteRuntimeBackend, open_backend
from edge.scoring.inject import inject, usual_spread
from edge.sensing.recordings import write_recording
from edge.sensing.simulate import simulate
from quantize import Models, quantize
from quantize.tflite import MARK, _graph, _read, export_tflite, hybrid, quantize_tflite
from trainer.model import Detector
from trainer.recipe import Budget, Recipe, apply_overrides

ROOT = Path(__file__).parents[2]
PATIENT = Budget(unnoticed_us=1e9)


@pytest.fixture(scope="module")
def both(run: Path, models_of_all: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with both models, in int8."""
    out = tmp_path_factory.mktemp("both") / "both.amiss"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "make_models", lambda *_: (models_of_all, 0.0))  # made once for all tests: it takes a while
        result = quantize(run, out, precision="int8", runtime="both", budget=PATIENT)
    assert result.runtimes == ("litert", "onnxruntime", "tflite-runtime")
    assert {(row.runtime, row.precision) for row in result.matrix.rows} == {
        (runtime, precision) for runtime in ("litert", "onnxruntime") for precision in ("float32", "int8")
    }
    return out


def test_the_encoder_is_int8_and_the_rest_is_float(models_of_all: Models) -> None:
    read = _read(models_of_all["model.tflite"]["int8"])
    graph, kinds = _graph(read)
    inputs = [
        (kind, graph.tensors[operator.inputs[0]].type, graph.tensors[operator.outputs[0]].type)
        for kind, operator in zip(kinds, graph.operators, strict=True)
    ]
    float32, int8 = 0, 9  # schema.fbs, TensorType
    assert inputs.count(("CONV_2D", int8, int8)) == 5  # stem and four blocks
    assert inputs.count(("ADD", int8, int8)) == 3
    assert inputs.count(("CONV_2D", float32, float32)) == 3  # projection, and the two of the decoder
    assert kinds.count("QUANTIZE") == kinds.count("DEQUANTIZE") == 1
    assert {kind for kind, into, _ in inputs if into == int8} == {"CONV_2D", "ADD", "PAD", "DEQUANTIZE"}
    weights = [
        graph.tensors[operator.inputs[1]] for kind, operator in zip(kinds, graph.operators, strict=True) if "CONV" in kind
    ]
    assert any(weight.quantization.scale is not None and len(weight.quantization.scale) > 1 for weight in weights)  # by channel
    assert len(models_of_all["model.tflite"]["int8"]) < 0.7 * len(models_of_all["model.tflite"]["float32"])


def test_a_file_says_nothing_of_the_source(models_of_all: Models) -> None:
    for model in (models_of_all["model.tflite"][precision] for precision in ("float32", "int8")):
        assert b"trainer" not in model
        assert b"/" not in b"".join(tensor.name or b"" for tensor in _read(model).subgraphs[0].tensors)
        assert MARK.encode() in model, "the control: names are there"


def dynamic_range(model: bytes) -> bytes:
    """int8 weights under float activations: what is never to be written."""
    from ai_edge_quantizer import qtyping, quantizer

    work = quantizer.Quantizer(model)
    work.add_dynamic_config(".*", qtyping.TFLOperationName.ALL_SUPPORTED, 8)
    return bytes(work.quantize(enable_progress_report=False).quantized_model)


def test_no_file_of_dynamic_range_is_written(models_of_all: Models) -> None:
    made = models_of_all["model.tflite"]
    assert hybrid(made["int8"]) == hybrid(made["float32"]) == []
    assert set(hybrid(dynamic_range(made["float32"]))) >= {"CONV_2D"}, "the control"


def test_ranges_from_normal_windows_alone_clip_the_anomalies(
    models_of_all: Models, windows: tuple[np.ndarray, ...], tmp_path: Path
) -> None:
    fit, calibration, _ = windows
    (tmp_path / "float.tflite").write_bytes(models_of_all["model.tflite"]["float32"])
    quantize_tflite(tmp_path / "float.tflite", fit[:: len(fit) // 100], tmp_path / "clipped.tflite")
    strange = inject(calibration, usual_spread(fit), np.random.default_rng(5))
    wanted = LiteRtBackend(models_of_all["model.tflite"]["float32"]).run(strange).embedding

    def error(model: bytes) -> float:
        return float(np.abs(LiteRtBackend(model).run(strange).embedding - wanted).max())

    assert error((tmp_path / "clipped.tflite").read_bytes()) > 3 * error(models_of_all["model.tflite"]["int8"])


def test_ranges_are_the_widest_that_were_seen(models_of_all: Models, windows: tuple[np.ndarray, ...], tmp_path: Path) -> None:
    """In whatever order: the quantizer's own moving average would forget faults that are followed by normal windows."""
    fit = windows[0][:20]
    strange = inject(fit, 5 * usual_spread(windows[0]), np.random.default_rng(0))
    (tmp_path / "float.tflite").write_bytes(models_of_all["model.tflite"]["float32"])
    for name, order in {"a": [strange, fit, fit], "b": [fit, fit, strange]}.items():
        quantize_tflite(tmp_path / "float.tflite", np.concatenate(order), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    quantize_tflite(tmp_path / "float.tflite", fit, tmp_path / "c")
    assert (tmp_path / "c").read_bytes() != (tmp_path / "a").read_bytes(), "the control: windows do matter"


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_recurrent_encoder_is_refused(kind: str, tmp_path: Path) -> None:
    detector = Detector(2, apply_overrides(Recipe(), [f"encoder.kind={kind}"]))
    with pytest.raises(GateError, match=r"no \.tflite for a recurrent encoder: .*1\.8 times.*--runtime onnx"):
        export_tflite(detector, np.zeros((2, 2, 32), np.float32), tmp_path / "x.tflite")
    assert not list(tmp_path.iterdir())


def test_without_the_extra_one_line_says_what_to_install(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import amiss

    monkeypatch.setitem(sys.modules, "litert_torch", None)  # what Python itself does to say that a module is not to be had
    monkeypatch.setattr(sys, "argv", ["amiss", "quantize", str(run), "--runtime", "tflite", "--out", str(tmp_path / "x.amiss")])
    with pytest.raises(SystemExit) as caught:
        amiss.main()
    assert caught.value.code == 69
    assert "pip install 'amiss[tflite]'" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_the_backends_agree(models_of_all: Models, windows: tuple[np.ndarray, ...]) -> None:
    x = windows[1][:40]
    litert, onnx = LiteRtBackend(models_of_all["model.tflite"]["float32"]), OnnxBackend(models_of_all["model.onnx"]["float32"])
    assert open_backend(models_of_all["model.tflite"]["int8"]).name == "litert"
    assert open_backend(models_of_all["model.onnx"]["int8"]).name == "onnxruntime"
    assert set(litert.versions()) == {"litert"}
    a, b = litert.run(x), onnx.run(x)
    for name in OUTPUTS:
        assert getattr(a, name).dtype == np.float32
        assert np.allclose(getattr(a, name), getattr(b, name), rtol=1e-4, atol=1e-5), name
    some = litert.run(x[7:12])
    assert all(np.array_equal(getattr(some, name), getattr(a, name)[7:12]) for name in OUTPUTS)
    assert len(litert.run(x[:0])) == 0
    assert np.array_equal(litert.run(np.asfortranarray(x)).embedding, a.embedding)
    wild = x[:4].copy()
    wild[0], wild[1], wild[2, 0] = 0.0, 1e30, -1e30
    for precision in ("float32", "int8"):
        outputs = LiteRtBackend(models_of_all["model.tflite"][precision]).run(wild)
        assert all(np.isfinite(array).all() for array in outputs.arrays().values())


def test_a_model_that_is_none_is_refused_in_one_line(models_of_all: Models) -> None:
    for model in (b"\0\0\0\0TFL3" + b"garbage" * 20, b"", models_of_all["model.onnx"]["int8"]):
        with pytest.raises(BundleError, match="litert cannot load the model") as caught:
            LiteRtBackend(model)
        assert "\n" not in str(caught.value)
    with pytest.raises(BundleError, match="tflite-runtime needs numpy 1"):
        TfliteRuntimeBackend(models_of_all["model.tflite"]["int8"])


def test_each_runtime_proves_itself(both: Path) -> None:
    found = {proof.runtime: proof for proof in self_tests(both)}
    assert list(found) == ["litert", "onnxruntime"]
    assert found["litert"].worst == 0
    assert found["litert"].tolerance == 0.02
    tolerances = Bundle.open(both).manifest.golden_tolerances
    assert 0.02 <= tolerances["onnxruntime"] < tolerances["tflite-runtime"], "what is not installed here could not be measured"
    bundle = Bundle.open(both)
    assert bundle.backend.name == "litert"
    bundle.golden.score[0] *= 1.5
    with pytest.raises(BundleError, match="self-test failed: with litert"):
        bundle.self_test()


def test_inspect_says_each_ones_worst_difference(
    both: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import amiss

    monkeypatch.setattr(sys, "argv", ["amiss", "inspect", str(both), "--verify", "--json"])
    with pytest.raises(SystemExit):
        amiss.main()
    data = json.loads(capsys.readouterr().out)
    assert set(data["self_test"]["runtimes"]) == {"litert", "onnxruntime"}
    assert data["self_test"]["worst"] == 0


def test_the_oldest_runtime_opens_the_same_bundle(both: Path, tflite_runtime: Path) -> None:
    """All that a 32-bit board does with a bundle up to its scores, under numpy 1."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from edge.bundle import self_tests; "
        "print([(p.runtime, p.worst <= p.tolerance) for p in self_tests(Path(sys.argv[2]))])"
    )
    done = subprocess.run(
        [tflite_runtime, "-c", code, str(ROOT), str(both)], capture_output=True, text=True, check=False, cwd=both.parent
    )
    assert done.stdout.strip() == "[('tflite-runtime', True)]", done.stderr


def test_commissioned_it_still_has_both(both: Path, tmp_path: Path) -> None:
    write_recording(tmp_path / "own.csv", simulate(120, seed=7, rate_hz=50))
    commission(both, [tmp_path / "own.csv"], tmp_path / "own.amiss")
    assert members_of(tmp_path / "own.amiss")["model.tflite"] == members_of(both)["model.tflite"]
    assert [proof.runtime for proof in self_tests(tmp_path / "own.amiss")] == ["litert", "onnxruntime"]


def test_only_tflite(run: Path, models_of_all: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "make_models", lambda *_: ({"model.tflite": models_of_all["model.tflite"]}, 0.0))
    quantize(run, tmp_path / "a.amiss", runtime="tflite", budget=PATIENT)
    bundle = Bundle.open(tmp_path / "a.amiss")
    assert (bundle.manifest.runtimes, bundle.manifest.precision) == (("litert", "tflite-runtime"), "int8")
    assert "model.onnx" not in bundle.manifest.files
    with pytest.raises(GateError, match="embedding error"):
        quantize(
            run,
            tmp_path / "none.amiss",
            runtime="tflite",
            precision="int8",
            budget=msgspec.structs.replace(PATIENT, embedding_error=1e-4),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["a.amiss"]
