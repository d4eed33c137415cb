"""Fit scorer, calibrator and explainer to one machine's own normal running: numpy, no training stack, on the device too.

The encoder stays as it is. What changes is what counts as ordinary: not what a fleet does, but what this machine does.

Nobody watches a machine for an hour to make sure that nothing was wrong. One faulty window in a hundred is enough to spoil a
scorer that remembers what it saw, so what looks unlike the rest is left out (`edge.scoring.bulk`), at two fences:

- beyond `STRANGE`, of what scorer and explainer are fitted to. It costs clean recordings a few windows and the promise nothing:
  every window is still scored, by a scorer that did not learn from it, and calibrates.
- beyond `FOREIGN`, of the calibration too, or the alert would ask for something stranger than the fault that is in there. This
  does touch the promise: with a share s of normal windows taken away, P(p ≤ α) ≤ α + s. So the fence is where windows of clean
  recordings do not come, short of tails that are far heavier than a Gaussian's.
"""

from dataclasses import dataclass

import numpy as np

from edge.scoring.backends import Outputs
from edge.scoring.budget import NS_PER_HOUR, Tail
from edge.scoring.bulk import away, blocks
from edge.scoring.calibrate import Calibrator
from edge.scoring.ensemble import Ensemble, features, fit_members, log_scores
from edge.scoring.explain import Explainer
from edge.scoring.reference import Reference
from edge.scoring.smoothing import Smoother, smoothed
from edge.signal import Int64

FEWEST = 40
"""Windows that share no sample would be better counted; below this many windows of any kind nothing can be said."""
STRANGE, FOREIGN = 2.0, 6.0
"""In the units of `away`. Measured on clean windows: of Gaussian features 1 % lie beyond the first and none beyond the second,
of Student's with five degrees of freedom 4 % and at most 0.03 %, of the simulated machine 5 % and none. At 4 half a percent of
that machine would not calibrate, several times what an alert is promised to be wrong."""
MOST_FOREIGN = 0.05
"""Share of foreign windows above which a person has to say whether that is a fault or a rare state: so much at most can the
promise be off unseen. Of the servers of SMD 8 % are foreign, and normal."""


class ForeignError(ValueError):
    """Too many windows look unlike the rest."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A head in the making, and what was left out of it."""

    scorer: Ensemble
    calibrator: Calibrator
    explainer: Explainer
    reference: Reference
    tail: Tail
    strange: int = 0
    """Windows that scorer and explainer were not fitted to, because they look unlike the rest,"""
    foreign: int = 0
    """and those of them that do not calibrate either."""


def fit_head(
    scorer: str,
    outputs: Outputs,
    position: Int64,
    smoother: Smoother,
    overlap: int,
    *,
    trusted: bool = False,
    stride: int = 1,
    hour: float = NS_PER_HOUR,
) -> Fitted:
    """A head from normal windows in the order of time; raises ValueError when they are too few, `ForeignError` when too many
    look unlike the rest. `trusted`: nothing is left out.

    `position` (n,) says where each window stands, in the unit of the smoother; windows `overlap` places apart share no sample.
    `stride` and `hour` are those of `Tail.fit`.

    An hour of one machine is too little to set a third of it aside. So the calibration is crossed: each of `FOLDS` blocks is
    scored by scorers fitted to the other blocks, and the scorers that ship are fitted to all of them (Vovk 2015,
    "Cross-conformal predictors"). Windows that share samples with a block are left out of its fit.
    """
    if len(outputs) < FEWEST:
        raise ValueError(f"{len(outputs)} windows of normal running; at least {FEWEST} are needed")
    far = np.zeros(len(outputs)) if trusted else away(features(outputs), overlap)
    ordinary, known = far <= STRANGE, far <= FOREIGN
    if (share := float((~known).mean())) > MOST_FOREIGN:
        raise ForeignError(f"{share:.0%} of {len(known)} windows look unlike the rest, at most {MOST_FOREIGN:.0%} may")
    logs = []
    for block, others in blocks(len(outputs), overlap):
        members = fit_members(scorer, outputs.part(others[ordinary[others]]))
        logs.append(log_scores(scorer, members, outputs.part(block)))
    crossed = np.concatenate(logs, axis=1)[:, known]  # (M, n)
    learned = outputs.part(np.flatnonzero(ordinary))
    ensemble = Ensemble.related(scorer, fit_members(scorer, learned), crossed)
    unsmoothed = ensemble.combined(crossed)
    scores, at = smoothed(smoother, position[known], unsmoothed)
    tail = Tail.fit(scores, at, smoother, stride=stride, hour=hour)
    length = overlap * float(np.median(np.diff(position)))
    reference = Reference.fit(outputs.part(np.flatnonzero(known)), unsmoothed, position[known], length)
    left_out = int((~ordinary).sum()), int((~known).sum())
    return Fitted(ensemble, Calibrator.fit(scores), Explainer.fit(learned), reference, tail, *left_out)
