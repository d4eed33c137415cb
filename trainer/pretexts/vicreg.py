"""Agreement without contrast: two views of a window get the same embedding, and no embedding may collapse.

After Bardes, Ponce & LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning" (2022),
equations 1 to 6. No window is pushed away from another: on a machine that does the same all day most of them are alike.

The views are two overlapping parts of the window, a little louder or softer and with a little noise. Nothing stronger: what
the embedding is taught to overlook it cannot give an alarm for.
"""

from typing import TYPE_CHECKING

from torch import Generator, Tensor, nn
from torch.nn import functional

from trainer.augment import jitter, overlapping
from trainer.pretexts.embedding import embed
from trainer.recipe import PretextRecipe

if TYPE_CHECKING:
    from trainer.encoders import Encoder

WIDTH = 64
"""Of the expander. Wide beside the embedding, as in the paper, so that what is decorrelated is more than the linear part."""
COVARIANCE = 1 / 25
"""The paper weighs 25, 25 and 1; divided by 25, so that a weight in the recipe means about the same for every task."""


class Vicreg(nn.Module):
    def __init__(self, channels: int, encoder: "Encoder", recipe: PretextRecipe) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Linear(2 * encoder.dimension, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))

    def loss(self, encoder: "Encoder", x: Tensor, rng: Generator) -> Tensor:
        first, second, _ = overlapping(x, encoder.stride, rng)
        a = self.expand(embed(encoder(jitter(first, rng))))  # (B, W)
        b = self.expand(embed(encoder(jitter(second, rng))))  # (B, W)
        invariance = functional.mse_loss(a, b)
        return invariance + 0.5 * (variance(a) + variance(b)) + COVARIANCE * (covariance(a) + covariance(b))


def variance(z: Tensor) -> Tensor:
    """(B, W) → how far the spread of each value falls short of 1, on average. Equations 1 and 2."""
    # Biased, because a batch of one has no other; the 1e-4 keeps the slope of the root finite where nothing varies.
    return functional.relu(1 - (z.var(0, correction=0) + 1e-4).sqrt()).mean()


def covariance(z: Tensor) -> Tensor:
    """(B, W) → sum of the squared covariances of different values, by W. Equations 3 and 4."""
    centred = z - z.mean(0)
    matrix = centred.T @ centred / max(1, len(z) - 1)  # (W, W)
    return (matrix.square().sum() - matrix.diagonal().square().sum()) / z.shape[1]
