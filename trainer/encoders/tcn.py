"""A temporal convolutional network that is small, folds and quantizes well.

Dilated residual blocks after Bai, Kolter & Koltun, "An Empirical Evaluation of Generic Convolutional and Recurrent Networks
for Sequence Modeling" (2018), with one convolution a block. By default not causal: a window is judged when it is complete, so
every step may look both ways. The causal one does without padding inside: a step is the same wherever it stands, in a window or
in a stream, as soon as all samples that it depends on are there (`inside`).

Its convolutions are whole, or depthwise-separable (Howard et al., "MobileNets", 2017) when the recipe says so; which is better
depends on the processor, see docs/adr/0004-convolutions.md.
"""

from functools import partial
from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from trainer.recipe import STEM_KERNEL, EncoderRecipe

__all__ = ["STEM_KERNEL", "Block", "Tcn", "convolution"]


def convolution(
    inside: int, outside: int, kernel: int, *, stride: int = 1, dilation: int = 1, separable: bool = False, causal: bool = False
) -> nn.Sequential:
    """A convolution in time with "same" padding, or none if it is causal, and its normalisation, folded into it on export.

    Written in two dimensions with kernel (1, k): ONNX Runtime has its fast blocked path for four-dimensional tensors only,
    and is 2.1 to 2.3 times faster for the same numbers.
    """
    along_time = partial(
        nn.Conv2d,
        kernel_size=(1, kernel),
        stride=(1, stride),
        padding=(0, 0 if causal else dilation * (kernel - 1) // 2),
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

    def __init__(self, width: int, kernel: int, *, stride: int, dilation: int, separable: bool, causal: bool) -> None:
        super().__init__()
        self.convolution = convolution(
            width, width, kernel, stride=stride, dilation=dilation, separable=separable, causal=causal
        )
        self.shortcut, self.causal = stride == 1, causal
        # Last, so that every tensor between blocks is one-sided, which is what unsigned int8 activations want.
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolution(x)
        if self.causal:
            # It gives fewer steps than it takes; what goes past it is the newest of what it saw.
            x = x[..., -y.shape[3] :]
        return cast(Tensor, self.relu(x + y if self.shortcut else y))


class Tcn(nn.Module):
    """(B, C, N) → (B, D, T) with T = ceil(N / stride)."""

    def __init__(self, channels: int, recipe: EncoderRecipe) -> None:
        super().__init__()
        self.dimension: int = recipe.embedding
        self.stride: int = recipe.stride
        self.causal: bool = recipe.causal
        self.reach: int = recipe.reach
        width, kernel, causal = recipe.shape[0], recipe.kernel, recipe.causal
        self.stem = nn.Sequential(convolution(channels, width, STEM_KERNEL, stride=2, causal=causal), nn.ReLU())
        blocks = [
            Block(width, kernel, stride=stride, dilation=dilation, separable=recipe.separable, causal=causal)
            for stride, dilation in recipe.places
        ]
        self.blocks = nn.Sequential(*blocks)
        self.project = nn.Conv2d(width, self.dimension, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.causal:
            # All of the past that a window does not show is taken for the mean, and the last step ends with the window.
            steps = -(-x.shape[2] // self.stride)
            x = functional.pad(x, (self.reach + (steps - 1) * self.stride - x.shape[2], 0))
        return self._through(x)

    def inside(self, x: Tensor) -> Tensor:
        """(B, C, N) → (B, D, T'): of a causal one, the last steps, T' = (N − reach) // stride + 1, which no padding touches."""
        return self._through(x[:, :, (x.shape[2] - self.reach) % self.stride :])

    def _through(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(2)  # (B, C, 1, N)
        x = self.blocks(self.stem(x))  # (B, W, 1, T)
        return cast(Tensor, self.project(x)).squeeze(2)  # (B, D, T)
