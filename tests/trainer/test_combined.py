"""Pretexts by weight: a sum, nothing built that does not count, and masked reconstruction as if it were alone."""

import contextlib
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from edge.sensing.recordings import write_recording
from edge.sensing.simulate import simulate
from trainer import model
from trainer.checkpoint import load_detector
from trainer.encoders import ENCODERS
from trainer.pretexts import PRETEXTS, combined
from trainer.pretexts.combined import Combined
from trainer.pretexts.contrast import among, hierarchical
from trainer.pretexts.forecast import info_nce
from trainer.pretexts.masked import Masked
from trainer.pretexts.vicreg import covariance, variance
from trainer.recipe import EncoderRecipe, PretextRecipe, PretextWeights, Recipe, apply_overrides
from trainer.testing import rhythm
from trainer.train import deterministic, fit, train

WEIGHTS = PretextWeights(masked=0.7, contrast=0.3, vicreg=0.11, forecast=2.0, injected=1.3)
SMALL = apply_overrides(Recipe(), ["training.steps=6", "training.batch=16", "encoder.width=16", "encoder.embedding=8"])


def build(weights: PretextWeights) -> tuple[torch.nn.Module, Combined]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = ENCODERS["tcn"](3, EncoderRecipe(width=16, depth=2, embedding=8))
        return encoder, Combined(3, encoder, PretextRecipe(weights=weights))


def fitted(recipe: Recipe) -> tuple[dict[str, torch.Tensor], list[float], float]:
    windows = rhythm(80).numpy()
    with deterministic(0, 1):
        found = fit(recipe, windows[:60], windows[60:])
    return found.detector.state_dict(), found.losses, found.calibration_loss


def test_every_pretext_has_a_weight_and_every_weight_a_pretext() -> None:
    assert list(PRETEXTS) == list(PretextWeights.__struct_fields__)


def test_the_loss_is_the_weighted_sum() -> None:
    encoder, pretext = build(WEIGHTS)
    encoder.eval()
    x, rng = rhythm(16), torch.Generator().manual_seed(3)
    parts = {"masked": Masked.loss(pretext, encoder, x, rng)}
    parts |= {name: task.loss(encoder, x, rng) for name, task in pretext.others.items()}
    assert list(parts) == list(PRETEXTS)
    wanted = sum(getattr(WEIGHTS, name) * part.item() for name, part in parts.items())
    assert pretext.loss(encoder, x, torch.Generator().manual_seed(3)).item() == pytest.approx(wanted, rel=1e-6)
    assert pretext.loss(encoder, x, torch.Generator().manual_seed(3)).item() != pytest.approx(
        sum(parts.values()).item(), rel=1e-3
    )


def test_a_task_without_weight_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("built")

    monkeypatch.setitem(PRETEXTS, "forecast", refuse)
    _, pretext = build(PretextWeights(vicreg=0.1))
    assert list(pretext.others) == ["vicreg"]
    _, alone = build(PretextWeights())
    assert set(alone.state_dict()) == set(Masked(3, ENCODERS["tcn"](3, EncoderRecipe()), PretextRecipe()).state_dict())
    with pytest.raises(AssertionError, match="built"):
        build(PretextWeights(forecast=0.1))


def test_the_others_change_no_first_weight_of_masked_reconstruction() -> None:
    alone, together = build(PretextWeights())[1].state_dict(), build(WEIGHTS)[1].state_dict()
    assert all(torch.equal(value, together[name]) for name, value in alone.items())


def test_masked_alone_trains_as_before_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    explicit = apply_overrides(SMALL, ["pretext.weights.masked=1.0", "pretext.weights.vicreg=0.0"])
    ours, theirs = fitted(SMALL), fitted(explicit)
    with monkeypatch.context() as patched:
        patched.setattr(model, "Combined", Masked)
        before = fitted(SMALL)
    for other in (theirs, before):
        assert ours[1:] == other[1:]
        assert list(ours[0]) == list(other[0])
        assert all(torch.equal(a, b) for a, b in zip(ours[0].values(), other[0].values(), strict=True))
    assert fitted(apply_overrides(SMALL, ["pretext.weights.vicreg=0.1"]))[1] != ours[1]


def test_what_the_others_show_the_encoder_is_not_what_the_device_normalises_with(monkeypatch: pytest.MonkeyPatch) -> None:
    def statistics(weights: PretextWeights) -> torch.Tensor:
        encoder, pretext = build(weights)
        pretext.loss(encoder, rhythm(16), torch.Generator().manual_seed(0))
        assert {m.momentum for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {0.1}
        return torch.cat([value for name, value in encoder.state_dict().items() if "running" in name])

    alone = statistics(PretextWeights())
    assert torch.equal(statistics(WEIGHTS), alone)
    monkeypatch.setattr(combined, "statistics_kept", lambda _: contextlib.nullcontext())
    assert not torch.allclose(statistics(WEIGHTS), alone, rtol=1e-2)


def test_a_run_with_all_of_them_is_read_back_and_says_so(tmp_path: Path) -> None:
    write_recording(tmp_path / "normal.csv", simulate(20, seed=1, rate_hz=50))
    recipe = msgspec.structs.replace(SMALL, pretext=PretextRecipe(weights=WEIGHTS))
    info = train(recipe, [tmp_path / "normal.csv"], tmp_path / "run")
    detector, read = load_detector(tmp_path / "run")
    assert read == info
    assert sorted(detector.pretext.others) == sorted(set(PRETEXTS) - {"masked"})
    assert any("6 steps of masked + contrast + vicreg + forecast + injected" in line for line in info.lines())


def test_a_run_from_before_there_were_weights_is_read(tmp_path: Path) -> None:
    write_recording(tmp_path / "normal.csv", simulate(20, seed=1, rate_hz=50))
    train(SMALL, [tmp_path / "normal.csv"], tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    said = json.loads(path.read_text())
    del said["recipe"]["pretext"]["weights"]
    path.write_text(json.dumps(said))
    assert load_detector(tmp_path / "run")[1].recipe == SMALL


def test_what_was_held_back_is_judged_in_batches_as_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = Combined.loss

    def spy(self: Combined, encoder: object, x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        sizes.append(len(x))
        return plain(self, encoder, x, rng)  # type: ignore[arg-type]

    monkeypatch.setattr(Combined, "loss", spy)
    assert np.isfinite(fitted(apply_overrides(SMALL, ["pretext.weights.contrast=1.0"]))[2])
    assert sizes == [16] * 7 + [4]


def test_things_that_look_alike_are_told_apart_by_luck() -> None:
    z = torch.zeros(2, 5, 4)
    assert among(z, z).item() == pytest.approx(np.log(9))
    assert info_nce(z, z).item() == pytest.approx(np.log(5))
    assert among(z[:, :1], z[:, :1]) == 0


def test_things_that_differ_are_found_again() -> None:
    z = 10 * torch.eye(6).repeat(2, 1, 1)  # six things, each in a direction of its own
    assert among(z, z) < 1e-6
    assert info_nce(z, z) < 1e-6
    assert among(z, z.roll(1, dims=1)) > 10
    assert info_nce(z, z.roll(1, dims=1)) > 10
    maps = torch.randn(6, 4, 300, generator=torch.Generator().manual_seed(0))
    assert hierarchical(10 * maps, 10 * maps) < hierarchical(10 * maps, 10 * maps.roll(1, dims=0))


def test_vicreg_wants_spread_and_no_repetition() -> None:
    z = torch.randn(4096, 4, generator=torch.Generator().manual_seed(0))
    assert variance(torch.zeros(8, 4)).item() == pytest.approx(0.99)
    assert variance(2 * z) == 0
    assert covariance(z) < 0.01
    assert covariance(z[:, :1].repeat(1, 4)).item() == pytest.approx(3, rel=0.1)  # 4 · 3 covariances of 1, by 4
