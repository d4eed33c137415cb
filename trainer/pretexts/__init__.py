"""Pretext tasks: what the encoder is taught with, in place of labels. One file each; a new one is named in `PRETEXTS`.

Masked reconstruction is always among them, because its decoder gives the device the residual. The others are added to it by
weight (`combined.py`), and their heads stay behind when the model is exported.
"""

from collections.abc import Callable
from typing import Protocol

from torch import Generator, Tensor

from trainer.encoders import Encoder
from trainer.pretexts.contrast import Contrast
from trainer.pretexts.forecast import Forecast
from trainer.pretexts.injected import Injected
from trainer.pretexts.masked import Masked
from trainer.pretexts.vicreg import Vicreg
from trainer.recipe import PretextRecipe


class Task(Protocol):
    """A `torch.nn.Module` that owns its views, its heads and its loss."""

    def loss(self, encoder: Encoder, x: Tensor, rng: Generator) -> Tensor:
        """Scalar to be made small, from normalised windows x (B, C, N), which stay as they are. Finite for B = 1 too."""


class Pretext(Task, Protocol):
    """What a detector is trained with, and what it takes its residual from."""

    def residual(self, x: Tensor, encoded: Tensor) -> Tensor:
        """x (B, C, N) and its map (B, D, T) → (B, C), ≥ 0: how badly each channel follows what was learned. Is exported."""


PRETEXTS: dict[str, Callable[[int, Encoder, PretextRecipe], Task]] = {
    "masked": Masked,
    "contrast": Contrast,
    "vicreg": Vicreg,
    "forecast": Forecast,
    "injected": Injected,
}
"""Name, as in `pretext.weights` of the recipe → constructor from the number of channels, the encoder and the recipe."""
