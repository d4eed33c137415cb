"""Masked reconstruction: hide parts of a window and make the encoder say what was there.

After He et al., "Masked Autoencoders Are Scalable Vision Learners" (2021), and for sensor windows Zerveas et al., "A
Transformer-based Framework for Multivariate Time Series Representation Learning" (2020), whose loss over hidden values only
is eq. 3. Two kinds of mask: time patches hidden in all channels ask for the dynamics, whole hidden channels ask for the
dependence of the channels on each other.

Unlike there, what was visible counts too, with a smaller weight: the device hides nothing and needs its residual.
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
        # A weak decoder on purpose: what it cannot say from the map, the map has to hold.
        self.widen = nn.Sequential(
            nn.Conv2d(encoder.dimension, width, (1, 3), padding=(0, 1), bias=False), nn.BatchNorm2d(width)
        )
        self.relu = nn.ReLU()
        self.project = nn.Conv2d(width, channels * encoder.stride, 1)

    def loss(self, encoder: "Encoder", x: Tensor, rng: Generator) -> Tensor:
        hidden = self.mask(x, rng)  # (B, C, N)
        error = (self.reconstruct(encoder(x.masked_fill(hidden, 0.0)), x.shape[2]) - x).square()
        # `+ 1`: a batch in which nothing, or everything, happens to be hidden is no division by zero.
        return (error * hidden).sum() / (hidden.sum() + 1) + self.recipe.visible_weight * (error * ~hidden).sum() / (
            (~hidden).sum() + 1
        )

    def mask(self, x: Tensor, rng: Generator) -> Tensor:
        """(B, C, N) bool, true where hidden. 0, which is what a hidden value becomes, is the mean of its channel."""
        batch, channels, length = x.shape
        patches = -(-length // self.recipe.patch)
        time = torch.rand(batch, 1, patches, generator=rng) < self.recipe.time_ratio
        time = time.repeat_interleave(self.recipe.patch, dim=2)[:, :, :length]  # (B, 1, N)
        whole = torch.rand(batch, channels, 1, generator=rng) < self.recipe.channel_ratio  # (B, C, 1)
        return time | whole

    def reconstruct(self, encoded: Tensor, length: int) -> Tensor:
        """(B, D, T) → (B, C, N)."""
        y = self.project(self.relu(self.widen(encoded.unsqueeze(2)))).squeeze(2)  # (B, C · stride, T)
        y = y.unflatten(1, (self.channels, -1)).transpose(2, 3).flatten(2)  # (B, C, T · stride)
        return cast(Tensor, y[:, :, :length])

    def residual(self, x: Tensor, encoded: Tensor) -> Tensor:
        return (self.reconstruct(encoded, x.shape[2]) - x).square().mean(2)
