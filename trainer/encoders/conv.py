"""The encoder of a convolutional autoencoder: strided convolutions one behind the other, and nothing else.

After Masci, Meier, Cireşan & Schmidhuber, "Stacked Convolutional Auto-Encoders for Hierarchical Feature Extraction" (2011),
with strides in place of pooling. It is a TCN without shortcuts and dilation, and so shows what those are worth.
"""

from typing import cast

from torch import Tensor, nn

from trainer.encoders.tcn import STEM_KERNEL, convolution
from trainer.recipe import EncoderRecipe


class Convolutional(nn.Module):
    """(B, C, N) → (B, D, T) with T = ceil(N / stride). `depth` convolutions behind the first, never fewer than halvings."""

    causal = False

    def __init__(self, channels: int, recipe: EncoderRecipe) -> None:
        super().__init__()
        self.dimension: int = recipe.embedding
        self.stride: int = recipe.stride
        width, depth = recipe.shape
        halvings = recipe.stride.bit_length() - 2  # what is left of the stride behind the first
        layers = [convolution(channels, width, STEM_KERNEL, stride=2), nn.ReLU()]
        for i in range(max(depth, halvings)):
            layers += [convolution(width, width, recipe.kernel, stride=2 if i < halvings else 1), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.project = nn.Conv2d(width, self.dimension, 1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.project(self.layers(x.unsqueeze(2)))).squeeze(2)  # (B, C, 1, N) → (B, D, T)
