"""A temporal convolutional network that is small, folds and quantizes well.

Dilated residual blocks after Bai, Kolter & Koltun, "An Empirical Evaluation of Generic Convolutional and Recurrent Networks
for Sequence Modeling" (2018), with one convolution a block. Not causal: a window is judged when it is complete, so every step
may look both ways.

Its convolutions are whole, or depthwise-separable (Howard et al., "MobileNets", 2017) when the recipe says so; which is better
depends on the processor, see docs/adr/0004-convolutions.md.
"""

from functools import partial
from typing import cast

from torch import Tensor, nn

from trainer.recipe import EncoderRecipe

STEM_KERNEL = 5


def convolution(
    inside: int, outside: int, kernel: int, *, stride: int = 1, dilation: int = 1, separable: bool = False
) -> nn.Sequential:
    """A convolution in time with "same" padding, and its normalisation, which is folded into it on export.

    Written in two dimensions with kernel (1, k): ONNX Runtime has its fast blocked path for four-dimensional tensors only,
    and is 2.1 to 2.3 times faster for the same numbers.
    """
    along_time = partial(
        nn.Conv2d,
        kernel_size=(1, kernel),
        stride=(1, stride),
        padding=(0, dilation * (kernel - 1) // 2),
        dilation=(1, dilation),
        bias=False,
    )
    if not separable:
        return nn.Sequential(along_time(inside, outside), nn.BatchNorm2d(outside))
    return nn.Sequential(
        along_time(inside, inside, groups=inside),
        nn.BatchNorm2d(inside),
        nn.Conv2d(inside, outside, 1, bias=False),
        nn.BatchNorm2d(outside),
    )


class Block(nn.Module):
    """relu(x + convolution(x)); without the shortcut where the length changes."""

    def __init__(self, width: int, kernel: int, *, stride: int, dilation: int, separable: bool) -> None:
        super().__init__()
        self.convolution = convolution(width, width, kernel, stride=stride, dilation=dilation, separable=separable)
        self.shortcut = stride == 1
        # Last, so that every tensor between blocks is one-sided, which is what unsigned int8 activations want.
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolution(x)
        return cast(Tensor, self.relu(x + y if self.shortcut else y))


class Tcn(nn.Module):
    """(B, C, N) → (B, D, T) with T = ceil(N / stride)."""

    def __init__(self, channels: int, recipe: EncoderRecipe) -> None:
        super().__init__()
        self.dimension: int = recipe.embedding
        self.stride: int = recipe.stride
        (width, depth), kernel = recipe.shape, recipe.kernel
        self.stem = nn.Sequential(convolution(channels, width, STEM_KERNEL, stride=2), nn.ReLU())
        halvings = recipe.stride.bit_length() - 2  # what is left of the stride behind the stem
        places = [(2, 1)] * halvings + [(1, 2**i) for i in range(max(0, depth - halvings))]
        blocks = [
            Block(width, kernel, stride=stride, dilation=dilation, separable=recipe.separable) for stride, dilation in places
        ]
        self.blocks = nn.Sequential(*blocks)
        self.project = nn.Conv2d(width, self.dimension, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(2)  # (B, C, 1, N)
        x = self.blocks(self.stem(x))  # (B, W, 1, T)
        return cast(Tensor, self.project(x)).squeeze(2)  # (B, D, T)
