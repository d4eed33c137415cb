"""Is a false-alarm budget kept? Where normal running goes on as it did it has to be, on running that nobody has seen.

    python -m benchmarks.budget [--calibrations 20] [--machines 2] [--out bench-out]

Each row calibrates on T hours and counts episodes in at least 50 T hours after them: an episode begins where the score exceeds
the threshold for a whole span (default `pending_windows`; no cool-down, which would hide some). A method keeps what was asked
when no more come than that. With 90 % confidence nine calibrations in ten have to.

- *processes*: scores from generators of which the truth is known, a window each, four of them to a span. `calm`: Gaussian with
  a memory of some windows. `wander`: that on a level that wanders with a memory of 400 windows. `restless`: its spread
  wanders. `power law`: logarithms of overlapping mean squares of Student's t with 4 degrees of freedom, what a score makes of
  the heaviest signals. `jumps`: the score itself has a power law, which no scorer here gives. T is 8,000 windows.
- *machine*: the simulated one (edge/sensing/simulate.py), a real int8 bundle, commissioned on its own T = 15 minutes, the real
  pipeline.

The methods:

- *naive* takes windows for independent: the p-value whose power of so many windows in a row makes the asked number.
- *0.001* is the fixed p-value that is used when nothing is asked for.
- *counting* is what `Allowance.promised` rests on; where that cannot be reached there is no threshold and nothing is counted.
- *tail* is `Tail.extrapolated`, whether or not counting would do.
- *budget* is what `alarm.false_alarms` gives: the higher threshold of both.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.detect import ANY, ROOT, commissioned, versions
from edge.bundle import Bundle
from edge.config import WEEK_H, AlarmConfig
from edge.scoring.budget import Tail, allowance
from edge.scoring.calibrate import Calibrator
from edge.scoring.smoothing import Smoother
from edge.sensing.recordings import Recording, write_recording
from edge.sensing.simulate import CHANNELS, Machine
from edge.signal import Bool, Float32, Float64, Int64
from quantize import quantize
from trainer.metrics import poisson_interval
from trainer.recipe import Recipe
from trainer.train import train

RESULTS = ROOT / "docs" / "results-budget.md"
CONFIDENCE = 0.9
WINDOWS, HELD_BACK = 8_000, 50
"""Of a process to calibrate on, and how many times as many to count in."""
SPAN = 4
ASKED = (6.0, 1.0, 0.1)
"""Episodes in T hours: what can be counted, what just cannot, and what is far out."""
RATE_HZ, WINDOW, HOP = 100.0, 64, 16
MACHINE_H, LEARN_H = 0.25, 0.5
METHODS = ("naive", "0.001", "counting", "tail", "budget")


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    asked: float
    """Episodes in the held-back hours of all calibrations together."""
    measured: int
    low: float
    high: float
    """Between these the true mean lies, with 95 % confidence."""
    kept: int
    """Calibrations after which no more came than were asked for,"""
    of: int
    """of so many that gave a threshold at all."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    times: float
    """Episodes asked for, in the hours of the calibration."""
    hours: float
    cells: dict[str, Cell]


# Processes: (windows, seed) → scores.


def remembering(n: int, rng: np.random.Generator, memory: float) -> Float64:
    """Gaussian of unit variance, correlation falling to 1/e in `memory` windows."""
    weight = math.exp(-1 / memory)
    noise = rng.standard_normal(n) * math.sqrt(1 - weight**2)
    noise[0] = rng.standard_normal()
    # x[i] = weight x[i - 1] + noise[i], a stretch at a time: within it a convolution with what is left of each.
    length = min(n, 2048)
    left = weight ** np.arange(length)
    found, last = np.empty(n), 0.0
    for at in range(0, n, length):
        some = noise[at : at + length].copy()
        some[0] += weight * last
        size = 1 << (2 * len(some) - 1).bit_length()
        found[at : at + len(some)] = np.fft.irfft(np.fft.rfft(some, size) * np.fft.rfft(left[: len(some)], size), size)[
            : len(some)
        ]
        last = float(found[at + len(some) - 1])
    return found


def calm(n: int, rng: np.random.Generator) -> Float64:
    return remembering(n, rng, 4.5)


def wander(n: int, rng: np.random.Generator) -> Float64:
    return 0.8 * remembering(n, rng, 4.5) + 0.6 * remembering(n, rng, 400)


def restless(n: int, rng: np.random.Generator) -> Float64:
    return remembering(n, rng, 4.5) * np.exp(0.3 * remembering(n, rng, 200))


def power_law(n: int, rng: np.random.Generator) -> Float64:
    total = np.cumsum((rng.standard_t(4, (n + SPAN, 4)) ** 2).mean(axis=1))
    found: Float64 = np.log(total[SPAN:] - total[:-SPAN])
    return found


def jumps(n: int, rng: np.random.Generator) -> Float64:
    found: Float64 = np.repeat(np.abs(rng.standard_t(3, n // 10 + 1)), 10)[:n] + 0.3 * rng.standard_normal(n)
    return found


PROCESSES: dict[str, Callable[[int, np.random.Generator], Float64]] = {
    "calm": calm,
    "wander": wander,
    "restless": restless,
    "power law": power_law,
    "jumps (a power law in the score itself)": jumps,
}


def thresholds(calibrator: Calibrator, tail: Tail, asked: float, span_h: float, pending: int, hop_h: float) -> dict[str, float]:
    """Method → p-value, for `asked` episodes a week; 0 where there is none."""
    per_window = asked / WEEK_H * hop_h
    counted, far = tail.lowest(asked, span_h, CONFIDENCE), tail.extrapolated(asked, span_h, CONFIDENCE)
    ours = allowance(AlarmConfig(false_alarms=asked, confidence=CONFIDENCE), calibrator, tail, span_h)
    assert ours is not None
    return {
        "naive": max(min(per_window ** (1 / pending), 1.0), calibrator.floor),
        "0.001": calibrator.usual_p_value,
        "counting": 0.0 if math.isinf(counted) else calibrator.beyond(counted),
        "tail": 0.0 if far is None else calibrator.beyond(far),
        "budget": ours.p_value,
    }


def episodes(p: Float64, threshold: float, pending: int) -> int:
    """As `edge.scoring.alerts.Alarm` begins them, without a cool-down; arrays, because millions of windows are judged."""
    begins = in_a_row(p <= threshold, pending)
    ends = in_a_row(p > min(1.0, threshold * AlarmConfig().clear_ratio), pending)
    # An episode is a beginning behind an end, or the first of all.
    moments = np.concatenate([begins, ends])
    begin = np.repeat([True, False], [len(begins), len(ends)])[np.argsort(moments, kind="stable")]
    return int(np.count_nonzero(begin[1:] & ~begin[:-1])) + int(begin[:1].sum())


def in_a_row(which: Bool, count: int) -> Int64:
    """Where so many in a row are complete."""
    total = np.cumsum(np.concatenate([[0], which]))
    return np.flatnonzero(total[count:] - total[:-count] == count) + count - 1


def cell(asked: float, counts: Sequence[int]) -> Cell:
    low, high = poisson_interval(sum(counts))
    return Cell(
        asked=asked * len(counts),
        measured=sum(counts),
        low=low,
        high=high,
        kept=sum(n <= asked for n in counts),
        of=len(counts),
    )


def process(name: str, calibrations: int) -> list[Row]:
    """A window a second."""
    counts: dict[float, dict[str, list[int]]] = {times: {method: [] for method in METHODS} for times in ASKED}
    hours = WINDOWS / 3600
    for seed in range(calibrations):
        rng = np.random.default_rng(seed)
        score = PROCESSES[name](WINDOWS * (1 + HELD_BACK), rng).astype(np.float32)
        calibrator = Calibrator.fit(score[:WINDOWS])
        tail = Tail.fit(score[:WINDOWS], np.arange(WINDOWS), Smoother(0, 1, SPAN), hour=3600)
        p = calibrator.p_value(score[WINDOWS:])
        for times in ASKED:
            found = thresholds(calibrator, tail, times / hours * WEEK_H, SPAN / 3600, SPAN + 1, 1 / 3600)
            for method, p_value in found.items():
                if p_value:
                    counts[times][method].append(episodes(p, p_value, SPAN + 1))
    return [
        Row(name=name, times=times, hours=hours, cells={method: cell(times * HELD_BACK, n) for method, n in by.items()})
        for times, by in counts.items()
    ]


def machines(count: int) -> list[Row]:
    counts: dict[float, dict[str, list[int]]] = {times: {method: [] for method in METHODS} for times in ASKED}
    for seed in range(count):
        started = time.monotonic()
        machine = Machine(seed + 1, RATE_HZ)
        bundle, score = machine_scores(machine)
        policy, calibrator, tail = bundle.policy(), bundle.head.calibrator, bundle.head.tail
        assert tail is not None
        hop_h, p = HOP / RATE_HZ / 3600, calibrator.p_value(score)
        span_h = (policy.pending - 1) * hop_h
        for times in ASKED:
            found = thresholds(calibrator, tail, times / MACHINE_H * WEEK_H, span_h, policy.pending, hop_h)
            for method, p_value in found.items():
                if p_value:
                    counts[times][method].append(episodes(p, p_value, policy.pending))
        print(f"machine {seed}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return [
        Row(
            name="machine", times=times, hours=MACHINE_H, cells={method: cell(times * HELD_BACK, n) for method, n in by.items()}
        )
        for times, by in counts.items()
    ]


def machine_scores(machine: Machine) -> tuple[Bundle, Float32]:
    """A bundle that learned from it and was commissioned on it, and the scores of the running after that."""

    def hours(hours: float) -> Recording:
        samples = machine.next(round(hours * 3600 * RATE_HZ))
        return Recording("machine", CHANNELS, samples.time_ns, samples.x)

    recipe = Recipe(window=WINDOW, hop=HOP)
    recipe = msgspec.structs.replace(recipe, training=msgspec.structs.replace(recipe.training, steps=2, device="cpu"))
    with tempfile.TemporaryDirectory(prefix="amiss-budget-") as name:
        folder = Path(name)
        write_recording(folder / "normal.csv", hours(LEARN_H))
        train(recipe, [folder / "normal.csv"], folder / "run")
        quantize(folder / "run", folder / "b.amiss", precision="int8", budget=ANY)
        bundle = commissioned(Bundle.open(folder / "b.amiss"), hours(MACHINE_H))
    pipeline = bundle.pipeline()
    scores = [pipeline.judge(machine.next(round(MACHINE_H * 3600 * RATE_HZ))).score for _ in range(HELD_BACK)]
    return bundle, np.concatenate(scores)


def table(rows: Sequence[Row]) -> list[str]:
    head = ["normal running", "asked", *(f"{method}: measured" if i == 0 else f"{method}" for i, method in enumerate(METHODS))]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for row in rows:
        asked = f"{row.times:g} in T"
        lines.append("| " + " | ".join([row.name, asked, *(said(row.cells[method]) for method in METHODS)]) + " |")
    return lines


def said(cell: Cell) -> str:
    if not cell.of:
        return "–"
    times = [value / cell.asked for value in (cell.measured, cell.low, cell.high)]
    figures = f"{_short(times[0])} ({_short(times[1])} to {_short(times[2])}), kept {cell.kept}/{cell.of}"
    return f"**{figures}**" if times[1] > 1 else figures


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def report(rows: Sequence[Row], command: str) -> str:
    method = (__doc__ or "").split("\n\n", 2)[2].strip()
    broken = [f"{row.name}, {row.times:g} in T" for row in rows if row.cells["budget"].low > row.cells["budget"].asked]
    return "\n".join(
        [
            "# Is a false-alarm budget kept?",
            "",
            f"Written by `{command}`; do not edit.",
            "",
            method,
            "",
            "Measured is in times what was asked for, over all calibrations, with its 95 % Poisson interval: 1 is as asked,",
            "less is better, bold is more than asked and not by chance. *Kept*: after so many calibrations of so many.",
            "",
            *table(rows),
            "",
            f"The budget is not kept, and not by chance: {'; '.join(broken) or 'nowhere'}.",
            "",
            "## Where it is not kept",
            "",
            "All of this goes on as it began. [Machines that move on](results-promise.md) keep no budget that was fitted to an",
            "earlier time, whatever the method: of 13 public recordings of normal running most do. And a wander whose period",
            "is not short against T has hardly been seen when T is over.",
            "",
            "## Made with",
            "",
            ", ".join(f"{key} {value}" for key, value in versions().items()) + ".",
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibrations", type=int, default=20)
    parser.add_argument("--machines", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    options = parser.parse_args(arguments)
    if options.calibrations < 1 or options.machines < 0:
        parser.error("--calibrations is at least 1 and --machines at least 0")
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for name in PROCESSES:
        rows += process(name, options.calibrations)
        print("\n".join(table(rows)[-len(ASKED) :]), file=sys.stderr, flush=True)
    rows += machines(options.machines) if options.machines else []
    (options.out / "budget.json").write_text(json.dumps(msgspec.to_builtins(rows), indent=1) + "\n", "utf-8")
    whole = options.calibrations >= 20 and options.machines >= 2
    target = RESULTS if whole else options.out / "results-budget.md"
    target.write_text(
        report(rows, f"python -m benchmarks.budget --calibrations {options.calibrations} --machines {options.machines}"),
        "utf-8",
    )
    print(target.read_text("utf-8"))


if __name__ == "__main__":
    main()
