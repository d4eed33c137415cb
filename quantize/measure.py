"""What a bundle finds and what it costs, without a label: faults of graded size in normal windows that were held back.

Everything goes through the pipeline of the device, with the model that ships. A figure is for comparing bundles of one search:
faults that are made say how sensitive a detector is, not what it will find on a machine.
"""

import math
import time
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
"""Share of the way from a normal window to the faulty one. At 1, the size of `edge.scoring.inject`, anything is found."""
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
    """Median time of the whole pipeline for one window, on one thread of this machine."""
    bytes: int
    """Of the bundle."""
    precision: str
    """Of the model in it: `int8`, or `float32` where there is none in int8."""

    def cost(self, kind: Cost) -> float:
        """What a search minimises: µs or bytes."""
        return self.latency_us if kind == "latency" else float(self.bytes)


def measure(bundle: Bundle, windows: Float32) -> Figures:
    """`windows` (n, C, N) are normal ones that neither encoder nor scorer was fitted to."""
    windows = windows[np.linspace(0, len(windows) - 1, min(MOST_WINDOWS, len(windows))).astype(np.int64)]
    found = detection(bundle, windows)
    by_kind = {kind: float(np.mean(list(at.values()))) for kind, at in found.items()}
    by_severity = {f"{severity:g}": float(np.mean([at[severity] for at in found.values()])) for severity in SEVERITIES}
    return Figures(
        detection=float(np.mean(list(by_kind.values()))),
        by_kind=by_kind,
        by_severity=by_severity,
        windows=len(windows),
        latency_us=latency_us(bundle, windows),
        bytes=bundle.size,
        precision=bundle.manifest.precision,
    )


def detection(bundle: Bundle, windows: Float32) -> dict[str, dict[float, float]]:
    """Kind of fault → severity → AUROC."""
    spread = usual_spread(windows)
    label = np.repeat([False, True], len(windows))
    normal = scores(bundle, windows)
    found: dict[str, dict[float, float]] = {}
    for number, (kind, fault) in enumerate(INJECTIONS.items()):
        rng = np.random.default_rng([SEED, number])
        faulty = np.stack([fault(x, spread, rng) for x in windows])
        found[kind] = {}
        for severity in SEVERITIES:
            part = (windows + np.float32(severity) * (faulty - windows)).astype(np.float32)
            found[kind][severity] = auroc(np.concatenate([normal, scores(bundle, part)]), label)
    return found


def scores(bundle: Bundle, windows: Float32) -> Float32:
    """(n, C, N) → (n,): laid end to end, the windows are what the pipeline cuts out again."""
    length = bundle.manifest.window
    verdicts = bundle.pipeline(hop=length).judge(_end_to_end(bundle, windows))
    if len(verdicts) != len(windows):
        raise ValueError(f"{len(windows)} windows became {len(verdicts)}; are they finite and {length} samples long?")
    return verdicts.score


def latency_us(bundle: Bundle, windows: Float32) -> float:
    """Median of one window at a time, from samples to verdict."""
    length = bundle.manifest.window
    pipeline: Pipeline = bundle.pipeline(hop=length)
    turns = WARM_UP + ROUNDS
    samples = _end_to_end(bundle, np.concatenate([windows] * math.ceil(turns / len(windows)))[:turns])
    times = np.empty(turns)
    for turn in range(turns):
        at = slice(turn * length, (turn + 1) * length)
        part = Samples(samples.time_ns[at], samples.x[:, at])
        started = time.perf_counter_ns()
        pipeline.judge(part)
        times[turn] = (time.perf_counter_ns() - started) / 1000
    return float(np.median(times[WARM_UP:]))


def _end_to_end(bundle: Bundle, windows: Float32) -> Samples:
    x = np.ascontiguousarray(windows.transpose(1, 0, 2).reshape(windows.shape[1], -1))
    return Samples(np.round(np.arange(x.shape[1]) * (1e9 / bundle.manifest.rate_hz)).astype(np.int64), x)
