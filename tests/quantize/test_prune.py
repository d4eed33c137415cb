"""What is taken away is really gone, nothing else changes, and it ends before quality does."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from amiss import main
from edge.bundle import Bundle
from edge.errors import ConfigError
from quantize import quantize
from quantize.prune import Group, Judge, Pruning, cut_to, groups, prune, run, without
from quantize.testing import check_export
from trainer.checkpoint import load_detector, load_windows
from trainer.encoders import ENCODERS
from trainer.model import Detector
from trainer.pretexts import PRETEXTS
from trainer.progress import Step
from trainer.recipe import Budget, EncoderRecipe, PretextRecipe, PretextWeights, PruneRecipe, Recipe, TrainingRecipe, pruning

KINDS = [*((kind, False) for kind in ENCODERS), ("tcn", True)]
PATIENT = Budget(unnoticed_us=1e9)
WINDOWS = (np.cumsum(np.random.default_rng(0).normal(size=(120, 3, 34)), axis=2) + 50).astype(np.float32)  # 34: no multiple
FREELY = {"allowed_loss": 1e3, "allowed_detection": 1.0}


def recipe_of(kind: str, separable: bool = False, **others: Any) -> Recipe:
    # 22: no multiple of eight, except where heads have to divide it.
    width = 40 if kind == "transformer" else 22
    encoder = EncoderRecipe(kind=kind, width=width, depth=2, embedding=8, separable=separable)  # type: ignore[arg-type]
    return Recipe(window=34, encoder=encoder, training=TrainingRecipe(batch=16), **others)


def drawn(recipe: Recipe) -> Detector:
    """Untrained, with statistics in its normalisation layers that are not the initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = Detector(3, recipe)
        detector.fit_normalisation(WINDOWS)
        x = detector.normalise(torch.from_numpy(WINDOWS))[1]
        for module in detector.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
                nn.init.normal_(module.weight, 1.0, 0.3)
                nn.init.normal_(module.bias, 0.0, 0.3)
        detector.pretext.residual(x, detector.encoder(x))
    return detector.eval()


def by_size(detectors: Sequence[Detector]) -> list[float]:
    """A clock that never depends on what else this machine does."""
    return [float(sum(p.numel() for p in detector.parameters())) for detector in detectors]


def readers(detector: Detector, group: Group, row: int) -> list[torch.Tensor]:
    """Weights (outputs, units, …) through which anything hears of that row's units; written down by hand for each kind."""
    encoder: Any = detector.encoder
    where, *rest = group.name.split()
    if where == "decoder":
        return [detector.pretext.project.weight]  # type: ignore[attr-defined]
    if where == "forward":
        return [encoder.layers[int(rest[0])].forward_part[2].weight]
    if where == "states":
        layers = encoder.recurrent
        last = row == layers.num_layers - 1
        onward = encoder.project.weight if last else getattr(layers, f"weight_ih_l{row + 1}")
        return [getattr(layers, f"weight_hh_l{row}"), onward]
    if where == "stem":
        after = int(rest[0].split(".")[0]) + 2
        return [encoder.stem[after][0].weight if after < len(encoder.stem) else encoder.recurrent.weight_ih_l0]
    if where.startswith("layers."):
        after = int(where.split(".")[1]) + 2
        return [encoder.layers[after][0].weight if after < len(encoder.layers) else encoder.project.weight]
    whole = 0 if len(encoder.blocks[0].convolution) == 2 else 2  # behind the depthwise one, which hands on what it is given
    blocks = [block.convolution[whole].weight for block in encoder.blocks]
    halving = where in ("stem.0.0", "blocks.0.convolution.0")
    return blocks[:1] if halving else [*blocks[1:], encoder.project.weight]


def silenced(detector: Detector, at: int, which: torch.Tensor) -> Detector:
    """A copy in which nothing hears of these units (R, n) any more."""
    copied = copy.deepcopy(detector)
    group = groups(copied)[at]
    with torch.no_grad():
        for row, units in enumerate(which):
            if group.name.startswith("attention"):
                layer = copied.encoder.layers[int(group.name.split()[1])]  # type: ignore[attr-defined]
                heads, index = group.rows // 2, row % (group.rows // 2) * group.units + units
                if row < heads:  # of the keys: that of the queries has no say then
                    keys = slice(heads * group.units, 2 * heads * group.units)
                    layer.ask.weight[keys][index] = 0
                    layer.ask.bias[keys][index] = 0
                else:
                    layer.answer.weight[:, index] = 0
                continue
            for weight in readers(copied, group, row):
                weight[:, units] = 0
    return copied


def differ(ours: Detector, theirs: Detector) -> float:
    """Largest difference between what both say of windows, relative to the largest value; in double, so without rounding."""
    x = torch.from_numpy(WINDOWS[:16]).double()
    with torch.no_grad():
        pairs = zip(copy.deepcopy(ours).double()(x), copy.deepcopy(theirs).double()(x), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


@pytest.mark.parametrize(("kind", "separable"), KINDS)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=2, deadline=None)
def test_a_unit_that_nothing_hears_goes_without_a_trace(kind: str, separable: bool, seed: int) -> None:
    detector, rng = drawn(recipe_of(kind, separable)), torch.Generator().manual_seed(seed)
    found = groups(detector)
    assert len(found) >= 3
    for at, group in enumerate(found):
        order = torch.stack([torch.randperm(group.units, generator=rng) for _ in range(group.rows)])
        some = order[:, : int(torch.randint(1, group.units, (), generator=rng))]
        quiet = silenced(detector, at, some)
        # The gain that makes up for fewer dimensions in attention is rounded to float32.
        assert differ(without(quiet, at, some), quiet) < 1e-6, group.name
        # The controls: those that are heard are missed, and so are those that go in place of the silent ones.
        half, rest = order[:, : group.units // 2], order[:, group.units // 2 :][:, : group.units // 2]
        assert differ(without(detector, at, half), detector) > 1e-4, group.name
        assert differ(without(silenced(detector, at, half), at, rest), silenced(detector, at, half)) > 1e-4, group.name


@pytest.mark.parametrize(("kind", "separable"), KINDS)
def test_every_kind_really_shrinks_and_exports(kind: str, separable: bool, tmp_path: Path) -> None:
    weights = PretextWeights(**dict.fromkeys(PRETEXTS, 1.0)) if kind == "gru" else PretextWeights()
    recipe = recipe_of(kind, separable, pretext=PretextRecipe(weights=weights))
    detector = drawn(recipe)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    judge = Judge(recipe, WINDOWS, WINDOWS)
    smaller = cut_to(detector, 0.6 * judge.macs(detector), judge.macs, judge)
    assert judge.macs(smaller) <= 0.6 * judge.macs(detector)
    assert judge.parameters(smaller) < 0.85 * judge.parameters(detector)
    assert judge.parameters(smaller) == sum(
        value.numel() for name, value in smaller.named_parameters() if not name.startswith("pretext.others")
    )
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items()), "the one given changed"
    # Names and whether they are trained stay; a control that is not trained must not begin to be.
    assert [(n, p.requires_grad) for n, p in smaller.named_parameters()] == [
        (n, p.requires_grad) for n, p in detector.named_parameters()
    ]
    for old, new in zip(groups(detector), groups(smaller), strict=True):
        assert (old.name, old.rows, old.notch) == (new.name, new.rows, new.notch)
        assert new.units == old.units or (new.units % new.notch == 0 and 0 < new.units < old.units)
    for ours, theirs in zip(
        run(smaller, WINDOWS[:4]).arrays().values(), run(detector, WINDOWS[:4]).arrays().values(), strict=True
    ):
        assert ours.shape == theirs.shape
    loss = smaller.train().pretext.loss(smaller.encoder, torch.from_numpy(WINDOWS[:8]), torch.Generator().manual_seed(0))
    loss.backward()  # type: ignore[no-untyped-call]
    if kind != "random":  # which is a TCN, and an export takes seconds
        check_export(smaller.eval(), WINDOWS, tmp_path)


@pytest.fixture(scope="module")
def trained(run: Path) -> tuple[Detector, Recipe, np.ndarray, np.ndarray]:
    detector, info = load_detector(run)
    fit, held_back, _ = load_windows(run)
    return detector, info.recipe, fit, held_back


def pruned(trained: tuple[Detector, Recipe, np.ndarray, np.ndarray], **keys: Any) -> tuple[Detector, Pruning]:
    said = {"target": "parameters", "ratio": 0.3, "steps": 3, "recovery_steps": 0} | keys
    return prune(*trained, PruneRecipe(**said), by_size)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def free(trained: tuple[Detector, Recipe, np.ndarray, np.ndarray]) -> tuple[Detector, Pruning]:
    return pruned(trained, **FREELY)


def test_it_goes_to_the_target_when_it_may(free: tuple[Detector, Pruning]) -> None:
    smaller, found = free
    size = sum(p.numel() for p in smaller.parameters())
    assert found.kept == len(found.curve) - 1
    assert "30% of the parameters was asked for" in found.reason
    assert found.after.parameters == found.curve[-1].parameters == size <= 0.3 * found.before.parameters
    assert (found.before.latency_us, found.after.latency_us) == (found.before.parameters, size)
    shares = [point.share for point in found.curve]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1


@pytest.mark.parametrize("criterion", ["loss", "detection"])
def test_it_ends_before_quality_does(
    criterion: str, trained: tuple[Detector, Recipe, np.ndarray, np.ndarray], free: tuple[Detector, Pruning]
) -> None:
    """The same way down as without a limit, up to the first model that is over it; the one before ships."""
    first, *curve = free[1].curve
    lost = [p.loss / first.loss - 1 if criterion == "loss" else first.detection - p.detection for p in curve]
    bad = next(i for i, value in enumerate(lost) if value > max([0.0, *lost[:i]]))
    limit = (lost[bad] + max([0.0, *lost[:bad]])) / 2
    smaller, found = pruned(trained, **FREELY | {f"allowed_{criterion}": limit})
    assert found.curve == free[1].curve[: bad + 2]
    assert found.kept == bad
    assert "stopped before" in found.reason
    assert sum(p.numel() for p in smaller.parameters()) == found.after.parameters == found.curve[bad].parameters


def test_without_any_allowance_nothing_goes(trained: tuple[Detector, Recipe, np.ndarray, np.ndarray]) -> None:
    smaller, found = pruned(trained, allowed_loss=0.0, allowed_detection=0.0)
    assert (found.kept, len(found.curve)) == (0, 2)
    assert found.after.parameters == found.before.parameters
    assert all(torch.equal(value, trained[0].state_dict()[name]) for name, value in smaller.state_dict().items())


def test_the_clock_decides_when_latency_is_the_target(trained: tuple[Detector, Recipe, np.ndarray, np.ndarray]) -> None:
    told: list[Step] = []
    settings = PruneRecipe(target="latency", ratio=0.65, steps=1, recovery_steps=10, **FREELY)  # type: ignore[arg-type]

    def slow(detectors: Sequence[Detector]) -> list[float]:
        """Much of the time does not hang on size."""
        sizes = by_size(detectors)
        return [size + sizes[0] for size in sizes]

    _, found = prune(*trained, settings, slow, told.append)
    assert len(found.curve) > 2, "what is enough of the MACs is not enough, and it goes on"
    assert found.after.latency_us <= 0.65 * found.before.latency_us
    assert all(point.loss < point.loss_cut for point in found.curve[1:]), "it recovers"
    assert told[-1].steps == 3
    assert any(step.eta_s for step in told)
    assert all("pruning to" in step.text for step in told)
    _, never = prune(*trained, msgspec.structs.replace(settings, recovery_steps=0), lambda detectors: [1.0] * len(detectors))
    assert "nothing more can go" in never.reason


def test_the_same_seed_gives_the_same_bits(trained: tuple[Detector, Recipe, np.ndarray, np.ndarray]) -> None:
    once, again, other = (
        prune(
            trained[0],
            msgspec.structs.replace(trained[1], training=msgspec.structs.replace(trained[1].training, seed=seed)),
            *trained[2:],
            PruneRecipe(target="macs", ratio=0.8, steps=1, recovery_steps=5, **FREELY),  # type: ignore[arg-type]
            by_size,
        )[0].state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert any(once[name].shape != other[name].shape or not torch.equal(once[name], other[name]) for name in once)
    # What the windows are normalised by is the machine's, and not for the recovery to change.
    assert torch.equal(once["mean"], trained[0].mean)


def test_detection_sees_the_encoder(trained: tuple[Detector, Recipe, np.ndarray, np.ndarray]) -> None:
    detector, recipe, fit, held_back = trained
    blind = copy.deepcopy(detector)
    with torch.no_grad():
        blind.encoder.project.weight.zero_()  # type: ignore[attr-defined]
    judge = Judge(recipe, fit, held_back)
    assert judge.detection(detector) > 0.55
    assert judge.detection(blind) == pytest.approx(0.5, abs=0.01)


def test_a_bundle_of_what_is_left(run: Path, tmp_path: Path) -> None:
    settings = PruneRecipe(target="macs", ratio=0.5, steps=1, recovery_steps=10, **FREELY)  # type: ignore[arg-type]
    told: list[Step] = []
    result = quantize(run, tmp_path / "x.amiss", told.append, budget=PATIENT, prune=settings)
    found, bundle = result.pruned, Bundle.open(tmp_path / "x.amiss")
    assert found
    assert bundle.self_test().worst == 0
    metrics = bundle.manifest.metrics
    assert metrics["macs"] == found.after.macs <= 0.5 * found.before.macs == 0.5 * metrics["macs_trained"]
    assert metrics["parameters"] == result.parameters == found.after.parameters < metrics["parameters_trained"]
    assert {"pruned", "cost_of_pruning", "curve"} <= set(result.table())
    assert all("\n" not in line for line in result.lines())
    assert len(msgspec.to_builtins(result)["pruned"]["curve"]) == 2
    assert (told[0].step, told[0].steps, told[-1].step, told[-1].steps) == (0, 5, 5, 5)


def test_what_is_said_on_the_command_line() -> None:
    asked = PruneRecipe(steps=4)
    assert pruning(["macs=0.4"], asked) == PruneRecipe(target="macs", ratio=0.4, steps=4)
    assert pruning(["latency=0.7", "allowed_loss=0.2"], asked) == PruneRecipe(
        target="latency", ratio=0.7, steps=4, allowed_loss=0.2
    )
    assert pruning(["none"], PruneRecipe(target="macs")).target == "none"
    for wrong in ("macs", "macs=1.5", "macs=0", "size=0.5", "0.5", "none=1", "steps=0", "macs=half"):
        with pytest.raises(ConfigError, match=r"^--prune") as caught:
            pruning([wrong], asked)
        assert "\n" not in str(caught.value)


def test_the_front_door_takes_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["amiss", "quantize", str(run), "--out", str(tmp_path / "x.amiss"), "--prune", "size=0.5"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 78
    assert "expected macs=0.5" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_encoder_of_which_nothing_is_known_is_refused() -> None:
    detector = drawn(recipe_of("conv"))
    detector.encoder.project = nn.Sequential(detector.encoder.project)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"not known; leave out --prune"):
        groups(detector)
