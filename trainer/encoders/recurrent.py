"""The encoders of recurrent autoencoders: a strided stem, then LSTM or GRU layers that read the window from its start.

After Malhotra et al., "LSTM-based Encoder-Decoder for Multi-sensor Anomaly Detection" (2016, EncDec-AD); the GRU is Cho et al.,
"Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation" (2014).

Unlike there, the decoder is the pretext's, so what is handed over is the state at every step and not only the last one; and
convolutions shorten the window first, because a recurrent net takes its steps one after the other and each one costs.
"""

from typing import cast

from torch import Tensor, nn

from trainer.encoders.tcn import STEM_KERNEL, convolution
from trainer.recipe import EncoderRecipe

HALVING_KERNEL = 3


class Recurrent(nn.Module):
    """(B, C, N) → (B, D, T) with T = ceil(N / stride). `depth` layers, each of `width` values; a step knows only its past."""

    causal = False

    def __init__(self, channels: int, recipe: EncoderRecipe) -> None:
        super().__init__()
        self.dimension: int = recipe.embedding
        self.stride: int = recipe.stride
        width, depth = recipe.shape
        layers = [convolution(channels, width, STEM_KERNEL, stride=2), nn.ReLU()]
        for _ in range(recipe.stride.bit_length() - 2):
            layers += [convolution(width, width, HALVING_KERNEL, stride=2), nn.ReLU()]
        self.stem = nn.Sequential(*layers)
        kind = {"lstm": nn.LSTM, "gru": nn.GRU}[recipe.kind]
        self.recurrent = kind(width, width, depth, batch_first=True)
        self.project = nn.Conv2d(width, self.dimension, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.unsqueeze(2)).squeeze(2)  # (B, W, T)
        y = self.recurrent(x.transpose(1, 2))[0].transpose(1, 2)  # (B, W, T)
        return cast(Tensor, self.project(y.unsqueeze(2))).squeeze(2)  # (B, D, T)
