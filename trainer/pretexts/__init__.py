"""Pretext tasks: what the encoder is taught with, in place of labels. One file each; a new one is named in `PRETEXTS`."""

from collections.abc import Callable
from typing import Protocol

from torch import Generator, Tensor

from trainer.encoders import Encoder
from trainer.pretexts.masked import Masked
from trainer.recipes import PretextRecipe


class Pretext(Protocol):
    """A `torch.nn.Module` that owns its views, its heads and its loss."""

    def loss(self, encoder: Encoder, x: Tensor, rng: Generator) -> Tensor:
        """Scalar to be made small, from normalised windows x (B, C, N), which stay as they are."""

    def residual(self, x: Tensor, encoded: Tensor) -> Tensor:
        """x (B, C, N) and its map (B, D, T) → (B, C), ≥ 0: how badly each channel follows what was learned. Is exported."""


PRETEXTS: dict[str, Callable[[int, Encoder, PretextRecipe], Masked]] = {"masked": Masked}
"""kind → constructor from the number of channels, the encoder and the recipe."""
