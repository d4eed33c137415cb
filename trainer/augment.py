"""Views of normalised windows for the pretext tasks: parts of them, slight changes, faults.

Everything takes x (B, C, N) in spreads around 0, as the encoder gets it, and a generator; x stays as it is. The faults are
those of `edge/scoring/inject.py`, many windows at a time, and a foreign tone.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

Injection = Callable[[Tensor, Generator], Tensor]

LIMIT = 10.0
"""Spreads. `trainer.model.CLIP`: a fault must not look like what the encoder can never get."""
VISIBLE = 0.1
"""Spreads. A window that a fault changes by less at its most changed sample is as good as normal."""


def overlapping(x: Tensor, stride: int, rng: Generator) -> tuple[Tensor, Tensor, int]:
    """An earlier and a later part of x, and by how many steps of the encoder the one's end is the other's start.

    They share at least half of the window. Parts start and end where steps do, or their maps would be of different moments.
    """
    steps = x.shape[2] // stride  # whole ones; encoders need not take less than a stride
    overlap = _integer(-(-steps // 2), steps, rng)
    start = _integer(0, steps - overlap, rng)
    earlier = x[:, :, _integer(0, start, rng) * stride : (start + overlap) * stride]
    later = x[:, :, start * stride : _integer(start + overlap, steps, rng) * stride]
    return earlier, later, overlap


def jitter(x: Tensor, rng: Generator) -> Tensor:
    """Each channel up to a tenth louder or softer, and noise of a tenth of a spread."""
    return x * _uniform(0.9, 1.1, x, rng) + 0.1 * torch.randn(x.shape, generator=rng)


def spike(x: Tensor, rng: Generator) -> Tensor:
    """One to three single samples, 5 to 20 spreads off."""
    batch, channels, length = x.shape
    count = torch.randint(1, 4, (batch, 1), generator=rng)
    size = torch.empty(batch, 3).uniform_(5, 20, generator=rng) * (torch.randint(2, (batch, 3), generator=rng) * 2 - 1)
    at = torch.randint(channels * length, (batch, 3), generator=rng)
    return x.flatten(1).scatter_add(1, at, size * (torch.arange(3) < count)).view_as(x)


def level_shift(x: Tensor, rng: Generator) -> Tensor:
    """From some sample on, some channels are 2 to 10 spreads off."""
    after = torch.arange(x.shape[2]) >= torch.randint(x.shape[2], (len(x), 1, 1), generator=rng)  # (B, 1, N)
    return x + _some(x, rng) * _signed(2, 10, x, rng) * after


def trend(x: Tensor, rng: Generator) -> Tensor:
    """Some channels wander off, by 2 to 10 spreads at the end."""
    return x + _some(x, rng) * _signed(2, 10, x, rng) * torch.linspace(0, 1, x.shape[2])


def stuck(x: Tensor, rng: Generator) -> Tensor:
    """From some sample in the first half on, some channels repeat their last value."""
    start = torch.randint(max(1, x.shape[2] // 2), (len(x), 1, 1), generator=rng)
    last = x.gather(2, start.expand(-1, x.shape[1], -1))  # (B, C, 1)
    return torch.where(_some(x, rng) & (torch.arange(x.shape[2]) >= start), last, x)


def noise(x: Tensor, rng: Generator) -> Tensor:
    """Some channels get noise of 1 to 5 spreads on top."""
    return x + _some(x, rng) * _uniform(1, 5, x, rng) * torch.randn(x.shape, generator=rng)


def frequency(x: Tensor, rng: Generator) -> Tensor:
    """Some channels get a tone of 1 to 5 spreads on top, of any frequency from two turns a window to a fifth of the rate."""
    most = max(2.0, x.shape[2] / 5)
    turns = torch.empty(len(x), 1, 1).uniform_(2, most, generator=rng) if most > 2 else torch.full((len(x), 1, 1), 2.0)
    angle = torch.arange(x.shape[2]) / x.shape[2] * turns + torch.rand(len(x), 1, 1, generator=rng)  # (B, 1, N), in turns
    return x + _some(x, rng) * _uniform(1, 5, x, rng) * (2 * torch.pi * angle).sin()


def warp(x: Tensor, rng: Generator) -> Tensor:
    """Everything runs 1.3 to 2 times as fast, or as slow; where the window ends it turns round."""
    last = x.shape[2] - 1
    factor = torch.empty(len(x), 1, 1).uniform_(1.3, 2, generator=rng)
    factor = torch.where(torch.rand(len(x), 1, 1, generator=rng) < 0.5, factor, 1 / factor)
    at = ((torch.arange(last + 1) * factor + last) % (2 * last) - last).abs()  # (B, 1, N), a triangle between 0 and N − 1
    before = at.floor().long().clamp(max=last - 1)
    left, right = (x.gather(2, (before + i).expand_as(x)) for i in (0, 1))
    return left + (right - left) * (at - before)


def swap(x: Tensor, rng: Generator) -> Tensor:
    """Two channels exchange what they do; one channel runs backwards. Each is in its own spreads, so sizes fit."""
    batch, channels, _ = x.shape
    if channels == 1:
        return x.flip(2)
    pair = torch.rand(batch, channels, generator=rng).argsort(1)[:, :2]  # (B, 2)
    source = torch.arange(channels).repeat(batch, 1).scatter(1, pair, pair.flip(1))  # (B, C)
    return x.gather(1, source.unsqueeze(2).expand_as(x))


INJECTIONS: dict[str, Injection] = {
    "spike": spike,
    "level_shift": level_shift,
    "trend": trend,
    "stuck": stuck,
    "noise": noise,
    "frequency": frequency,
    "warp": warp,
    "swap": swap,
}


def inject(x: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
    """One fault in about half of the windows → windows (B, C, N), and of each 0 or 1 + the place of its fault."""
    kind = torch.randint(1, 1 + len(INJECTIONS), (len(x),), generator=rng) * torch.randint(2, (len(x),), generator=rng)
    y = x.clone()
    for place, injection in enumerate(INJECTIONS.values(), 1):
        chosen = kind == place
        if chosen.any():
            y[chosen] = injection(x[chosen], rng)
    # The level leaves a window before the encoder, so that of a fault does too.
    faulty = kind.gt(0)[:, None, None]
    y = torch.where(faulty, (y - y.mean(2, keepdim=True)).clamp(-LIMIT, LIMIT), x)
    return y, kind * ((y - x).abs().amax((1, 2)) >= VISIBLE)


def _integer(low: int, high: int, rng: Generator) -> int:
    """Both ends included."""
    return int(torch.randint(low, high + 1, (), generator=rng))


def _uniform(low: float, high: float, x: Tensor, rng: Generator) -> Tensor:
    return torch.empty(*x.shape[:2], 1).uniform_(low, high, generator=rng)  # (B, C, 1)


def _signed(low: float, high: float, x: Tensor, rng: Generator) -> Tensor:
    return _uniform(low, high, x, rng) * (torch.randint(2, (*x.shape[:2], 1), generator=rng) * 2 - 1)  # (B, C, 1)


def _some(x: Tensor, rng: Generator) -> Tensor:
    """(B, C, 1) bool: one channel to all of them."""
    order = torch.rand(x.shape[:2], generator=rng).argsort(1)
    return (order < torch.randint(1, x.shape[1] + 1, (len(x), 1), generator=rng)).unsqueeze(2)
