"""What is particular to one kind; what all owe is in `trainer.testing`."""

import numpy as np
import pytest
import torch
from torch import nn

from trainer.encoders import ENCODERS
from trainer.encoders.random import Random
from trainer.encoders.tcn import Tcn
from trainer.encoders.transformer import attend, positions
from trainer.recipe import HEADS, EncoderRecipe, Recipe, apply_overrides
from trainer.testing import rhythm
from trainer.train import deterministic, fit

SMALL = apply_overrides(Recipe(), ["training.steps=30", "training.batch=16", "encoder.width=16", "encoder.depth=2"])


def trained(kind: str) -> tuple[nn.Module, list[float]]:
    windows = rhythm(64).numpy()
    with deterministic(0, 1):
        found = fit(apply_overrides(SMALL, [f"encoder.kind={kind}"]), windows, windows[:8])
    return found.detector, found.losses


@pytest.mark.parametrize("kind", ENCODERS)
def test_it_learns_what_repeats_and_so_again(kind: str) -> None:
    (first, losses), (second, again) = trained(kind), trained(kind)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    assert losses == again
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


def test_random_stays_as_it_was_drawn_while_its_decoder_learns() -> None:
    def drawn(kind: type[Tcn]) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        return kind(3, SMALL.encoder).state_dict()

    with torch.random.fork_rng(devices=[]):
        before, of_a_tcn = drawn(Random), drawn(Tcn)
    control, tcn = trained("random")[0], trained("tcn")[0]
    assert all(torch.equal(before[name], value) for name, value in of_a_tcn.items())
    assert all(torch.equal(before[name], value) for name, value in control.encoder.state_dict().items())
    assert not any(p.requires_grad for p in control.encoder.parameters())
    assert all(p.requires_grad for p in control.pretext.parameters())
    # The same comparison sees what training does to a TCN, to its weights and to its statistics.
    changed = [name for name, value in tcn.encoder.state_dict().items() if not torch.equal(before[name], value)]
    assert len(changed) == len(before)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_step_of_a_recurrent_encoder_knows_its_past_alone(kind: str) -> None:
    encoder = ENCODERS[kind](3, EncoderRecipe(kind=kind, width=16)).eval()  # type: ignore[arg-type, attr-defined]
    x = rhythm(2)
    later, earlier = x.clone(), x.clone()
    later[:, :, 20:] += 1
    earlier[:, :, :4] += 1
    with torch.no_grad():
        y = encoder(x)
        # The stem looks a few samples ahead: two of its first convolution and two of the one behind.
        assert torch.equal(encoder(later)[:, :, :4], y[:, :, :4])
        assert not torch.equal(encoder(later)[:, :, 5:], y[:, :, 5:])
        assert (encoder(earlier)[:, :, -1] != y[:, :, -1]).any()


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    width, steps = 16, 7
    theirs = nn.MultiheadAttention(width, HEADS, batch_first=True).eval()
    x = torch.randn(2, steps, width)
    with torch.no_grad():
        asked = nn.functional.linear(x, theirs.in_proj_weight, theirs.in_proj_bias)  # (B, T, 3 W)
        ours = attend(asked.transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)
        assert torch.allclose(theirs.out_proj(ours), theirs(x, x, x)[0], atol=1e-6)


def test_the_transformer_knows_where_a_patch_is() -> None:
    encoder = ENCODERS["transformer"](3, EncoderRecipe(kind="transformer", size="5k")).eval()  # type: ignore[attr-defined]
    with torch.no_grad():
        y = encoder(torch.ones(1, 3, 64))  # every patch but the padded ones at the ends is alike
    assert (y[:, :, 5] - y[:, :, 6]).abs().max() > 1e-4
    found = positions(8, 5)
    assert found.shape == (8, 5)
    assert torch.allclose(found[0], torch.arange(5).sin())
    assert torch.allclose(found[3], (torch.arange(5) / 10).cos())
