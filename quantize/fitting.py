"""A scorer fitted to the outputs of one model, as it is shipped and as it is compared. What memory it takes does not depend
on how many windows there are.
"""

from typing import NamedTuple, TypeVar

import numpy as np

from edge.scoring.backends import Backend, run_in_slices
from edge.scoring.ensemble import Ensemble, fit_members, log_scores
from edge.scoring.explain import Explainer
from edge.signal import Float32, Int64

MOST_FITTED = 4096
"""Windows that scorer and explainer are fitted to, evenly among those there are. With more nothing is found that these do not
show, and what a model gives of a window takes several times the memory of the window."""
TOGETHER = 512
"""Windows that are scored together."""


Windows = TypeVar("Windows", Float32, Int64)


class Fitted(NamedTuple):
    scorer: Ensemble
    held_back: Float32
    """(m,) scores of the windows that were held back, all of them."""
    explainer: Explainer


def fit_to(model: Backend, scorer: str, fit: Float32, calibration: Float32) -> Fitted:
    """Normal windows (n, C, N) to fit to and (m, C, N) held back. Raises ValueError when they are too few or not finite."""
    members = fit_members(scorer, run_in_slices(model, thinned(fit)))
    parts = (run_in_slices(model, calibration[at : at + TOGETHER]) for at in range(0, len(calibration), TOGETHER))
    logs = np.concatenate([log_scores(scorer, members, part) for part in parts], axis=1)  # (M, m)
    ensemble = Ensemble.related(scorer, members, logs)
    return Fitted(ensemble, ensemble.combined(logs), Explainer.fit(run_in_slices(model, thinned(calibration))))


def thinned(windows: Windows) -> Windows:
    """At most `MOST_FITTED` of them, or of what there is one of for each, evenly taken."""
    if len(windows) <= MOST_FITTED:
        return windows
    return windows[np.linspace(0, len(windows) - 1, MOST_FITTED).astype(np.int64)]
