"""Injected anomalies: half of the windows get a fault put in, and the embedding must say whether, and which.

After Li et al., "CutPaste: Self-Supervised Learning for Anomaly Detection and Localization" (2021), which is about images; for
time series Carmona et al., "Neural Contextual Anomaly Detection for Time Series" (2021). The faults: `trainer/augment.py`.

No label is needed, but an opinion about what faults look like is: what is not among them gains nothing.
"""

from typing import TYPE_CHECKING, cast

from torch import Generator, Tensor, nn
from torch.nn import functional

from trainer.augment import INJECTIONS, inject
from trainer.pretexts.embedding import embed
from trainer.recipe import PretextRecipe

if TYPE_CHECKING:
    from trainer.encoders import Encoder


class Injected(nn.Module):
    def __init__(self, channels: int, encoder: "Encoder", recipe: PretextRecipe) -> None:
        super().__init__()
        # Linear on purpose: faults are to lie apart in the embedding itself, where the scorer measures distances.
        self.tell = nn.Linear(2 * encoder.dimension, 1 + len(INJECTIONS))

    def loss(self, encoder: "Encoder", x: Tensor, rng: Generator) -> Tensor:
        y, kind = inject(x, rng)
        return functional.cross_entropy(cast(Tensor, self.tell(embed(encoder(y)))), kind)
