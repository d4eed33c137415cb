"""What a bundle finds and what it costs, without a label: faults of graded size in normal windows that were held back.

Everything goes through the pipeline of the device, with the model that ships. A figure is for comparing bundles of one search:
faults that are made say how sensitive a detector is, not what it will find on a machine.
"""

import math
import time
from collections.abc import Iterator
from typing import Literal

import msgspec
import numpy as np

from edge.bundle import Bundle
from edge.pipeline import Pipeline
from edge.scoring.inject import INJECTIONS, usual_spread
from edge.signal import Float32, Samples
from trainer.metrics import auroc

Cost = Literal["latency", "bytes"]

SEVERITIES = (0.1, 0.25, 0.6)
"""Share of the way from a normal window to the faulty one. At 1, the size of `edge.scoring.inject`, spikes, shifts, trends and
noise are found by every recipe, and there is nothing to choose by."""
PIECE = 16
"""Samples within which the usual spread is taken, whatever the window: otherwise a longer one would get larger faults."""
MOST_WINDOWS = 256
SEED = 3
"""Other faults than those that int8 ranges, golden windows and parity see."""
ROUNDS, WARM_UP = 300, 20


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    detection: float
    """Mean of `by_kind`: what a search maximises."""
    by_kind: dict[str, float]
    """Per kind of fault: AUROC of normal windows against the same with the fault in them, mean over the severities. 0.5 is
    chance."""
    by_severity: dict[str, float]
    """The same, mean over the kinds."""
    windows: int
    """Normal windows that this was measured on."""
    latency_us: float
    """Median time of the whole pipeline for one window, on one thread of this machine; the least of several, spread in time."""
    bytes: int
    """Of the bundle."""
    precision: str
    """Of the model in it: `int8`, or `float32` where there is none in int8."""

    def cost(self, kind: Cost) -> float:
        """What a search minimises: µs or bytes."""
        return self.latency_us if kind == "latency" else float(self.bytes)


def measure(bundle: Bundle, windows: Float32) -> Figures:
    """`windows` (n, C, N) are normal ones that neither encoder nor scorer was fitted to."""
    windows = sample(windows)
    normal = scores(bundle, windows)
    label = np.repeat([False, True], len(windows))
    found: dict[str, dict[float, float]] = {}
    medians_us: list[float] = []
    for kind, parts in faults(windows):
        found[kind] = {s: auroc(np.concatenate([normal, scores(bundle, part)]), label) for s, part in parts.items()}
        medians_us.append(latency_us(bundle, windows))
    by_kind = {kind: float(np.mean(list(at.values()))) for kind, at in found.items()}
    return Figures(
        detection=float(np.mean(list(by_kind.values()))),
        by_kind=by_kind,
        by_severity={f"{s:g}": float(np.mean([at[s] for at in found.values()])) for s in SEVERITIES},
        windows=len(windows),
        # Whatever else the machine does only ever adds; it halves the spread that a single median has.
        latency_us=min(medians_us),
        bytes=bundle.size,
        precision=bundle.manifest.precision,
    )


def sample(windows: Float32) -> Float32:
    """At most `MOST_WINDOWS` of them, evenly."""
    return windows[np.linspace(0, len(windows) - 1, min(MOST_WINDOWS, len(windows))).astype(np.int64)]


def faults(windows: Float32) -> Iterator[tuple[str, dict[float, Float32]]]:
    """Each kind of fault, and the windows (n, C, N) with it in them by severity; the same ones every time."""
    spread = spread_of(windows)
    for number, (kind, fault) in enumerate(INJECTIONS.items()):
        rng = np.random.default_rng([SEED, number])
        faulty = np.stack([fault(x, spread, rng) for x in windows])
        yield kind, {s: (windows + np.float32(s) * (faulty - windows)).astype(np.float32) for s in SEVERITIES}


def spread_of(windows: Float32) -> Float32:
    """(n, C, N) → (C,): how far each channel usually moves within `PIECE` samples, or within a window that is shorter."""
    count, channels, length = windows.shape
    size = min(PIECE, length)
    pieces = windows[:, :, : length // size * size].reshape(count, channels, -1, size)
    return usual_spread(pieces.transpose(0, 2, 1, 3).reshape(-1, channels, size))


def scores(bundle: Bundle, windows: Float32) -> Float32:
    """(n, C, N) → (n,): the windows are what the pipeline cuts out again.

    Each lies behind a gap, so that none is averaged with those before it, which have nothing to do with it.
    """
    manifest = bundle.manifest
    length, missing = manifest.window, manifest.missing
    gap = 2 * length + missing.max_fill + math.ceil(missing.jitter_s * manifest.rate_hz) + 1
    verdicts = bundle.pipeline(hop=length).judge(_in_a_row(bundle, windows, gap))
    if len(verdicts) != len(windows):
        raise ValueError(f"{len(windows)} windows became {len(verdicts)}; are they finite and {length} samples long?")
    return verdicts.score


def latency_us(bundle: Bundle, windows: Float32) -> float:
    """Median of one window at a time, from samples to verdict."""
    length = bundle.manifest.window
    pipeline: Pipeline = bundle.pipeline(hop=length)
    turns = WARM_UP + ROUNDS
    samples = _in_a_row(bundle, np.concatenate([windows] * math.ceil(turns / len(windows)))[:turns])
    times = np.empty(turns)
    for turn in range(turns):
        at = slice(turn * length, (turn + 1) * length)
        part = Samples(samples.time_ns[at], samples.x[:, at])
        started = time.perf_counter_ns()
        pipeline.judge(part)
        times[turn] = (time.perf_counter_ns() - started) / 1000
    return float(np.median(times[WARM_UP:]))


def _in_a_row(bundle: Bundle, windows: Float32, gap: int = 0) -> Samples:
    """One after the other, `gap` samples apart."""
    count, channels, length = windows.shape
    x = np.ascontiguousarray(windows.transpose(1, 0, 2).reshape(channels, -1))
    at = np.arange(count)[:, None] * (length + gap) + np.arange(length)
    return Samples(np.round(at.ravel() * (1e9 / bundle.manifest.rate_hz)).astype(np.int64), x)
