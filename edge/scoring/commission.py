"""Fit scorer, calibrator and explainer to one machine's own normal running: numpy, no training stack, on the device too.

The encoder stays as it is. What changes is what counts as ordinary: not what a fleet does, but what this machine does.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from edge.scoring.backends import Outputs
from edge.scoring.calibrate import Calibrator
from edge.scoring.ensemble import Ensemble, fit_members, log_scores
from edge.scoring.explain import Explainer
from edge.scoring.smoothing import Smoother, smoothed
from edge.signal import Int64

FOLDS = 5
FEWEST = 40
"""Windows that share no sample would be better counted; below this many windows of any kind nothing can be said."""


@dataclass(frozen=True, slots=True)
class Head:
    """What stands between the encoder and the alarm."""

    scorer: Ensemble
    calibrator: Calibrator
    explainer: Explainer


def fit_head(scorer: str, outputs: Outputs, position: Int64, smoother: Smoother, overlap: int) -> Head:
    """A head from normal windows in the order of time; raises ValueError when they are too few.

    `position` (n,) says where each window stands, in the unit of the smoother; windows `overlap` places apart share no sample.

    An hour of one machine is too little to set a third of it aside. So the calibration is crossed: each of `FOLDS` blocks is
    scored by scorers fitted to the other blocks, and the scorers that ship are fitted to all of them (Vovk 2015,
    "Cross-conformal predictors"). Windows that share samples with a block are left out of its fit.
    """
    if len(outputs) < FEWEST:
        raise ValueError(f"{len(outputs)} windows of normal running; at least {FEWEST} are needed")
    edges = np.linspace(0, len(outputs), FOLDS + 1).astype(int)
    logs = []
    for start, stop in pairwise(edges.tolist()):
        others = np.r_[0 : max(0, start - overlap), min(len(outputs), stop + overlap) : len(outputs)]
        logs.append(log_scores(scorer, fit_members(scorer, outputs.part(others)), outputs.part(slice(start, stop))))
    crossed = np.concatenate(logs, axis=1)  # (M, n)
    ensemble = Ensemble.related(scorer, fit_members(scorer, outputs), crossed)
    scores = smoothed(smoother, position, ensemble.combined(crossed))
    return Head(ensemble, Calibrator.fit(scores), Explainer.fit(outputs))
