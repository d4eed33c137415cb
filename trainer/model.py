"""The module that is trained and exported: a window in the units of the sensor in; embedding, residual and level out."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trainer.encoders import ENCODERS, Encoder
from trainer.pretexts import Pretext
from trainer.pretexts.combined import Combined
from trainer.pretexts.embedding import embed
from trainer.recipes import Recipe

CLIP = 10.0
"""Spreads. Beyond it strange is strange; without it one huge value would set the int8 range of everything behind."""
LEVEL_CLIP = 1000.0
"""Spreads. The level never meets int8, so it only has to stay finite."""


class Detector(nn.Module):
    """Normalisation is inside, so that training and device cannot disagree about it.

    Each window is taken apart: its level, per channel, and the shape around that level. A machine's levels wander by far more
    (load, temperature, the next shift) than they move within a window; in units of that wandering the shape would vanish,
    and eight bits could not hold both.
    """

    mean: Tensor
    inverse_between: Tensor
    inverse_within: Tensor
    encoder: Encoder
    pretext: Pretext

    def __init__(self, channels: int, recipe: Recipe) -> None:
        super().__init__()
        self.encoder = ENCODERS[recipe.encoder.kind](channels, recipe.encoder)
        self.pretext = Combined(channels, self.encoder, recipe.pretext)
        self.register_buffer("mean", torch.zeros(channels, 1))
        self.register_buffer("inverse_between", torch.ones(channels, 1))
        self.register_buffer("inverse_within", torch.ones(channels, 1))

    def fit_normalisation(self, windows: npt.NDArray[np.float32]) -> None:
        """Take mean, spread of the levels and usual spread within a window of each channel from (B, C, N)."""
        levels = windows.mean(axis=2, dtype=np.float64)  # (B, C)
        variance = windows.var(axis=2, dtype=np.float64)  # (B, C)
        mean, between = levels.mean(axis=0), levels.std(axis=0)
        # The usual window, not the mean one: a single start-up in the recordings would make everything else look still.
        within = np.maximum(np.sqrt(np.median(variance, axis=0)), 0.1 * np.sqrt(variance.mean(axis=0)))
        # A channel that never moved has no spread to be measured in; the rounding of float32 is no movement.
        still = np.hypot(within, between) <= 1e-6 * np.abs(mean)
        within, between = np.maximum(within, 1e-3 * between), np.maximum(between, 1e-3 * within)
        for buffer, value in (
            (self.mean, mean),
            (self.inverse_between, 1 / np.where(still, 1.0, between)),
            (self.inverse_within, 1 / np.where(still, 1.0, within)),
        ):
            buffer.copy_(torch.from_numpy(value)[:, None])

    def normalise(self, window: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, N) → level (B, C) and shape (B, C, N)."""
        # Subtract first: folding the mean into a bias would lose a small signal on a large offset to rounding.
        centred = window - self.mean
        level = centred.mean(2, keepdim=True)
        shape = ((centred - level) * self.inverse_within).clamp(-CLIP, CLIP)
        return (level * self.inverse_between).clamp(-LEVEL_CLIP, LEVEL_CLIP).squeeze(2), shape

    def forward(self, window: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, N) → embedding (B, 2 D), residual (B, C), level (B, C)."""
        level, x = self.normalise(window)
        encoded = self.encoder(x)  # (B, D, T)
        return embed(encoded), self.pretext.residual(x, encoded), level
