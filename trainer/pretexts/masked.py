"""Masked reconstruction: hide parts of a window and make the encoder say what was there.

After He et al., "Masked Autoencoders Are Scalable Vision Learners" (2021), and for sensor windows Zerveas et al., "A
Transformer-based Framework for Multivariate Time Series Representation Learning" (2020), whose loss over hidden values only
is eq. 3. Two kinds of mask: time patches hidden in all channels ask for the dynamics, whole hidden channels ask for the
dependence of the channels on each other.

Unlike there, what was visible counts too, with a smaller weight: the device hides nothing and needs its residual.

`frequency_ratio` adds a third kind: bins of a window's spectrum hidden in all channels at once, after Xie et al., "Masked
Frequency Modeling for Self-Supervised Visual Pre-Training" (2023). The decoder still answers in time, and what it says in the
hidden bins counts like what it says of a hidden patch.
"""

from typing import TYPE_CHECKING, cast

import torch
from torch import Generator, Tensor, nn

from trainer.recipe import PretextRecipe

if TYPE_CHECKING:
    from trainer.encoders import Encoder


class Masked(nn.Module):
    def __init__(self, channels: int, encoder: "Encoder", recipe: PretextRecipe) -> None:
        super().__init__()
        self.recipe, self.channels = recipe, channels
        width = 2 * encoder.dimension
        # A weak decoder on purpose: what it cannot say from the map, the map has to hold. Behind a causal encoder it looks at
        # one step alone, so that the residual of a step is the same in every window that holds it.
        taps = 1 if encoder.causal else 3
        self.widen = nn.Sequential(
            nn.Conv2d(encoder.dimension, width, (1, taps), padding=(0, taps // 2), bias=False), nn.BatchNorm2d(width)
        )
        self.causal = encoder.causal
        self.relu = nn.ReLU()
        self.project = nn.Conv2d(width, channels * encoder.stride, 1)

    def loss(self, encoder: "Encoder", x: Tensor, rng: Generator) -> Tensor:
        hidden = self.mask(x, rng)  # (B, C, N)
        bins = self.mask_bins(x, rng) if self.recipe.frequency_ratio else None  # (B, 1, N // 2 + 1)
        # The spectrum first: a sample that is hidden stays hidden, and no bin that is hidden had a part in what is left.
        shown = x if bins is None else x - only(x, bins)
        difference = self.reconstruct(encoder(shown.masked_fill(hidden, 0.0)), x.shape[2]) - x
        error = difference.square()
        # `+ 1`: a batch in which nothing, or everything, happens to be hidden is no division by zero.
        loss = (error * hidden).sum() / (hidden.sum() + 1) + self.recipe.visible_weight * (error * ~hidden).sum() / (
            (~hidden).sum() + 1
        )
        return loss if bins is None else loss + only(difference, bins).square().sum() / (bins.float().mean() * x.numel() + 1)

    def mask(self, x: Tensor, rng: Generator) -> Tensor:
        """(B, C, N) bool, true where hidden. 0, which is what a hidden value becomes, is the mean of its channel."""
        batch, channels, length = x.shape
        patches = -(-length // self.recipe.patch)
        time = torch.rand(batch, 1, patches, generator=rng) < self.recipe.time_ratio
        time = time.repeat_interleave(self.recipe.patch, dim=2)[:, :, :length]  # (B, 1, N)
        whole = torch.rand(batch, channels, 1, generator=rng) < self.recipe.channel_ratio  # (B, C, 1)
        return time | whole

    def mask_bins(self, x: Tensor, rng: Generator) -> Tensor:
        """(B, 1, N // 2 + 1) bool, true where a bin is hidden: in all channels, or one would tell what another misses."""
        return torch.rand(len(x), 1, x.shape[2] // 2 + 1, generator=rng) < self.recipe.frequency_ratio

    def reconstruct(self, encoded: Tensor, length: int) -> Tensor:
        """(B, D, T) → (B, C, N)."""
        y = self.project(self.relu(self.widen(encoded.unsqueeze(2)))).squeeze(2)  # (B, C · stride, T)
        y = y.unflatten(1, (self.channels, -1)).transpose(2, 3).flatten(2)  # (B, C, T · stride)
        # The last step of a causal encoder ends with the window, the first step of any other begins with it.
        return cast(Tensor, y[:, :, -length:] if self.causal else y[:, :, :length])

    def residual(self, x: Tensor, encoded: Tensor) -> Tensor:
        return (self.reconstruct(encoded, x.shape[2]) - x).square().mean(2)


def only(x: Tensor, bins: Tensor) -> Tensor:
    """Of x (B, C, N) what lies in these bins (B, 1, N // 2 + 1) of its spectrum."""
    return cast(Tensor, torch.fft.irfft(torch.fft.rfft(x) * bins, n=x.shape[2]))
