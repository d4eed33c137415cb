"""Quantization-aware training: it computes what int8 will compute, and its ranges are those of the file."""

import shutil
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edge.bundle import Bundle, members_of
from edge.scoring.backends import open_backend
from quantize import quantize
from quantize.export import export, fold
from quantize.int8 import quantize_int8, tensors
from quantize.models import retrain
from quantize.parity import compare
from quantize.qat import Adapted, Rounding, _Round, adapt
from quantize.ranges import Range, representative
from trainer.checkpoint import load_detector, load_info, load_windows
from trainer.encoders import Encoder
from trainer.encoders.tcn import Tcn
from trainer.model import Detector
from trainer.recipe import Budget, Recipe

STEPS = 80
PATIENT = Budget(unnoticed_us=1e9, rank_correlation=0.95, flips=0.2)
"""Speed is another matter on every machine. An encoder that was trained for seconds and then spoiled says little of faults, so
its verdicts are near their threshold: what is to be regained is the embedding."""


def heavy_tailed(detector: Detector, spread: float = 0.85) -> None:
    """Some channels inside become many times larger than others, and in float nothing changes: what is multiplied before a ReLU
    is divided behind it (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, the
    other way round). Networks get there by themselves when a normalisation layer has met a channel that hardly moves.
    """
    rng = np.random.default_rng(0)
    encoder = cast(Tcn, detector.encoder)

    def grow(part: nn.Module, by: torch.Tensor) -> None:
        norm = cast(nn.BatchNorm2d, cast(nn.Sequential, part)[1])
        norm.weight.mul_(by)
        norm.bias.mul_(by)

    def shrink(convolution: nn.Module, by: torch.Tensor) -> None:
        cast(nn.Conv2d, convolution).weight.div_(by[None, :, None, None])

    with torch.no_grad():
        width = encoder.project.in_channels
        first, others = (torch.from_numpy(np.exp(rng.normal(0, spread, width)).astype(np.float32)) for _ in range(2))
        grow(encoder.stem[0], first)
        for number, block in enumerate(encoder.blocks):
            part = cast(nn.Sequential, block.convolution)
            shrink(part[0], others if number else first)  # only the first has no shortcut, and so may change the sizes
            grow(part, others)
        shrink(encoder.project, others)


@pytest.fixture(scope="module")
def spoiled(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with heavy tails inside."""
    out = tmp_path_factory.mktemp("spoiled") / "run"
    shutil.copytree(run, out)
    detector, _ = load_detector(out)
    x = torch.from_numpy(load_windows(out)[1][:8])
    with torch.no_grad():
        before = detector(x)
        heavy_tailed(detector)
        assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(before, detector(x), strict=True))
    torch.save(detector.state_dict(), out / "checkpoint.pt")
    set_steps(out, STEPS)
    return out


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    return msgspec.structs.replace(recipe, qat=msgspec.structs.replace(recipe.qat, steps=steps))


def set_steps(run: Path, steps: int) -> None:
    info = load_info(run)
    info = msgspec.structs.replace(info, recipe=with_steps(info.recipe, steps))
    (run / "run.json").write_bytes(msgspec.json.encode(info))


@pytest.fixture(scope="module")
def adapted(spoiled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Adapted, Path, bytes]:
    """What a few steps learned, the float file, and the int8 model that `amiss quantize` makes of them."""
    folder = tmp_path_factory.mktemp("adapted")
    detector, info = load_detector(spoiled)
    fit, calibration, _ = load_windows(spoiled)
    info = msgspec.structs.replace(info, recipe=with_steps(info.recipe, 6))
    made = retrain(detector, info, fit, calibration, folder, lambda text: None)
    return adapt(detector, info.recipe, fit), folder / "adapted.onnx", made


def test_what_int8_loses_is_regained(spoiled: Path, tmp_path: Path) -> None:
    told: list[str] = []
    quantize(spoiled, tmp_path / "int8.amiss", lambda step: told.append(step.text), budget=PATIENT)
    shipped = Bundle.open(tmp_path / "int8.amiss")
    assert shipped.self_test().worst == 0
    assert shipped.manifest.precision == "int8", shipped.manifest.precision_reason
    reason = shipped.manifest.precision_reason
    assert f"after {STEPS} steps of quantization-aware training; without them: embedding error" in reason
    assert any(f"quantization-aware training {STEPS}/{STEPS}: loss" in text for text in told)
    # The control: without the steps float ships, because int8 is over budget.
    set_steps(spoiled, 0)
    result = quantize(spoiled, tmp_path / "float.amiss", lambda step: told.append(step.text), budget=PATIENT)
    set_steps(spoiled, STEPS)
    assert result.precision == "float32"
    before = result.parity
    assert before is not None
    assert "embedding error" in result.reason
    assert "aware" not in result.reason
    float_model, int8_model = (members_of(tmp_path / name)["model.onnx"] for name in ("float.amiss", "int8.amiss"))
    fit, calibration, _ = load_windows(spoiled)
    # A scorer that looks at what the encoder learned, or whatever int8 does to it would go unseen.
    after = compare(float_model, int8_model, fit, calibration, "mahalanobis(features)", rounds=1)
    assert after.embedding_error < 0.7 * before.embedding_error
    assert after.rank_correlation > 0.95


def test_the_learned_ranges_are_those_of_the_file(adapted: tuple[Adapted, Path, bytes], spoiled: Path, tmp_path: Path) -> None:
    found, float_path, int8_model = adapted
    names = tensors(onnx.load(str(float_path)).graph)
    assert set(names) == set(found.ranges), "training and file round the same tensors"

    def written(model: bytes) -> set[tuple[float, int]]:
        """Every scale and zero-point of an activation that a node of the file reads."""
        graph = onnx.load_from_string(model).graph
        value = {weight.name: onnx.numpy_helper.to_array(weight) for weight in graph.initializer}
        pairs = []
        for node in graph.node:
            at = {"QLinearConv": (1, 6), "QLinearAdd": (1, 4, 6), "QuantizeLinear": (1,), "DequantizeLinear": (1,)}
            pairs += [node.input[i : i + 2] for i in at.get(node.op_type, ())]
        assert {str(value[zero].dtype) for _, zero in pairs} == {"uint8"}
        return {(float(value[scale]), int(value[zero])) for scale, zero in pairs}

    learned = {(float(np.float32(scale)), zero) for scale, zero in found.ranges.values()}
    assert written(int8_model) == learned
    quantize_int8(float_path, representative(load_windows(spoiled)[0]), tmp_path / "without.onnx")
    assert not written((tmp_path / "without.onnx").read_bytes()) & learned, "the control"


def test_training_computes_what_int8_computes(
    run: Path, models: tuple[Path, Path], windows: tuple[np.ndarray, ...], tmp_path: Path
) -> None:
    detector = fold(load_detector(run)[0])
    few = windows[1][:32]
    x = detector.normalise(torch.from_numpy(few))[1]
    rounding = Rounding(detector.encoder, [x])
    # Tighter than what there is, so that clipping is seen as well.
    ranges = {key: Range(0.8 * found.scale, found.zero_point) for key, found in rounding.ranges().items()}
    rounding.first = {key: found.scale for key, found in ranges.items()}
    rounding.first_zero = {key: float(found.zero_point) for key, found in ranges.items()}
    quantize_int8(models[0], few, tmp_path / "int8.onnx", ranges)
    with torch.no_grad():
        simulated = rounding(x).numpy()
    exact, int8 = (open_backend(path.read_bytes()).run(few).map for path in (models[0], tmp_path / "int8.onnx"))
    # What is left are sums that lie between two steps and are rounded the other way.
    assert np.abs(simulated - int8).mean() < 0.1 * np.abs(exact - int8).mean()


def test_the_gradient_of_rounding() -> None:
    """Esser et al. (2020), eq. 3: within the range what rounding left over, beyond it the end of the range."""
    x = torch.tensor([0.26, -9.0, 90.0], requires_grad=True)
    scale, zero = torch.tensor(0.1, requires_grad=True), torch.tensor(20.0, requires_grad=True)
    y = _Round.apply(x, scale, zero)  # type: ignore[no-untyped-call]
    assert torch.allclose(y, torch.tensor([0.3, -2.0, 23.5]))
    y.sum().backward()
    assert x.grad is not None
    assert scale.grad is not None
    assert zero.grad is not None
    slower = 1 / (3 * 255) ** 0.5
    assert x.grad.tolist() == [1, 0, 0]
    assert float(scale.grad) == pytest.approx(((3 - 2.6) + (0 - 20) + (255 - 20)) * slower, rel=1e-4)
    assert float(zero.grad) == pytest.approx(-0.1 * 2 * slower, rel=1e-4)


def test_it_repeats_itself_to_the_bit(spoiled: Path) -> None:
    detector, info = load_detector(spoiled)
    recipe = with_steps(info.recipe, 3)
    fit = load_windows(spoiled)[0]
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    first, second = (adapt(detector, recipe, fit) for _ in range(2))
    assert first.ranges == second.ranges
    assert first.losses == second.losses
    for name, value in first.detector.state_dict().items():
        assert torch.equal(value, second.detector.state_dict()[name]), name
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items()), "the one given stays"


@pytest.mark.parametrize(("kind", "separable"), [("transformer", False), ("random", True)])
def test_every_encoder_with_convolutions(kind: str, separable: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = {"kind": kind, "width": 8, "depth": 2, "separable": separable}
    recipe = with_steps(msgspec.convert({"encoder": encoder}, Recipe), 2)
    windows = np.random.default_rng(0).normal(size=(64, 3, 32)).astype(np.float32)
    detector = Detector(3, recipe)
    detector.fit_normalisation(windows)
    detector.eval()
    found = adapt(detector, recipe, windows)
    export(found.detector, windows[:4], tmp_path / "float.onnx")
    assert set(tensors(onnx.load(str(tmp_path / "float.onnx")).graph)) == set(found.ranges)
    weights = (cast(nn.Module, d.encoder).state_dict() for d in (fold(detector), found.detector))
    same = all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights), strict=True))
    assert same == (kind == "random"), "the control is never trained"


def test_encoder_is_the_one_it_was(spoiled: Path) -> None:
    """Nothing that rounds is left behind in what is exported."""
    detector, info = load_detector(spoiled)
    recipe = with_steps(info.recipe, 1)
    found = adapt(detector, recipe, load_windows(spoiled)[0]).detector
    encoder: Encoder = found.encoder
    assert type(encoder) is Tcn
    assert set(found.state_dict()) == set(fold(detector).state_dict())
