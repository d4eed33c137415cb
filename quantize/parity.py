"""Does the int8 model say what the float model says?

What counts is the verdict on a window. Each model gets a scorer and a calibrator of its own, fitted on its own outputs, as it
would be shipped; then both judge the same windows, normal ones that were held back and the same with a fault injected.
"""

import time

import msgspec
import numpy as np
import numpy.typing as npt

from edge.errors import GateError
from edge.scoring.alerts import DEFAULT_P_VALUE
from edge.scoring.backends import Backend, open_backend, run_in_slices
from edge.scoring.calibrate import Calibrator
from edge.signal import Bool, Float32, Float64
from quantize.fitting import fit_to
from quantize.ranges import representative

ROUNDS = 300


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """How far int8 may be from float."""

    embedding_error: float = 0.15
    """Of the part of an embedding that tells windows apart."""
    rank_correlation: float = 0.98
    """At least so well do the scores agree on which window is stranger."""
    flips: float = 0.03
    """Share of windows on which the verdict differs."""
    slower: float = 1.05
    """int8 ÷ float, in time for one window."""
    unnoticed_us: float = 10.0
    """… unless it is less than this. A device judges tens of windows a second; the smaller model is worth more than this."""


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured. Times are medians on one thread of this machine, alternating between the two."""

    windows: int
    """Judged by both, half of them with a fault injected."""
    embedding_error: float
    """RMS error of the embedding ÷ its RMS distance from the mean of normal windows, each dimension in its own spread."""
    rank_correlation: float
    """Spearman's, of the scores."""
    flips: float
    """Share of windows on which the verdict differs."""
    p_value: float
    """At or below it a window counted as strange."""
    float_us: float
    int8_us: float
    """Median of one window at a time."""
    float_p99_us: float
    int8_p99_us: float
    float_bytes: int
    int8_bytes: int

    def failures(self, budget: Budget) -> list[str]:
        """What is over budget, one phrase each; empty means int8 may be shipped."""
        found = []
        if not self.embedding_error <= budget.embedding_error:
            found.append(f"embedding error {self.embedding_error:.3f}, {budget.embedding_error:g} is allowed")
        if not self.rank_correlation >= budget.rank_correlation:
            found.append(f"rank correlation {self.rank_correlation:.4f}, {budget.rank_correlation:g} is needed")
        if not self.flips <= budget.flips:
            found.append(f"{self.flips:.1%} of the verdicts differ, {budget.flips:.1%} is allowed")
        if self.int8_us > self.float_us * budget.slower and self.int8_us - self.float_us > budget.unnoticed_us:
            found.append(f"{self.int8_us:.0f} µs a window, float takes {self.float_us:.0f} µs")
        return found

    def require(self, budget: Budget) -> None:
        """Raises `GateError` when something is over budget."""
        if found := self.failures(budget):
            raise GateError(f"the int8 model is not as good as the float one: {'; '.join(found)}")


def compare(
    float_model: bytes,
    int8_model: bytes,
    fit: Float32,
    calibration: Float32,
    scorer: str,
    *,
    seed: int = 1,
    rounds: int = ROUNDS,
) -> Parity:
    """Both models on windows (n, C, N): scorers are fitted on `fit`, calibrators on `calibration`."""
    backends = [open_backend(float_model), open_backend(int8_model)]
    # Other faults than those that the ranges were collected on: another seed, other windows.
    windows = representative(calibration, seed=seed)
    verdicts: list[Bool] = []
    scores: list[Float32] = []
    embeddings: list[Float64] = []
    for backend in backends:
        fitted = fit_to(backend, scorer, fit, calibration)
        calibrator = Calibrator.fit(fitted.held_back)
        outputs = run_in_slices(backend, windows)
        scores.append(fitted.scorer.score(outputs))
        p_value = max(DEFAULT_P_VALUE, calibrator.floor)
        verdicts.append(calibrator.p_value(scores[-1]) <= p_value)
        embeddings.append(outputs.embedding.astype(np.float64))
    normal = embeddings[0][: len(windows) // 2]
    spread = np.maximum(normal.std(axis=0), 1e-6)
    error = np.sqrt((((embeddings[1] - embeddings[0]) / spread) ** 2).mean())
    distance = np.sqrt((((embeddings[0] - normal.mean(axis=0)) / spread) ** 2).mean())
    median_us, p99_us = latency(backends, windows[:1], rounds)
    return Parity(
        windows=len(windows),
        embedding_error=float(error / max(distance, 1e-12)),
        rank_correlation=rank_correlation(scores[0], scores[1]),
        flips=float((verdicts[0] != verdicts[1]).mean()),
        p_value=p_value,
        float_us=median_us[0],
        int8_us=median_us[1],
        float_p99_us=p99_us[0],
        int8_p99_us=p99_us[1],
        float_bytes=len(float_model),
        int8_bytes=len(int8_model),
    )


def rank_correlation(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> float:
    """Spearman's: 1 when both put everything in the same order. Equal values share their mean rank."""
    ra, rb = _ranks(a), _ranks(b)
    ra, rb = ra - ra.mean(), rb - rb.mean()
    norm = float(np.sqrt((ra @ ra) * (rb @ rb)))
    return float(ra @ rb) / norm if norm else 1.0


def _ranks(values: npt.NDArray[np.floating]) -> Float64:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Float64 = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


def latency(backends: list[Backend], window: Float32, rounds: int) -> tuple[list[float], list[float]]:
    """Median and 99 % quantile of each, µs. One after the other in every round: whatever else the machine does hits both."""
    times = np.empty((rounds, len(backends)))
    for turn in range(rounds + 20):  # the first are for caches
        for i, backend in enumerate(backends):
            started = time.perf_counter_ns()
            backend.run(window)
            times[max(0, turn - 20), i] = (time.perf_counter_ns() - started) / 1000
    return np.median(times, axis=0).tolist(), np.quantile(times, 0.99, axis=0).tolist()
