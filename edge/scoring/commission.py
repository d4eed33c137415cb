"""Fit scorer, calibrator and explainer to one machine's own normal running: numpy, no training stack, on the device too.

The encoder stays as it is. What changes is what counts as ordinary: not what a fleet does, but what this machine does.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from edge.scoring.backends import Outputs
from edge.scoring.calibrate import Calibrator
from edge.scoring.explain import Explainer
from edge.scoring.scorers import SCORERS, Scorer, features
from edge.signal import Float32

FOLDS = 5
FEWEST = 40
"""Windows that share no sample would be better counted; below this many windows of any kind nothing can be said."""


@dataclass(frozen=True, slots=True)
class Head:
    """What stands between the encoder and the alarm."""

    scorer: Scorer
    calibrator: Calibrator
    explainer: Explainer


def fit_head(scorer: str, outputs: Outputs, movement: Float32, overlap: int) -> Head:
    """A head from consecutive normal windows and the movement in them; raises ValueError when they are too few.

    An hour of one machine is too little to set a third of it aside. So the calibration is crossed: each of `FOLDS` blocks is
    scored by a scorer fitted to the other blocks, and the scorer that ships is fitted to all of them (Vovk 2015,
    "Cross-conformal predictors"). Windows within `overlap` of a block share samples with it and are left out of its fit.
    """
    z = features(outputs)
    if len(z) < FEWEST:
        raise ValueError(f"{len(z)} windows of normal running; at least {FEWEST} are needed")
    kind = SCORERS[scorer]
    edges = np.linspace(0, len(z), FOLDS + 1).astype(int)
    scores = []
    for start, stop in pairwise(edges.tolist()):
        others = np.r_[0 : max(0, start - overlap), min(len(z), stop + overlap) : len(z)]
        scores.append(kind.fit(z[others]).score(z[start:stop]))
    return Head(kind.fit(z), Calibrator.fit(np.concatenate(scores)), Explainer.fit(outputs, movement))
