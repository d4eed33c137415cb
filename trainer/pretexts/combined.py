"""Several pretext tasks at once: the sum of their losses, each by its weight in the recipe.

Masked reconstruction stays what it is, down to the names of its weights, so that a run without the others is the same to the
bit as before there were any. A task without weight is not built.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.pretexts import PRETEXTS, Task
from trainer.pretexts.masked import Masked
from trainer.recipe import PretextRecipe

if TYPE_CHECKING:
    from trainer.encoders import Encoder


class Combined(Masked):
    def __init__(self, channels: int, encoder: "Encoder", recipe: PretextRecipe) -> None:
        super().__init__(channels, encoder, recipe)
        # Behind the decoder: the others draw their first weights after it, and change none of its own.
        names = [name for name in recipe.tasks if name != "masked"]
        self.others = nn.ModuleDict({name: cast(nn.Module, PRETEXTS[name](channels, encoder, recipe)) for name in names})

    def loss(self, encoder: "Encoder", x: Tensor, rng: Generator) -> Tensor:
        weights = self.recipe.tasks
        total = weights["masked"] * super().loss(encoder, x, rng)
        for name, task in self.others.items():
            with statistics_kept(encoder):
                total = total + weights[name] * cast(Task, task).loss(encoder, x, rng)
        return total


@contextmanager
def statistics_kept(encoder: "Encoder") -> Iterator[None]:
    """Within it normalisation layers use the batch that they see, but do not remember it.

    The other tasks show the encoder faults and fragments. Remembered, their statistics would be what the device normalises
    ordinary windows with, and the decoder would meet a map of a size that it was not trained on.
    """
    layers = [layer for layer in cast(nn.Module, encoder).modules() if isinstance(layer, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
