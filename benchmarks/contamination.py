"""What faults among the recordings cost, and what leaving them out gives back; on SKAB.

    python -m benchmarks.contamination [--shares 0,0.01,0.05,0.1] [--trims 0] [--seeds 3] [--data ../shared/data]

- The encoder learns from the normal parts of all files and the anomaly-free one, as in `benchmarks.detect`; of its windows a
  share is replaced by labelled anomalous ones. Files are dealt into two halves: one gives the faults, the other is judged.
- Each judged file gets its own scorer and calibrator, as `amiss commission` fits them, by the float model: to its normal rows,
  which shows what the encoder lost, and to the same rows with the same share of this file's own anomalous windows among them,
  which are then not judged. *Trusted*: nothing is left out of the fit and the calibration, as `amiss commission --trusted`.
- AUROC and AUC-PR of windows, mean over the judged files, no point adjustment; a window is anomalous when more than half of it
  is. Misses: anomalous windows with p > 0.01; false alarms: normal ones with p ≤ 0.01. Strange: share of the windows that the
  scorer was not fitted to; foreign: share that did not calibrate either. Refused: share of the files in which
  too many are foreign; they are left out of the other means.

Labels choose the contamination and judge; training never sees them.
"""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch

from benchmarks.detect_data import Case, skab, unlabelled
from edge.scoring.backends import Outputs
from edge.scoring.commission import ForeignError, fit_head
from edge.scoring.smoothing import Smoother
from edge.sensing.recordings import Recording
from edge.signal import Float32, Float64, Windows
from trainer.data import cut
from trainer.metrics import auc_pr, auroc
from trainer.model import Detector
from trainer.recipe import Recipe, TrainingRecipe
from trainer.train import deterministic, fit

ROOT = Path(__file__).parents[1]
P = 0.01
COLUMNS = ("AUROC", "AUC-PR", "misses", "false alarms", "strange", "foreign", "refused")
OWN_HOP = 1
"""Of the rows that a file commissions on; 400 are few."""


@dataclass(frozen=True, slots=True)
class Material:
    fit: Float32
    """(n, C, N)"""
    faulty: Float32
    """(k, C, N) anomalous through and through, of files that are not judged."""
    cases: tuple[Case, ...]
    """To be judged."""


def material(folder: Path, recipe: Recipe) -> Material:
    group = skab(folder)[0]
    faulty = []
    for case in group.cases[::2]:
        windows, share = windows_of(case.test, recipe, recipe.hop_samples)
        faulty.append(windows.x[share == 1])
    parts = [windows_of(r, recipe, recipe.hop_samples)[0].x for r in group.training]
    return Material(np.concatenate(parts), np.concatenate(faulty), group.cases[1::2])


def windows_of(recording: Recording, recipe: Recipe, hop: int) -> tuple[Windows, Float64]:
    """Its windows, and of each the share of its rows that is labelled."""
    windows = cut(unlabelled(recording, recording.name), 1.0, recipe.window, hop, recipe.missing)
    if recording.label is None:
        return windows, np.zeros(len(windows.x))
    first = np.searchsorted(recording.time_ns, windows.start_ns)
    last = np.searchsorted(recording.time_ns, windows.end_ns, side="right")
    total = np.concatenate([[0], np.cumsum(recording.label)])
    return windows, (total[last] - total[first]) / (last - first)


def contaminated(windows: Float32, faulty: Float32, share: float, rng: np.random.Generator) -> Float32:
    """(n, C, N) with a share replaced, in random places."""
    where = rng.permutation(len(windows))[: round(share * len(windows))]
    found = windows.copy()
    found[where] = faulty[np.resize(rng.permutation(len(faulty)), len(where))]
    return found


def seen(detector: Detector, windows: Float32) -> Outputs:
    with torch.no_grad():
        return Outputs(*(value.numpy() for value in detector(torch.from_numpy(windows))))


def judged(
    detector: Detector, recipe: Recipe, case: Case, share: float, trusted: bool, rng: np.random.Generator
) -> list[float]:
    """`COLUMNS` of one file with a head fitted to its normal rows, of which a share is not."""
    own = windows_of(case.normal, recipe, OWN_HOP)[0].x
    windows, faulty = windows_of(case.test, recipe, recipe.hop_samples)
    label, known = faulty > 0.5, np.zeros(len(faulty), bool)
    if count := round(share * len(own)):
        known[rng.permutation(np.flatnonzero(faulty == 1))[: min(count, int((faulty == 1).sum()) // 2)]] = True
        own = contaminated(own, windows.x[known], share, rng)
    position = np.arange(len(own)) * OWN_HOP
    alone = Smoother(0, OWN_HOP, recipe.window)  # faulty windows are put in one by one
    overlap = recipe.window // OWN_HOP
    try:
        head = fit_head(recipe.scorer, seen(detector, own), position, alone, overlap, trusted=trusted)
    except ForeignError:
        return [*[math.nan] * (len(COLUMNS) - 1), 1.0]
    score = head.scorer.score(seen(detector, windows.x[~known]))
    p, label = head.calibrator.p_value(score), label[~known]
    verdicts = float((p[label] > P).mean()), float((p[~label] <= P).mean())
    shares = head.strange / len(own), head.foreign / len(own)
    return [auroc(score, label), auc_pr(score, label), *verdicts, *shares, 0.0]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", default="0,0.01,0.05,0.1", help="of the windows, that are faulty")
    parser.add_argument("--trims", default="0", help="values of training.trim")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    default = os.environ.get("AMISS_DATA") or ROOT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(default), help="folder of the set; $AMISS_DATA, ../shared/data")
    options = parser.parse_args(arguments)
    data = material(options.data / "skab", Recipe())
    print(
        f"{len(data.fit)} windows to learn from, {len(data.faulty)} faulty ones to put in, {len(data.cases)} files judged; "
        f"{options.seeds} seeds, {options.steps} steps\n"
    )
    print(f"| faulty | trim | own rows | {' | '.join(COLUMNS)} |\n|---|---|---|{'---|' * len(COLUMNS)}")
    for share in map(float, options.shares.split(",")):
        for trim in map(float, options.trims.split(",")):
            found: dict[tuple[float, bool], list[Float64]] = {}
            for seed in range(options.seeds):
                learn = contaminated(data.fit, data.faulty, share, np.random.default_rng(seed))
                recipe = msgspec.structs.replace(
                    Recipe(), training=TrainingRecipe(seed=seed, trim=trim, steps=options.steps, device="cpu")
                )
                with deterministic(seed, recipe.training.threads):
                    detector = fit(recipe, learn, data.fit[:64]).detector
                    for own, trusted in {(0.0, True), (share, True), (share, False)}:
                        rng = np.random.default_rng(seed)
                        figures = [judged(detector, recipe, case, own, trusted, rng) for case in data.cases]
                        found.setdefault((own, trusted), []).append(np.nanmean(figures, axis=0))
                print(f"{share:g} {trim:g} {seed}", file=sys.stderr, flush=True)
            for (own, trusted), seeds in sorted(found.items()):
                mean, spread = np.mean(seeds, axis=0), np.std(seeds, axis=0, ddof=min(1, len(seeds) - 1))
                cells = " | ".join(f"{a:.3f} ± {b:.3f}" for a, b in zip(mean, spread, strict=True))
                rows = f"{own:.0%} faulty" + (", trusted" if trusted else "")
                print(f"| {share:.0%} | {trim:g} | {rows} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
