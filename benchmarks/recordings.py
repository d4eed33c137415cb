"""What a recording costs to read and write, in microseconds a row, by number of channels.

    python -m benchmarks.recordings [--rows 200000] [--rounds 5]

With torch loaded, as a training has it: what is alive in a program is what Python's garbage collector goes over. Beside ours
stand the limit of text, Python's `csv` without looking at a cell; `numpy.loadtxt` of the numbers alone, without times, names of
lines, or missing values; and Parquet. Medians of rounds in which each has its turn.
"""

import argparse
import csv
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from edge.sensing.recordings import Recording, read_parts, write_recording

CHANNELS = (1, 5, 20)


def bare(path: Path) -> None:
    with path.open(newline="") as file:
        for _ in csv.reader(file):
            pass


def ours(path: Path) -> None:
    for _ in read_parts(path):
        pass


def numbers(path: Path, channels: int) -> None:
    np.loadtxt(path, delimiter=",", skiprows=1, usecols=range(1, 1 + channels), comments=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    print(f"{chosen.rows} rows, torch {torch.__version__}; µs a row, median of {chosen.rounds} rounds\n")
    print("| channels | write CSV | read CSV | csv alone | loadtxt | write Parquet | read Parquet |")
    print("|---|---|---|---|---|---|---|")
    time_ns = 1_767_225_600_000_000_000 + np.arange(chosen.rows) * 2_500_000
    with tempfile.TemporaryDirectory() as temporary:
        text, table = Path(temporary) / "x.csv", Path(temporary) / "x.parquet"
        for channels in CHANNELS:
            x = np.random.default_rng(0).normal(size=(channels, chosen.rows)).astype(np.float32)
            made = Recording("x", tuple(f"c{i}" for i in range(channels)), time_ns, x)
            turns: tuple[Callable[[], None], ...] = (
                partial(write_recording, text, made),
                partial(ours, text),
                partial(bare, text),
                partial(numbers, text, channels),
                partial(write_recording, table, made),
                partial(ours, table),
            )
            took = np.empty((chosen.rounds, len(turns)))
            for each in took:
                for at, turn in enumerate(turns):
                    began_s = time.perf_counter()
                    turn()
                    each[at] = time.perf_counter() - began_s
            cells = 1e6 * np.median(took, axis=0) / chosen.rows
            print(f"| {channels} | {' | '.join(f'{cell:.2f}' for cell in cells)} |", flush=True)


if __name__ == "__main__":
    main()
