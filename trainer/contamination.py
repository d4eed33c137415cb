"""What faults among the recordings would have cost this bundle, and what trimming gives back.

The head is fitted again to the windows of its own run, as a run hands them to `quantize.pack`, with a share of them replaced by
faulty ones: once to all of them, once to those that `edge.scoring.bulk` takes for the bulk. The encoder stays that of the
bundle: whether it saw a tenth of faults hardly matters (docs/howto/train.md), and learning it again for each point takes long.
"""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np

from edge.bundle import Bundle
from edge.scoring.backends import Outputs, run_in_slices
from edge.scoring.bulk import bulk
from edge.scoring.calibrate import Calibrator
from edge.scoring.ensemble import Ensemble, features
from edge.scoring.inject import inject, usual_spread
from edge.signal import Bool, Float32
from trainer.evaluate import mean
from trainer.metrics import auroc
from trainer.stress import Material, middle, thinned

SHARES = (0.0, 0.01, 0.05, 0.1)
TRIM = 0.15
"""Half as much again as the largest share of faults, as docs/howto/train.md tells people to."""
MOST = 2000
"""Windows that a head is fitted to here; more take longer and say the same."""
DRAWS = 3
"""Of which windows are faulty, and how; the figures are means."""


class Refitted(msgspec.Struct, frozen=True, kw_only=True):
    """What a head finds that was fitted to windows of which some were faulty."""

    left: float
    """Share of faulty windows among those that the scorer was fitted to."""
    injected: float
    """AUROC of normal running with faults put in against the same without."""
    labelled: float | None
    """AUROC of labelled anomalies against normal running; None without any."""
    noticed: float
    """Share of the faults put in with p at or below the threshold of the alerts."""


class Contaminated(msgspec.Struct, frozen=True, kw_only=True):
    share: float
    """Of the windows, that were faulty."""
    plain: Refitted
    """Fitted to all of them."""
    trimmed: Refitted
    """Fitted to the bulk of them."""


class Contamination(msgspec.Struct, frozen=True, kw_only=True):
    windows: int
    """That the scorer was fitted to, those left out included."""
    trim: float
    """Share that was left out where it says trimmed."""
    points: tuple[Contaminated, ...]


@dataclass(frozen=True, slots=True)
class _Seen:
    """Windows as the model gives them, and the same with a fault in each."""

    well: Outputs
    faulty: Outputs

    def mixed(self, faulty: Bool) -> Outputs:
        """Those of `faulty` (B,) with their fault, the others without."""
        order = np.where(faulty, np.arange(len(self.well)) + len(self.well), np.arange(len(self.well)))
        return Outputs.concatenate([self.well, self.faulty]).part(order)


def contaminate(
    bundle: Bundle, fit: Float32, held_back: Float32, material: Material, tell: Callable[[str], None]
) -> Contamination:
    """`fit` and `held_back` are normal windows (n, C, N) of the run: what the scorer was fitted to, what calibrated.

    The same share of both is faulty, as it would be in recordings, and as in a run only the first are trimmed.
    """
    fit, held_back = thinned(fit, MOST), thinned(held_back, MOST)
    calm = middle(material.normal, material.length)
    spread = usual_spread(fit)
    alpha = bundle.pipeline().policy.p_value
    anomalous = run_in_slices(bundle.backend, middle(material.anomalous, material.length)) if len(material.anomalous) else None
    found: dict[tuple[float, float], list[Refitted]] = {}
    for draw in range(DRAWS):
        tell(f"faults among the recordings, draw {draw + 1} of {DRAWS}")
        rng = np.random.default_rng(draw)
        learn, relate, judged = (_seen(bundle, windows, spread, rng) for windows in (fit, held_back, calm))
        # The more, the same ones and others: the curve is not rough because of which ones they are.
        first, second = (rng.permutation(len(part)) for part in (fit, held_back))
        for share in SHARES:
            wrong, wrong_too = first < round(share * len(fit)), second < round(share * len(held_back))
            learned, related = learn.mixed(wrong), relate.mixed(wrong_too)
            for trim in (0.0, TRIM):
                kept = bulk(features(learned), trim) if trim else np.arange(len(fit))
                scorer = Ensemble.fit(bundle.manifest.scorer, learned.part(kept), related)
                # Faulty windows stand alone among the others: averaged over time they would be hidden.
                calibrator = Calibrator.fit(scorer.score(related))
                well, faulty = scorer.score(judged.well), scorer.score(judged.faulty)
                found.setdefault((share, trim), []).append(
                    Refitted(
                        left=float(wrong[kept].mean()),
                        injected=_told(faulty, well),
                        labelled=None if anomalous is None else _told(scorer.score(anomalous), well),
                        noticed=float((calibrator.p_value(faulty) <= max(alpha, calibrator.floor)).mean()),
                    )
                )
    points = [Contaminated(share=share, plain=_mean(found[share, 0.0]), trimmed=_mean(found[share, TRIM])) for share in SHARES]
    return Contamination(windows=len(fit), trim=TRIM, points=tuple(points))


def _seen(bundle: Bundle, windows: Float32, spread: Float32, rng: np.random.Generator) -> _Seen:
    return _Seen(run_in_slices(bundle.backend, windows), run_in_slices(bundle.backend, inject(windows, spread, rng)))


def _told(strange: Float32, ordinary: Float32) -> float:
    return auroc(np.concatenate([strange, ordinary]), np.repeat([True, False], [len(strange), len(ordinary)]))


def _mean(draws: list[Refitted]) -> Refitted:
    return Refitted(
        left=float(np.mean([one.left for one in draws])),
        injected=float(np.mean([one.injected for one in draws])),
        labelled=mean([one.labelled for one in draws]),
        noticed=float(np.mean([one.noticed for one in draws])),
    )
