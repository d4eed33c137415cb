"""Hierarchical contrast: a moment is known again in another context, among other moments and among other windows.

After Yue et al., "TS2Vec: Towards Universal Representation of Time Series" (2022): two overlapping parts of each window are
encoded with some samples hidden, and where they overlap their maps must agree. Equations 1 (in time) and 2 (between windows)
at every scale, from single steps up to the window as a whole (algorithm 1).

Unlike there, samples are hidden in the window and not behind a first layer, so that any encoder will do.
"""

from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from trainer.augment import overlapping
from trainer.recipe import PretextRecipe

if TYPE_CHECKING:
    from trainer.encoders import Encoder

HIDDEN = 0.3
"""Share of the samples. Less than the half of the paper: a raw sample that is missing costs more than a latent one."""
MOST_STEPS = 128
"""Compared one by one; a finer map is pooled first, because the cost grows with the square."""


class Contrast(nn.Module):
    def __init__(self, channels: int, encoder: "Encoder", recipe: PretextRecipe) -> None:
        super().__init__()

    def loss(self, encoder: "Encoder", x: Tensor, rng: Generator) -> Tensor:
        first, second, overlap = overlapping(x, encoder.stride, rng)
        a = encoder(hide(first, rng))[:, :, -overlap:]  # (B, D, overlap)
        b = encoder(hide(second, rng))[:, :, :overlap]  # (B, D, overlap)
        return hierarchical(a, b)


def hide(x: Tensor, rng: Generator) -> Tensor:
    """Single samples of (B, C, N), in all channels at once, become 0, the mean of their channel."""
    return x.masked_fill(torch.rand(len(x), 1, x.shape[2], generator=rng) < HIDDEN, 0.0)


def hierarchical(a: Tensor, b: Tensor) -> Tensor:
    """Two maps (B, D, T) of the same moments → mean over the scales of the losses in time and between windows."""
    while a.shape[2] > MOST_STEPS:
        a, b = halve(a), halve(b)
    scales = [dual(a, b)]
    while a.shape[2] > 1:
        a, b = halve(a), halve(b)
        scales.append(dual(a, b))
    return torch.stack(scales).mean()


def dual(a: Tensor, b: Tensor) -> Tensor:
    in_time = among(a.transpose(1, 2), b.transpose(1, 2))  # B groups of T
    between = among(a.permute(2, 0, 1), b.permute(2, 0, 1))  # T groups of B
    return 0.5 * (in_time + between)


def among(a: Tensor, b: Tensor) -> Tensor:
    """Two views (G, M, D) of M things in each of G groups: how hard it is to tell which of the 2 M − 1 others is the same.

    log(2 M − 1) when all look alike; 0 when there is but one thing, which cannot be mistaken.
    """
    groups, things, _ = a.shape
    both = torch.cat([a, b], dim=1)  # (G, 2 M, D)
    likeness = both @ both.transpose(1, 2)  # (G, 2 M, 2 M)
    likeness = likeness.masked_fill(torch.eye(2 * things, dtype=torch.bool), -torch.inf)  # with itself
    same = torch.arange(2 * things).roll(things)
    return functional.cross_entropy(likeness.flatten(0, 1), same.repeat(groups))


def halve(x: Tensor) -> Tensor:
    return functional.max_pool1d(x, 2)  # (B, D, T // 2)
