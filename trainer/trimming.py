"""Which windows are left out when some of the recordings may be faulty: `training.trim` of the recipe.

Twice, because a fault does its harm in two places. While the encoder learns, those of each batch that it reconstructs worst
teach nothing. And of the windows that a run keeps, those that lie apart from the bulk are left out, because scorer and int8
ranges are fitted to what is kept, and a scorer that has taken faults for ordinary finds them no more. The latter is by far
what matters (docs/howto/train.md has the figures).

The windows that calibrate are left alone: whoever takes the highest scores out of them makes p-values too small.
"""

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from edge.scoring.backends import Outputs
from edge.scoring.bulk import bulk
from edge.scoring.ensemble import features
from edge.signal import Float32, Int64
from trainer.encoders import Encoder
from trainer.model import Detector

AFTER = 0.1
"""Share of the run. Before, an encoder knows nothing, and what it follows worst is only what is loudest."""
PART = 1024
"""Windows that the detector is given together."""


def taught(detector: Detector, encoder: Encoder, x: Tensor, trim: float) -> Tensor:
    """Of normalised windows (B, C, N) all but the share `trim`, rounded down, reconstructed worst, nothing hidden."""
    # In evaluation mode, or windows that are to teach nothing would teach the normalisation layers.
    training = detector.training
    detector.eval()
    with torch.no_grad():
        order = detector.pretext.residual(x, encoder(x)).float().mean(1).argsort(stable=True)
    detector.train(training)
    return x[order[: len(x) - math.floor(trim * len(x))]]


def ordinary(detector: Detector, parts: Iterable[Float32], trim: float) -> Int64:
    """Places, in order, of those of the windows, in parts (n, C, N), that belong to the bulk: all but the share `trim`."""
    found: list[Float32] = []
    with torch.no_grad():
        for windows in parts:
            for at in range(0, len(windows), PART):
                given = detector(torch.from_numpy(windows[at : at + PART]))
                found.append(features(Outputs(*(value.numpy() for value in given))))
    return bulk(np.concatenate(found), trim)
