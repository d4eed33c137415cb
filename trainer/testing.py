"""Checks that every encoder and every pretext task must pass; they ship with the package, for those who write their own.

Each raises `AssertionError` that says what was broken. `quantize.testing` has the checks of what is exported.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from trainer.encoders import Encoder
from trainer.encoders.tcn import Tcn
from trainer.pretexts import Pretext
from trainer.recipe import EncoderRecipe

CHANNELS, LENGTH = 3, 32


def rhythm(batch: int, channels: int = CHANNELS, length: int = LENGTH, seed: int = 0) -> Tensor:
    """(B, C, N) something to learn: sines of one frequency and any phase, alike in all channels, and a little noise."""
    rng = Generator().manual_seed(seed)
    phase = torch.rand(batch, 1, 1, generator=rng) * 6.28
    shift = torch.arange(channels)[None, :, None] * 0.7
    x = torch.sin(torch.arange(length) * 0.6 + phase + shift)
    return x + 0.1 * torch.randn(batch, channels, length, generator=rng)


def check_encoder(make: Callable[[int], Encoder]) -> None:
    """What every encoder owes; `make(channels)` gives a fresh one."""
    for channels in (1, CHANNELS, 8):
        encoder = make(channels)
        assert isinstance(encoder, nn.Module), "an encoder is a torch.nn.Module"
        encoder.eval()
        for length in (encoder.stride, LENGTH, LENGTH + 1, LENGTH + 3, 4 * LENGTH):
            with torch.no_grad():
                encoded = encoder(rhythm(2, channels, length))
            steps = -(-length // encoder.stride)
            expected = (2, encoder.dimension, steps)
            assert encoded.shape == expected, f"{tuple(encoded.shape)} from {length} samples, expected {expected}"
    encoder = make(CHANNELS)
    x = rhythm(8).requires_grad_()
    encoder(x).square().mean().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None, "no gradient reaches the window"
    assert (x.grad.abs().sum(dim=0) > 0).any(dim=1).all(), "a channel has no influence"
    _require_gradients(encoder)
    assert isinstance(encoder, nn.Module)
    encoder.eval()
    with torch.no_grad():
        x = rhythm(8)
        together = encoder(x)
        assert torch.equal(encoder(x), together), "the same windows give another map the second time"
        # What a device says of a window must not hang on what else happened to be waiting.
        strange = torch.cat([x[:1], 10 * x[1:].sign()])
        for other, what in ((x[:1], "alone"), (strange, "beside strange ones")):
            assert torch.allclose(encoder(other)[:1], together[:1], rtol=1e-4, atol=1e-5), f"a window {what} gives another map"
        assert torch.isfinite(encoder(torch.zeros_like(x))).all(), "windows that stand still give a map that is not finite"


def check_pretext(make: Callable[[int, Encoder], Pretext], steps: int = 20) -> None:
    """What every pretext task owes; `make(channels, encoder)` gives a fresh one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = Tcn(CHANNELS, EncoderRecipe(width=16, depth=2, embedding=8))
        pretext = make(CHANNELS, encoder)
    assert isinstance(pretext, nn.Module), "a pretext task is a torch.nn.Module"
    rng = Generator().manual_seed(0)
    x = rhythm(64)
    before = x.clone()
    losses = []
    optimizer = torch.optim.Adam([*encoder.parameters(), *pretext.parameters()], lr=1e-2)
    for step in range(steps):
        loss = pretext.loss(encoder, x, rng)
        assert loss.ndim == 0, f"the loss has shape {tuple(loss.shape)}, it is to be a scalar"
        assert torch.isfinite(loss), f"the loss is {loss.item()} after {step} steps"
        assert torch.equal(x, before), "the windows were changed in place"
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if step == 0:
            _require_gradients(encoder)
        optimizer.step()
        losses.append(loss.item())
    early, late = sum(losses[:3]) / 3, sum(losses[-3:]) / 3
    assert late < 0.9 * early, f"the loss went from {early:.3f} to {late:.3f} in {steps} steps; it learns nothing"
    again = [pretext.loss(encoder, x, Generator().manual_seed(1)).item() for _ in range(2)]
    assert again[0] == again[1], "randomness comes from somewhere else than the generator"
    encoder.eval()
    pretext.eval()
    with torch.no_grad():
        residual = pretext.residual(x, encoder(x))
        alone = pretext.residual(x[:1], encoder(x[:1]))
    assert residual.shape == (len(x), CHANNELS), f"the residual has shape {tuple(residual.shape)}, it is to be (B, C)"
    assert (residual >= 0).all(), "a residual is negative"
    assert torch.allclose(residual[:1], alone, atol=1e-5), "the residual of a window depends on the others in its batch"


def _require_gradients(encoder: Encoder) -> None:
    """Of all its weights, or of none at all when it is a control that is not trained."""
    assert isinstance(encoder, nn.Module)
    frozen = [name for name, p in encoder.named_parameters() if not p.requires_grad]
    if len(frozen) == len(list(encoder.parameters())):
        return
    assert not frozen, f"{', '.join(frozen)} would never be trained"
    without = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without, f"no gradient reaches {', '.join(without)}"
