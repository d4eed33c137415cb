"""Contrastive prediction: from the first part of a window, tell its own continuation from those of other windows.

After van den Oord, Li & Vinyals, "Representation Learning with Contrastive Predictive Coding" (2018), equations 3 and 4. What
cannot be foretold, noise above all, need not be encoded; a regression of the samples would ask for it.

Unlike there, the encoder looks both ways, so past and future are encoded apart; and what is known of the past is its embedding
and its last step, without a recurrent net to sum it up.
"""

from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from trainer.pretexts.embedding import embed
from trainer.recipe import PretextRecipe

if TYPE_CHECKING:
    from trainer.encoders import Encoder

AHEAD = 4
"""Steps of the encoder that are foretold, each by a projection of its own."""


class Forecast(nn.Module):
    def __init__(self, channels: int, encoder: "Encoder", recipe: PretextRecipe) -> None:
        super().__init__()
        self.foretell = nn.Linear(3 * encoder.dimension, AHEAD * encoder.dimension)

    def loss(self, encoder: "Encoder", x: Tensor, rng: Generator) -> Tensor:
        """x (B, C, N) with N at least two strides; the recipe refuses shorter windows."""
        steps = x.shape[2] // encoder.stride  # whole ones; encoders need not take less than a stride
        # In the second half, because from a short past one can only guess.
        cut = int(torch.randint(steps // 2, steps, (), generator=rng))
        past = encoder(x[:, :, : cut * encoder.stride])  # (B, D, cut)
        future = encoder(x[:, :, cut * encoder.stride :])[:, :, :AHEAD].permute(2, 0, 1)  # (K, B, D)
        known = torch.cat([embed(past), past[:, :, -1]], dim=1)  # (B, 3 D)
        told = self.foretell(known).unflatten(1, (AHEAD, -1)).transpose(0, 1)[: len(future)]  # (K, B, D)
        return info_nce(told, future)


def info_nce(told: Tensor, happened: Tensor) -> Tensor:
    """(K, B, D) twice → how hard it is to find, for each of K steps, what happened among B; log B when all look alike."""
    likeness = told @ happened.transpose(1, 2)  # (K, B, B)
    return functional.cross_entropy(likeness.flatten(0, 1), torch.arange(told.shape[1]).repeat(len(told)))
