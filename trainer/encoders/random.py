"""The control: a TCN whose weights stay as they were drawn.

What a detector with it finds is owed to the architecture, the normalisation and the scorer, not to learning. Random features go
far, see Saxe et al., "On Random Weights and Unsupervised Feature Learning" (2011); a trained encoder has to be better than this
one before its training is called useful.
"""

from typing import Self

from trainer.encoders.tcn import Tcn
from trainer.recipe import EncoderRecipe


class Random(Tcn):
    """The very weights that a TCN of the same recipe and seed starts from. The decoder beside it is trained as ever."""

    def __init__(self, channels: int, recipe: EncoderRecipe) -> None:
        super().__init__(channels, recipe)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        # The statistics of its normalisation layers stay as well: remembering them would be learning too.
        return super().train(False)
