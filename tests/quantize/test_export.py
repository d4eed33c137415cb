"""Checkpoint → fp32 ONNX: the same numbers, nothing of the build machine in it, and quiet."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edge.errors import GateError
from quantize.export import export, fold
from quantize.testing import check_export, check_int8
from trainer.checkpoint import load_detector
from trainer.encoders import ENCODERS
from trainer.model import Detector
from trainer.pretexts import PRETEXTS
from trainer.recipe import Budget, EncoderRecipe, PretextRecipe, PretextWeights, Recipe


@pytest.mark.parametrize(
    ("encoder", "others", "separable"),
    [*((kind, False, False) for kind in ENCODERS), ("tcn", True, False), ("tcn", False, True), ("tcn", True, True)],
)
def test_every_kind_exports_and_survives_int8_or_says_why_not(
    encoder: str, others: bool, separable: bool, tmp_path: Path
) -> None:
    # With fewer weights than that the int8 file would not be the smaller one.
    width, depth = 32 if separable or encoder == "transformer" else 16, 3 if encoder == "tcn" else 2
    recipe = Recipe(
        encoder=EncoderRecipe(kind=encoder, width=width, depth=depth, embedding=8, separable=separable),  # type: ignore[arg-type]
        pretext=PretextRecipe(weights=PretextWeights(**dict.fromkeys(PRETEXTS, 1.0)) if others else PretextWeights()),
    )
    rng = np.random.default_rng(0)
    windows = (np.cumsum(rng.normal(size=(160, 3, 34)), axis=2) + 50).astype(np.float32)  # 34: no multiple of the stride
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = Detector(3, recipe)
        detector.fit_normalisation(windows)
        for _ in range(5):  # so that folding has statistics to fold
            detector.encoder(detector.normalise(torch.from_numpy(windows))[1])
    path = check_export(detector.eval(), windows, tmp_path)
    if encoder in ("lstm", "gru"):
        with pytest.raises(GateError, match=f"stays float: .* {encoder.upper()}"):
            check_int8(path, windows[:100], windows[100:])
        return
    # Thin convolutions lose more in eight bits, and these weights were never trained.
    check_int8(path, windows[:100], windows[100:], budget=Budget(flips=0.1) if separable else None)


def test_the_heads_of_the_other_tasks_stay_behind(tmp_path: Path) -> None:
    def exported(weight: float, *, something_more: bool = False) -> list[tuple[object, ...]]:
        weights = PretextWeights(contrast=weight, vicreg=weight, forecast=weight, injected=weight)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            detector = Detector(3, Recipe(pretext=PretextRecipe(weights=weights))).eval()
        assert any("others" in name for name, _ in detector.named_parameters()) == (weight > 0)
        if something_more:
            detector.encoder.project = torch.nn.Sequential(detector.encoder.project, torch.nn.Conv2d(16, 16, 1))
        export(detector, windows, tmp_path / "model.onnx")
        assert b"others" not in (tmp_path / "model.onnx").read_bytes()
        return [(entry.name, *entry.dims) for entry in onnx.load(str(tmp_path / "model.onnx")).graph.initializer]

    windows = np.random.default_rng(0).normal(size=(8, 3, 32)).astype(np.float32)
    assert exported(1.0) == exported(0.0)
    assert exported(1.0, something_more=True) != exported(0.0)  # so the comparison does see what is too much


def test_folding_changes_nothing_but_the_layers(run: Path, windows: tuple[np.ndarray, ...]) -> None:
    detector, _ = load_detector(run)
    folded = fold(detector)
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in detector.modules())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    x = torch.from_numpy(windows[1][:8])
    with torch.no_grad():
        for ours, theirs in zip(detector(x), folded(x), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_nothing_of_the_build_machine_is_in_the_model(models: tuple[Path, Path]) -> None:
    for path in models:
        content = path.read_bytes()
        assert b".py" not in content
        assert str(Path.home()).encode() not in content
        assert str(Path(__file__).parents[2]).encode() not in content


def test_exporting_is_quiet(
    run: Path, windows: tuple[np.ndarray, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    export(load_detector(run)[0], windows[1][:2], tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")


def test_a_model_that_differs_from_the_trained_one_is_refused(
    run: Path, windows: tuple[np.ndarray, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(detector: Detector) -> Detector:
        folded = fold(detector)
        with torch.no_grad():
            folded.encoder.project.bias.add_(0.01)  # type: ignore[attr-defined]
        return folded

    monkeypatch.setattr("quantize.export.fold", spoil)
    with pytest.raises(GateError, match="differs from the trained one"):
        export(load_detector(run)[0], windows[1][:4], tmp_path / "model.onnx")
