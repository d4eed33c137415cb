"""The module that is trained and exported: a window in the units of the sensor in; what the device's scorers get, out."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.encoders import ENCODERS, Encoder
from trainer.encoders.tcn import Tcn
from trainer.pretexts import Pretext
from trainer.pretexts.combined import Combined
from trainer.pretexts.embedding import embed
from trainer.recipe import Recipe
from trainer.windows import WindowArray, batches

CLIP = 10.0
"""Spreads. Beyond it strange is strange; without it one huge value would set the int8 range of everything behind."""
LEVEL_CLIP = 1000.0
"""Spreads. The level never meets int8, so it only has to stay finite."""
MOST_NORMALISED = 65536
"""Windows. More would not move the third digit, and take memory."""
TRACE_STEPS = 32
MAP_STEPS = 16
"""What scorers get of the window and of the map: finer ones cost memory on the device and find nothing more."""


class Spectrum(nn.Module):
    """The energy of each channel in K bands of equal width up to half the sampling rate, as a logarithm, and that of all.

    Welch (1967), "The use of fast Fourier transform for the estimation of power spectra": overlapping segments under a Hann
    window. A bank of fixed filters, so it is one convolution in the graph. With windows of 1024 samples or more there are 32
    bands, below that as many as leave each the mean of some ten segments.
    """

    filters: Tensor
    FLOOR = 1e-3
    """Of the variance of white noise of one spread; what is below is nothing that a sensor can tell."""

    def __init__(self, window: int, *, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.bands = min(32, max(2, window // 32))
        taps = 2 * self.bands
        time = torch.arange(taps, dtype=torch.float64)
        hann = 0.5 - 0.5 * torch.cos(2 * torch.pi * time / taps)
        angle = 2 * torch.pi * torch.arange(1, self.bands + 1, dtype=torch.float64)[:, None] * time / taps
        filters = torch.cat([angle.cos(), angle.sin()]) * hann / hann.square().sum().sqrt()  # (2 K, taps)
        if causal:
            # The lowest of them would hear the level, which a stream cannot take away from a window. Summed up, they hear the
            # steps from sample to sample alone: however far the level is, float32 has all of its digits for those.
            filters = (filters.mean(1, keepdim=True) - filters).cumsum(1)[:, :-1]  # (2 K, taps − 1)
        self.register_buffer("filters", filters[:, None, None, :].float(), persistent=False)

    def forward(self, shape: Tensor, unit: Tensor | None = None) -> Tensor:
        """(B, C, N) → (B, 1 + K, C).

        The causal one is given levels too, in any unit (C, 1), and its last segment ends with the window.
        """
        heard = shape = shape.unsqueeze(1)  # (B, 1, C, N)
        if self.causal:
            shape = shape - shape.mean(3, keepdim=True)
            heard = heard[..., heard.shape[3] % self.bands :]
            heard = heard[..., 1:] - heard[..., :-1]
        found = functional.conv2d(heard, self.filters, stride=(1, self.bands))  # (B, 2 K, C, segments)
        power = found.square().mean(3)
        bands = power[:, : self.bands] + power[:, self.bands :]  # (B, K, C)
        energy = torch.cat([shape.square().mean(3), bands], dim=1)
        if unit is not None:  # only now: multiplied before, a level would lose the last digits of what moves around it
            energy = energy * unit.square().squeeze(1)
        return (energy + self.FLOOR).log()


def averaged(x: Tensor, steps: int) -> Tensor:
    """(…, N) → (…, M), M ≤ `steps`: means of equally many samples; the last sample is repeated where they do not go up."""
    length = x.shape[-1]
    each = -(-length // steps)
    if each == 1:
        return x
    rest = -length % each
    if rest:
        x = torch.cat([x, x[..., -1:].expand(*x.shape[:-1], rest)], dim=-1)
    return x.reshape(*x.shape[:-1], -1, each).mean(-1)


def newest(x: Tensor, steps: int) -> Tensor:
    """Like `averaged`; where they do not go up, the oldest are left out."""
    each = -(-x.shape[-1] // steps)
    return x[..., x.shape[-1] % each :].reshape(*x.shape[:-1], -1, each).mean(-1)


class Detector(nn.Module):
    """Normalisation is inside, so that training and device cannot disagree about it.

    Each window is taken apart: its level, per channel, and the shape around that level. A machine's levels wander by far more
    (load, temperature, the next shift) than they move within a window; in units of that wandering the shape would vanish,
    and eight bits could not hold both.

    With a causal encoder a window is not taken apart, because a window's mean is known only when the window is over, and each
    sample is in many windows: samples are put in units of all their wandering, and everything else follows from those.
    """

    mean: Tensor
    inverse_between: Tensor
    inverse_within: Tensor
    encoder: Encoder
    pretext: Pretext

    def __init__(self, channels: int, recipe: Recipe) -> None:
        super().__init__()
        self.encoder = ENCODERS[recipe.encoder.kind](channels, recipe.encoder)
        self.pretext = Combined(channels, self.encoder, recipe.pretext)
        self.register_buffer("mean", torch.zeros(channels, 1))
        self.register_buffer("inverse_between", torch.ones(channels, 1))
        self.register_buffer("inverse_within", torch.ones(channels, 1))
        self.causal: bool = recipe.encoder.causal
        self.spectrum = Spectrum(recipe.window, causal=self.causal)

    def fit_normalisation(self, windows: WindowArray) -> None:
        """Take mean, spread of the levels and usual spread within a window of each channel from (B, C, N).

        Of more than `MOST_NORMALISED` windows that many serve, evenly taken.
        """
        evenly = np.linspace(0, len(windows) - 1, min(len(windows), MOST_NORMALISED)).astype(np.int64)
        moments = [
            (part.mean(axis=2, dtype=np.float64), part.var(axis=2, dtype=np.float64)) for part in batches(windows, evenly)
        ]
        levels, variance = (np.concatenate(part) for part in zip(*moments, strict=True))  # (B, C) each
        mean, between = levels.mean(axis=0), levels.std(axis=0)
        # The usual window, not the mean one: a single start-up in the recordings would make everything else look still.
        within = np.maximum(np.sqrt(np.median(variance, axis=0)), 0.1 * np.sqrt(variance.mean(axis=0)))
        # A channel that never moved has no spread to be measured in; the rounding of float32 is no movement.
        still = np.hypot(within, between) <= 1e-6 * np.abs(mean)
        within, between = np.maximum(within, 1e-3 * between), np.maximum(between, 1e-3 * within)
        for buffer, value in (
            (self.mean, mean),
            (self.inverse_between, 1 / np.where(still, 1.0, between)),
            (self.inverse_within, 1 / np.where(still, 1.0, within)),
        ):
            buffer.copy_(torch.from_numpy(value)[:, None])

    def normalise(self, window: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, N) → level (B, C) and what the encoder is given (B, C, N): the shape, or, if it is causal, the whole."""
        if self.causal:
            scaled = self.scale(window)
            return (scaled.mean(2, keepdim=True) * self.spreads()[0]).squeeze(2), scaled.clamp(-CLIP, CLIP)
        # Subtract first: folding the mean into a bias would lose a small signal on a large offset to rounding.
        centred = window - self.mean
        level = centred.mean(2, keepdim=True)
        shape = ((centred - level) * self.inverse_within).clamp(-CLIP, CLIP)
        return (level * self.inverse_between).clamp(-LEVEL_CLIP, LEVEL_CLIP).squeeze(2), shape

    def spreads(self) -> tuple[Tensor, Tensor]:
        """(C, 1) each: the whole spread of each channel in spreads of its level, and in spreads within a window."""
        total = (self.inverse_between.pow(-2) + self.inverse_within.pow(-2)).sqrt()
        return total * self.inverse_between, total * self.inverse_within

    def scale(self, window: Tensor) -> Tensor:
        """(B, C, N) in whole spreads of each channel; finite whatever the sensor says."""
        inverse_total = (self.inverse_between.pow(-2) + self.inverse_within.pow(-2)).rsqrt()
        return ((window - self.mean) * inverse_total).clamp(-LEVEL_CLIP, LEVEL_CLIP)

    def forward(self, window: Tensor) -> tuple[Tensor, ...]:
        """(B, C, N) → what `edge.scoring.backends.Outputs` says, in its order."""
        return self.streamable(window) if self.causal else self.whole(window)

    def streamable(self, window: Tensor) -> tuple[Tensor, ...]:
        """Like `whole`, from nothing but sums over samples and over steps of the encoder that know only this window.

        `quantize.stream` makes of it a graph that carries those on from sample to sample.
        """
        encoder = self.encoder
        assert isinstance(encoder, Tcn)
        scaled = self.scale(window)
        level, x = self.normalise(window)
        encoded = encoder.inside(x)  # (B, D, T')
        residual = self.pretext.residual(x[:, :, -encoded.shape[2] * encoder.stride :], encoded)
        spectrum = self.spectrum(scaled, self.spreads()[1])
        return embed(encoded), residual, level, spectrum, newest(scaled, TRACE_STEPS), newest(encoded, MAP_STEPS)

    def whole(self, window: Tensor) -> tuple[Tensor, ...]:
        level, x = self.normalise(window)
        encoded = self.encoder(x)  # (B, D, T)
        inverse_total = (self.inverse_between.pow(-2) + self.inverse_within.pow(-2)).rsqrt()
        trace = averaged((window - self.mean) * inverse_total, TRACE_STEPS).clamp(-LEVEL_CLIP, LEVEL_CLIP)
        residual = self.pretext.residual(x, encoded)
        return embed(encoded), residual, level, self.spectrum(x), trace, averaged(encoded, MAP_STEPS)
