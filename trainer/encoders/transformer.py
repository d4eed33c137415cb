"""A small transformer over patches of time.

After Nie, Nguyen, Sinthong & Kalagnanam, "A Time Series is Worth 64 Words: Long-term Forecasting with Transformers" (2023,
PatchTST): patches that overlap by half become tokens. Normalised before each part and not behind it (Xiong et al., "On Layer
Normalization in the Transformer Architecture", 2020), which trains without a long warm-up.

Unlike there, a patch spans all channels: what channels have to do with each other is to be learned here, and one token for all
of them costs a C-th. Positions are sines (Vaswani et al., "Attention Is All You Need", 2017) and not learned, because pretext
tasks show it parts of windows too.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.recipe import HEADS, EncoderRecipe

WIDER = 2
"""Feed-forward ÷ width. The usual 4 would put two thirds of the weights where no step sees another."""


class Normalise(nn.LayerNorm):
    """Each step of (B, W, 1, T) by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Layer(nn.Module):
    """(B, W, 1, T) → (B, W, 1, T): attention, then a feed-forward part, each added to what went in.

    Linear maps are written as convolutions with kernel 1. In this form ONNX Runtime is a little faster in float, and its int8
    convolutions gain where its int8 matrix products lose (docs/encoders.md).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before_attention, self.before_forward = Normalise(width), Normalise(width)
        self.ask = nn.Conv2d(width, 3 * width, 1)
        self.answer = nn.Conv2d(width, width, 1)
        self.forward_part = nn.Sequential(nn.Conv2d(width, WIDER * width, 1), nn.ReLU(), nn.Conv2d(WIDER * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.answer(attend(self.ask(self.before_attention(x))))
        return cast(Tensor, x + self.forward_part(self.before_forward(x)))


def attend(asked: Tensor) -> Tensor:
    """Queries, keys and values (B, 3 W, 1, T) → (B, W, 1, T). Every step looks both ways: the window is complete."""
    _, width, _, steps = asked.shape
    query, key, value = asked.reshape(-1, 3, HEADS, width // 3 // HEADS, steps).unbind(1)  # (B, H, W / H, T) each
    weight = (query.transpose(2, 3) @ key / math.sqrt(query.shape[2])).softmax(3)  # (B, H, T, T)
    return (value @ weight.transpose(2, 3)).flatten(1, 2).unsqueeze(2)


class PatchTransformer(nn.Module):
    """(B, C, N) → (B, D, T) with T = ceil(N / stride). A patch is two strides long; the next begins a stride later."""

    causal = False

    def __init__(self, channels: int, recipe: EncoderRecipe) -> None:
        super().__init__()
        self.dimension: int = recipe.embedding
        self.stride: int = recipe.stride
        width, depth = recipe.shape
        self.patch = nn.Conv2d(channels, width, (1, 2 * self.stride), stride=(1, self.stride))
        self.layers = nn.Sequential(*(Layer(width) for _ in range(depth)), Normalise(width))
        self.project = nn.Conv2d(width, self.dimension, 1)

    def forward(self, x: Tensor) -> Tensor:
        half, short = self.stride // 2, -x.shape[2] % self.stride
        x = self.patch(functional.pad(x, (half, half + short)).unsqueeze(2))  # (B, W, 1, T)
        x = self.layers(x + positions(x.shape[1], x.shape[3]).unsqueeze(1))
        return cast(Tensor, self.project(x)).squeeze(2)  # (B, D, T)


def positions(width: int, steps: int) -> Tensor:
    """(W, T): sines and cosines in turn, the fastest first; section 3.5 of Vaswani et al."""
    slowness = 10_000.0 ** (torch.arange(0, width, 2) / width)  # (W / 2)
    turn = torch.arange(steps) / slowness[:, None]  # (W / 2, T)
    return torch.stack([turn.sin(), turn.cos()], dim=1).flatten(0, 1)
