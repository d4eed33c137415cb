"""The causal encoder: a step knows its reach and nothing else, and a recipe that leaves too few of them is refused."""

import msgspec
import pytest
import torch

from edge.errors import ConfigError
from trainer.encoders.tcn import Tcn
from trainer.pretexts import PRETEXTS
from trainer.pretexts.masked import Masked
from trainer.recipe import EncoderRecipe, PretextRecipe, Recipe, apply_overrides
from trainer.testing import check_encoder, check_pretext, rhythm


def recipe(stride: int = 4, depth: int = 2, kernel: int = 3) -> EncoderRecipe:
    return EncoderRecipe(width=16, depth=depth, embedding=8, stride=stride, kernel=kernel, causal=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_it_is_an_encoder_like_any_other(stride: int) -> None:
    check_encoder(lambda channels: Tcn(channels, recipe(stride)))


def test_every_pretext_task_can_teach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.testing.Tcn", lambda channels, made: Tcn(channels, msgspec.structs.replace(made, causal=True)))
    for name, make in PRETEXTS.items():
        if make is Masked:
            check_pretext(lambda channels, encoder: Masked(channels, encoder, PretextRecipe()))
            continue
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = Tcn(3, recipe())
            loss = make(3, encoder, PretextRecipe()).loss(encoder, rhythm(8), torch.Generator().manual_seed(0))
        assert torch.isfinite(loss), name


@pytest.mark.parametrize(("stride", "depth", "kernel"), [(2, 1, 3), (2, 3, 3), (4, 2, 5), (4, 3, 3), (8, 3, 3), (8, 2, 1)])
def test_a_step_knows_its_reach_and_nothing_else(stride: int, depth: int, kernel: int) -> None:
    made = recipe(stride, depth, kernel)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = Tcn(3, made).eval()
    n = made.reach + 5 * stride + 1  # one more than steps need: the oldest sample is the one that is left out
    x = rhythm(1, 3, n).requires_grad_()
    steps = encoder.inside(x)
    assert steps.shape[2] == 6
    last = n - (5 - torch.arange(6)) * stride  # behind the last sample that each step may know
    for i in range(6):
        (slope,) = torch.autograd.grad(steps[:, :, i].abs().sum(), x, retain_graph=True)
        known = slope[0].abs().sum(0).nonzero().flatten()
        assert known.min() >= last[i] - made.reach
        assert known.max() < last[i]
    # ReLUs may hide single samples of a step; over many windows nothing is hidden.
    x = rhythm(64, 3, n).requires_grad_()
    (slope,) = torch.autograd.grad(encoder.inside(x)[:, :, -1].abs().sum(), x)
    known = slope.abs().sum((0, 1)).nonzero().flatten()
    assert (int(known.min()), int(known.max())) == (n - made.reach, n - 1)
    with torch.no_grad():
        assert torch.equal(encoder(x)[:, :, -6:], encoder.inside(x))


def test_a_window_too_short_for_it_is_refused_with_the_numbers_and_a_cure() -> None:
    with pytest.raises(ConfigError, match=r"depends on 65 samples .* on 77; a window has 64. .* encoder.depth = 3"):
        apply_overrides(Recipe(), ["window=64", "encoder.causal=true"])
    cured = apply_overrides(Recipe(), ["window=64", "encoder.causal=true", "encoder.depth=3", "encoder.width=48"])
    assert cured.encoder.reach == 33
    apply_overrides(Recipe(), ["window=77", "encoder.causal=true"])
    with pytest.raises(ConfigError, match=r"Take window = 77 or more$"):
        apply_overrides(Recipe(), ["window=16", "encoder.causal=true", "hop=4"])


@pytest.mark.parametrize(
    "more", ["encoder.kind=gru", "encoder.kind=transformer", "encoder.kind=conv", "encoder.separable=true"]
)
def test_what_takes_no_stream_cannot_be_causal(more: str) -> None:
    with pytest.raises(ConfigError, match=r"encoder\.causal: .*; leave it out"):
        apply_overrides(Recipe(), ["window=256", "encoder.causal=true", more])
