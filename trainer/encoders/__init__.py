"""Encoders: (B, C, N) normalised windows → (B, D, T) maps. One file each; a new one is named in `ENCODERS`."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from trainer.encoders.conv import Convolutional
from trainer.encoders.random import Random
from trainer.encoders.recurrent import Recurrent
from trainer.encoders.tcn import Tcn
from trainer.encoders.transformer import PatchTransformer
from trainer.recipe import EncoderRecipe


class Encoder(Protocol):
    """A `torch.nn.Module`. What is to stay float in int8 is a submodule whose name is `project`.

    In evaluation mode the map of a window depends on that window alone, whatever else is in the batch.
    """

    dimension: int
    """D."""
    stride: int
    """T = ceil(N / stride)."""
    causal: bool
    """A step depends on no sample behind its own last one, and the last step's is the window's; `trainer.encoders.tcn`."""

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, N) → (B, D, T), for every N that is at least one stride."""


ENCODERS: dict[str, Callable[[int, EncoderRecipe], Encoder]] = {
    "tcn": Tcn,
    "transformer": PatchTransformer,
    "lstm": Recurrent,
    "gru": Recurrent,
    "conv": Convolutional,
    "random": Random,
}
"""kind → constructor from the number of channels and the recipe."""
