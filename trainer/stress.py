"""How the bundle bears what happens to sensors: each trouble, from none to a lot, put into single windows of known kind.

Three questions to each strength: how often would normal windows count as strange, how well are troubled windows told from
untroubled ones, and are labelled anomalies still told from normal running when both are troubled? And: is the channel that the
trouble was put into the one that gets the blame?
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from edge.bundle import Bundle
from edge.scoring.inject import INJECTIONS
from edge.sensing.recordings import Recording
from edge.signal import Float32, Int64
from trainer.data import cut
from trainer.evaluate import Judged, WindowVerdicts, judge_windows
from trainer.metrics import auroc

LOBES = 8
"""Of the Lanczos kernel that reads between samples: white noise stays as white as it was."""
FASTEST = 0.2
"""Largest skew of a clock, as a share; so much longer than a window is what it is made from."""
MOST = 320
"""Windows of either kind; each is judged at every strength of every trouble."""


@dataclass(frozen=True, slots=True)
class Material:
    """What troubles are made from. M is a little more than N: a fast clock sees more of the signal."""

    normal: Float32
    """(B, C, M) stretches of normal running that the model has not learned from; the window is their middle."""
    anomalous: Float32
    """(A, C, M) stretches in which every row is labelled; maybe none."""
    length: int
    """N"""
    within: Float32
    """(C,) how far each channel usually moves within a window: median of the standard deviations."""
    overall: Float32
    """(C,) standard deviation of each channel over all of the normal running."""
    centre: Float32
    """(C,) median of each channel."""


class Strength(msgspec.Struct, frozen=True, kw_only=True):
    strength: float
    alarm_share: float | None
    """Of normal windows with the trouble in them: p at or below the threshold of the alerts."""
    told_apart: float | None
    """AUROC of normal windows with the trouble against the same without it: 0.5 unnoticed, 1 always noticed."""
    still_found: float | None
    """AUROC of labelled anomalies against normal running, both with the trouble; None without labelled anomalies."""
    scored: float
    """Share of the windows that could be scored at all; the others are reported as gaps."""


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    unit: str
    """Of the strength, in words."""
    points: tuple[Strength, ...]
    """The first is without any trouble."""


class Blame(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of fault, put into one known channel of normal windows."""

    fault: str
    windows: int
    """That were not strange before."""
    noticed: float
    """Share with p at or below the threshold of the alerts."""
    right: float | None
    """Of those noticed: share in which that channel has most of the blame. None when none was noticed."""


Aim = Literal["hide", "raise"]
"""To make anomalous windows look normal, or normal ones alarm."""


Method = Literal["random", "FGSM", "PGD"]


class Attacked(msgspec.Struct, frozen=True, kw_only=True):
    strength: float
    """Largest change of any sample, in spreads: how far each channel usually moves within a window."""
    alarm_share: float
    """With p at or below the threshold of the alerts, after the attack."""
    told_apart: float | None
    """AUROC of the attacked windows against normal ones that nobody touched."""


class Attack(msgspec.Struct, frozen=True, kw_only=True):
    aim: Aim
    method: Method
    model: str
    """`float32` or `int8`."""
    points: tuple[Attacked, ...]


Disturb = Callable[[Float32, Material, float, np.random.Generator], Float32]
"""Stretches (B, C, M), what they are from, a strength, chance → windows (B, C, N). With one seed, a stronger trouble is at the
same place and in the same channel as a weaker one."""


def middle(x: Float32, length: int) -> Float32:
    """(B, C, M) → (B, C, N), a copy."""
    at = (x.shape[2] - length) // 2
    return x[:, :, at : at + length].copy()


def noise(x: Float32, of: Material, strength: float, rng: np.random.Generator) -> Float32:
    y = middle(x, of.length)
    return y + (rng.standard_normal(y.shape) * strength * of.within[:, None]).astype(np.float32)


def drop_out(x: Float32, of: Material, strength: float, rng: np.random.Generator) -> Float32:
    y = middle(x, of.length)
    lost = rng.random((len(y), 1, of.length)) < strength
    return np.where(lost, np.float32(np.nan), y)


def stuck(x: Float32, of: Material, strength: float, rng: np.random.Generator) -> Float32:
    y, rows = middle(x, of.length), np.arange(len(x))
    channel = rng.integers(y.shape[1], size=len(y))
    start = of.length - round(strength * of.length)
    if start < of.length:
        y[rows, channel, start:] = y[rows, channel, start, None]
    return y


def drift(x: Float32, of: Material, strength: float, rng: np.random.Generator) -> Float32:
    y, rows = middle(x, of.length), np.arange(len(x))
    channel, sign = rng.integers(y.shape[1], size=len(y)), rng.choice([-1, 1], size=len(y))
    y[rows, channel] += (sign * strength * of.overall[channel])[:, None].astype(np.float32)
    return y


def spikes(x: Float32, of: Material, strength: float, rng: np.random.Generator) -> Float32:
    y, rows = middle(x, of.length), np.arange(len(x))
    channel, at = rng.integers(y.shape[1], size=len(y)), rng.integers(of.length, size=len(y))
    y[rows, channel, at] += (rng.choice([-1, 1], size=len(y)) * strength * of.within[channel]).astype(np.float32)
    return y


def gain(x: Float32, of: Material, strength: float, rng: np.random.Generator) -> Float32:
    y, rows = middle(x, of.length), np.arange(len(x))
    channel = rng.integers(y.shape[1], size=len(y))
    y[rows, channel] *= np.float32(1 + strength)
    return y


def clock_skew(x: Float32, of: Material, strength: float, rng: np.random.Generator) -> Float32:
    """Read between the samples, around the middle: Lanczos (1956), `LOBES` lobes."""
    if strength == 0:
        return middle(x, of.length)
    centre = (x.shape[2] - of.length) // 2 + (of.length - 1) / 2
    at = centre + (np.arange(of.length) - (of.length - 1) / 2) * (1 + strength)  # (N,)
    taps = np.floor(at).astype(np.int64)[:, None] + np.arange(1 - LOBES, 1 + LOBES)  # (N, 2 LOBES)
    away = at[:, None] - taps
    weight = np.sinc(away) * np.sinc(away / LOBES)
    weight /= weight.sum(axis=1, keepdims=True)
    found: Float32 = np.einsum("bcnk,nk->bcn", x[:, :, taps], weight).astype(np.float32)
    return found


def missing_channel(x: Float32, of: Material, strength: float, rng: np.random.Generator) -> Float32:
    y = middle(x, of.length)
    order = rng.random(y.shape[:2]).argsort(axis=1)  # (B, C)
    gone = order < round(strength)
    return np.where(gone[:, :, None], of.centre[:, None], y)


@dataclass(frozen=True, slots=True)
class Trouble:
    name: str
    unit: str
    strengths: tuple[float, ...]
    disturb: Disturb


def troubles(channels: int) -> tuple[Trouble, ...]:
    """All of them, for so many channels."""
    some = tuple(
        sorted({0.0, *(float(max(1, round(channels * share))) for share in (0.1, 0.25, 0.5, 0.75))} - {float(channels)})
    )
    found = (
        Trouble("noise", "white noise in every channel, ÷ its usual movement in a window", (0, 0.25, 0.5, 1, 2, 4), noise),
        Trouble("drop-out", "share of samples that never arrive", (0, 0.01, 0.03, 0.1, 0.2, 0.4), drop_out),
        Trouble("stuck", "share of the window for which one channel repeats a value", (0, 0.125, 0.25, 0.5, 0.75, 1), stuck),
        Trouble("drift", "one channel off, ÷ its standard deviation over all normal running", (0, 0.5, 1, 2, 4, 8), drift),
        Trouble("spike", "one sample of one channel off, ÷ its usual movement in a window", (0, 2, 5, 10, 20, 50), spikes),
        Trouble("gain", "one channel larger, by this share of its value", (0, 0.01, 0.03, 0.1, 0.3, 1), gain),
        Trouble("clock skew", "samples further apart, by this share", (0, 0.005, 0.02, 0.05, 0.1, FASTEST), clock_skew),
        Trouble("missing channel", "channels that read a flat line at their usual level", some, missing_channel),
    )
    return found if channels > 1 else found[:-1]


def gather(bundle: Bundle, unseen: Sequence[Recording], judged: Sequence[Judged]) -> Material | None:
    """Stretches of normal running from `unseen` and of labelled anomalies from `judged`; None when there is nothing normal."""
    manifest = bundle.manifest
    length = manifest.window
    longer = length + 2 * (LOBES + int(np.ceil(FASTEST * length / 2)))

    def stretches(recording: Recording, hop: int) -> Float32:
        return cut(recording, manifest.rate_hz, longer, hop, manifest.missing).x

    # Where there is little of it, stretches overlap: a rough figure is better than one from a handful of windows.
    plenty = sum(len(recording.time_ns) for recording in unseen) >= MOST * longer
    found = [stretches(recording, length if plenty else max(1, length // 4)) for recording in unseen]
    normal: Float32 = thinned(np.concatenate(found)) if found else np.empty((0, 0, 0), np.float32)
    if not len(normal):
        return None
    anomalous = [
        stretches(one.recording.part(first, last + 1), max(1, length // 2))
        for one in judged
        for first, last in labelled(one.recording, longer)
    ]
    rows = np.concatenate([recording.x for recording in unseen], axis=1)
    within = np.median(normal.std(axis=2, dtype=np.float64), axis=0)
    overall = np.nanstd(rows, axis=1, dtype=np.float64)
    return Material(
        normal,
        thinned(np.concatenate([*anomalous, normal[:0]])),
        length,
        np.where(within > 0, within, np.where(overall > 0, overall, 1)).astype(np.float32),
        np.where(overall > 0, overall, 1).astype(np.float32),
        np.nanmedian(rows, axis=1).astype(np.float32),
    )


def labelled(recording: Recording, least: int) -> list[tuple[int, int]]:
    """First and last rows of the stretches of at least `least` rows that are labelled throughout."""
    from trainer.metrics import episodes

    return [] if recording.label is None else [(a, b) for a, b in episodes(recording.label) if b - a + 1 >= least]


def thinned(x: Float32, most: int = MOST) -> Float32:
    """At most so many, evenly spaced."""
    return x if len(x) <= most else x[np.linspace(0, len(x) - 1, most).astype(np.int64)]


def curve(bundle: Bundle, trouble: Trouble, material: Material, seed: int = 0) -> Curve:
    alpha = bundle.pipeline().policy.p_value
    calm = judge_windows(bundle, middle(material.normal, material.length))
    points = []
    for strength in trouble.strengths:
        rng = np.random.default_rng(seed)
        normal = judge_windows(bundle, trouble.disturb(material.normal, material, strength, rng))
        anomalous = judge_windows(bundle, trouble.disturb(material.anomalous, material, strength, rng))
        scored = np.isfinite(normal.p_value)
        points.append(
            Strength(
                strength=float(strength),
                alarm_share=float((normal.p_value[scored] <= alpha).mean()) if scored.any() else None,
                told_apart=against(normal, calm),
                still_found=against(anomalous, normal),
                scored=float(scored.mean()),
            )
        )
    return Curve(name=trouble.name, unit=trouble.unit, points=tuple(points))


def against(strange: WindowVerdicts, ordinary: WindowVerdicts) -> float | None:
    """AUROC of the windows that could be scored; None when there are none of one kind."""
    a, b = (one.score[~np.isnan(one.score)] for one in (strange, ordinary))
    if not len(a) or not len(b):
        return None
    return auroc(np.concatenate([a, b]), np.repeat([True, False], [len(a), len(b)]))


def blame(bundle: Bundle, material: Material, fault: str, seed: int = 0) -> Blame:
    """Put `fault`, one of `edge.scoring.inject.INJECTIONS`, into one channel of each normal window, the channels in turn.

    Windows that were strange without it are left out: their blame is for something else.
    """
    rng = np.random.default_rng(seed)
    alpha = bundle.pipeline().policy.p_value
    x = middle(material.normal, material.length)
    x = x[judge_windows(bundle, x).p_value > alpha]
    channels: Int64 = np.arange(len(x)) % x.shape[1]
    for window, channel in zip(x, channels, strict=True):
        only = slice(channel, channel + 1)  # what has one channel puts its fault there, whichever it would choose
        window[only] = INJECTIONS[fault](window[only], material.within[only], rng)
    found = judge_windows(bundle, x)
    noticed = found.p_value <= alpha
    return Blame(
        fault=fault,
        windows=len(x),
        noticed=float(noticed.mean()) if len(x) else 0.0,
        right=float((found.shares[noticed].argmax(axis=1) == channels[noticed]).mean()) if noticed.any() else None,
    )
