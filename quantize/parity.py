"""Does the model that ships say what the trained one says, in int8 as in float, whatever runs it?

What counts is the verdict on a window. `compare` lays an int8 model beside its float one: each gets a scorer and a calibrator
of its own, fitted on its own outputs, as it would be shipped; then both judge the same windows, normal ones that were held back
and the same with a fault injected. `matrix` lays every model and runtime beside the module that was trained, over three groups
of windows and with two scorers: the bundle's own, and one that hears the encoder too, which the bundle's own may not.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from edge.errors import GateError
from edge.scoring.backends import Backend, Outputs, open_backend, run_in_slices
from edge.scoring.calibrate import Calibrator
from edge.scoring.ensemble import Ensemble
from edge.scoring.inject import noise, usual_spread
from edge.signal import Bool, Float32, Float64
from quantize.fitting import fit_to, thinned
from quantize.ranges import representative
from trainer.recipe import Budget

ROUNDS = 300
LEARNED = "mahalanobis(features)"
"""A scorer that hears what the encoder learned. A recipe's default hears nothing of it, and would pass an encoder of zeros."""


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
            # Without the figures: what is said here goes into the bundle, and the same run is to give the same bytes.
            found.append("it is slower than float on the machine that built it")
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
        p_value = calibrator.usual_p_value
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


Run = Callable[[Float32], Outputs]
"""Windows (B, C, N), any number of them."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """A model under a runtime."""

    runtime: str
    precision: str
    size: int
    """Bytes of the model."""
    run: Run
    head: str | None = None
    """`runtime precision` of the one whose scorer and calibrator it is judged with, as when both are in one bundle; `None`: its
    own."""

    @property
    def name(self) -> str:
        return f"{self.runtime} {self.precision}"


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One contestant on one group of windows. By scorer, where there are several figures."""

    embedding_error: float
    """RMS error of the embedding ÷ its RMS distance from the mean of normal windows, each dimension in its own spread."""
    rank_correlation: dict[str, float]
    """Spearman's, of the scores. Of normal windows alone it is the lowest: they differ by little."""
    flips: dict[str, float]
    """Share of windows on which the verdict differs."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One contestant."""

    runtime: str
    precision: str
    bytes: int
    groups: dict[str, Cell]
    embedding_error: float
    """On normal and anomalous windows together."""
    rank_correlation: dict[str, float]
    """The same."""
    auroc_loss: dict[str, float]
    """How much worse it tells injected faults from normal windows; below 0 when it does better."""

    @property
    def name(self) -> str:
        return f"{self.runtime} {self.precision}"

    def failures(self, budget: Budget) -> list[str]:
        """What is over budget, one phrase each."""
        found = []
        if not self.embedding_error <= budget.embedding_error:
            found.append(f"embedding error {self.embedding_error:.3f}, {budget.embedding_error:g} is allowed")
        for scorer, value in self.rank_correlation.items():
            if not value >= budget.rank_correlation:
                found.append(f"rank correlation {value:.4f} with {scorer}, {budget.rank_correlation:g} is needed")
        for scorer, value in self.auroc_loss.items():
            if not value <= budget.auroc_loss:
                found.append(f"AUROC of injected faults {value:.4f} lower with {scorer}, {budget.auroc_loss:g} is allowed")
        for group, cell in self.groups.items():
            for scorer, value in cell.flips.items():
                if not value <= budget.flips:
                    found.append(
                        f"{value:.1%} of the verdicts on {group} windows differ with {scorer}, {budget.flips:.1%} is allowed"
                    )
        return [f"{self.name}: {failure}" for failure in found]


class Matrix(msgspec.Struct, frozen=True, kw_only=True):
    windows: dict[str, int]
    """By group."""
    rows: tuple[Row, ...]
    auroc: dict[str, float]
    """How well what was trained tells injected faults from normal windows, by scorer."""

    def failures(self, budget: Budget, precision: str | None = None) -> list[str]:
        """What is over budget in this precision, or in any."""
        return [failure for row in self.rows if precision in (None, row.precision) for failure in row.failures(budget)]

    def lines(self) -> list[str]:
        """For a person: one line a contestant, the worst of its figures."""
        return [
            f"{row.name:22} {row.bytes / 1000:4.0f} kB, embedding error {row.embedding_error:.3f}, "
            f"rank correlation {min(row.rank_correlation.values()):.4f}, "
            f"flips {max(value for cell in row.groups.values() for value in cell.flips.values()):.1%}, "
            f"AUROC loss {max(row.auroc_loss.values()):.4f}"
            for row in self.rows
        ]


Heads = dict[str, tuple[Ensemble, Calibrator]]
"""By scorer."""


@dataclass(frozen=True, slots=True)
class Laid:
    """What every model of one comparison is given."""

    scorers: tuple[str, ...]
    fit: Float32
    calibration: Float32
    groups: dict[str, Float32]

    @classmethod
    def out(cls, fit: Float32, calibration: Float32, scorer: str, seed: int) -> "Laid":
        fit, calibration = thinned(fit), thinned(calibration)
        return cls(tuple(dict.fromkeys((scorer, LEARNED))), fit, calibration, windows_of(calibration, seed=seed))

    def run(self, model: Run) -> list[Outputs]:
        """Of the windows that were learned from, of those held back, and of each group."""
        parts = (self.fit, self.calibration, *self.groups.values())
        ends = np.cumsum([len(part) for part in parts])
        outputs = model(np.concatenate(parts))
        return [outputs.part(slice(end - size, end)) for end, size in zip(ends, np.diff(ends, prepend=0), strict=True)]

    def heads(self, outputs: list[Outputs]) -> Heads:
        fitted = {name: Ensemble.fit(name, *outputs[:2]) for name in self.scorers}
        return {name: (ensemble, Calibrator.fit(ensemble.score(outputs[1]))) for name, ensemble in fitted.items()}


def judged(outputs: list[Outputs], heads: Heads) -> dict[str, list[Float32]]:
    """Scores by scorer, of each group."""
    return {name: [ensemble.score(part) for part in outputs[2:]] for name, (ensemble, _) in heads.items()}


class Scores(NamedTuple):
    """Of the windows that `matrix` judges, by one scorer, with a head of the model's own."""

    groups: dict[str, Float32]
    threshold: float
    """From it on a window counts as strange."""


def scores(model: Run, fit: Float32, calibration: Float32, scorer: str, *, seed: int = 1) -> dict[str, Scores]:
    """By scorer: the bundle's own, and the one that hears the encoder."""
    laid = Laid.out(fit, calibration, scorer, seed)
    outputs = laid.run(model)
    heads = laid.heads(outputs)
    found = judged(outputs, heads)
    limits = {name: calibrator.score_at(calibrator.usual_p_value) for name, (_, calibrator) in heads.items()}
    return {name: Scores(dict(zip(laid.groups, found[name], strict=True)), limits[name]) for name in laid.scorers}


def matrix(
    trained: Run, contestants: Sequence[Contestant], fit: Float32, calibration: Float32, scorer: str, *, seed: int = 1
) -> Matrix:
    """Each contestant beside what was `trained`; scorers are fitted on `fit`, calibrators on `calibration`, (n, C, N) both."""
    laid = Laid.out(fit, calibration, scorer, seed)
    groups, scorers, run, heads = laid.groups, laid.scorers, laid.run, laid.heads

    def verdicts(scores: Float32, head: tuple[Ensemble, Calibrator]) -> Bool:
        return head[1].p_value(scores) <= head[1].usual_p_value

    wanted = run(trained)
    wanted_heads = heads(wanted)
    wanted_scores = judged(wanted, wanted_heads)
    found_heads: dict[str, Heads] = {}
    rows = []
    for contestant in contestants:
        outputs = run(contestant.run)
        head = found_heads[contestant.name] = found_heads[contestant.head] if contestant.head else heads(outputs)
        own = judged(outputs, head)
        cells = {}
        for at, group in enumerate(groups):
            cells[group] = Cell(
                embedding_error=_embedding_error(wanted[2 + at : 3 + at], outputs[2 + at : 3 + at], wanted[2]),
                rank_correlation={name: rank_correlation(wanted_scores[name][at], own[name][at]) for name in scorers},
                flips={
                    name: float(
                        (verdicts(wanted_scores[name][at], wanted_heads[name]) != verdicts(own[name][at], head[name])).mean()
                    )
                    for name in scorers
                },
            )
        rows.append(
            Row(
                runtime=contestant.runtime,
                precision=contestant.precision,
                bytes=contestant.size,
                groups=cells,
                embedding_error=_embedding_error(wanted[2:4], outputs[2:4], wanted[2]),
                rank_correlation={
                    name: rank_correlation(np.concatenate(wanted_scores[name][:2]), np.concatenate(own[name][:2]))
                    for name in scorers
                },
                auroc_loss={name: told_apart(*wanted_scores[name][:2]) - told_apart(*own[name][:2]) for name in scorers},
            )
        )
    return Matrix(
        windows={group: len(x) for group, x in groups.items()},
        rows=tuple(rows),
        auroc={name: told_apart(*wanted_scores[name][:2]) for name in scorers},
    )


def windows_of(calibration: Float32, seed: int = 1) -> dict[str, Float32]:
    """The three groups, of equal size: normal, with a fault, and with what a sensor in trouble gives."""
    # Other faults than those that the ranges were collected on: another seed, other windows.
    both = representative(calibration, seed=seed)
    normal, anomalous = both[: len(both) // 2], both[len(both) // 2 :]
    return {"normal": normal, "anomalous": anomalous, "stress": stressed(normal, np.random.default_rng(seed))}


def stressed(windows: Float32, rng: np.random.Generator) -> Float32:
    """(B, C, N) → in trouble, the kinds in turn: noise, a reading of 0 for a while, other gain, a spike of 10⁶ spreads."""
    spread = usual_spread(windows)
    found = windows.copy()
    for i, x in enumerate(found):
        channel, start = rng.integers(len(x)), rng.integers(x.shape[1])
        if i % 4 == 0:
            found[i] = noise(x, 3 * spread, rng)
        elif i % 4 == 1:
            x[channel, start:] = 0.0
        elif i % 4 == 2:
            x[channel] *= rng.uniform(0.5, 2)
        else:
            x[channel, start] += 1e6 * spread[channel]
    return found


def told_apart(normal: Float32, strange: Float32) -> float:
    """AUROC: the chance that one of the strange scores higher than one of the normal, by Mann and Whitney's U."""
    ranks = _ranks(np.concatenate([normal, strange]))[len(normal) :]
    return float((ranks.mean() - (len(strange) + 1) / 2) / len(normal))


def _embedding_error(wanted: Sequence[Outputs], got: Sequence[Outputs], normal: Outputs) -> float:
    a, b = (np.concatenate([part.embedding for part in parts]).astype(np.float64) for parts in (wanted, got))
    ordinary = normal.embedding.astype(np.float64)
    spread = np.maximum(ordinary.std(axis=0), 1e-6)
    error = np.sqrt((((b - a) / spread) ** 2).mean())
    return float(error / max(np.sqrt((((a - ordinary.mean(axis=0)) / spread) ** 2).mean()), 1e-12))


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
