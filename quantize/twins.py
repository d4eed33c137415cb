"""What a bundle is laid beside: its float twin, and the same encoder without any training; both with a head of their own."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from edge.bundle import Bundle
from edge.errors import DataError, UsageError
from edge.operating.commission import commission
from edge.sensing.recordings import find_recordings
from quantize import quantize
from trainer.evaluate import learned_from, sha256_of
from trainer.progress import Report, Step
from trainer.recipe import Budget, PruneRecipe
from trainer.report import Twins

WHOLE = PruneRecipe()
"""Whatever was taken away, the twins are what was trained, and what was drawn; recovering would train the latter."""
ANY = Budget(embedding_error=math.inf, rank_correlation=-1.0, flips=1.0, auroc_loss=1.0, slower=math.inf)
"""What nobody trained need not be good in int8."""


def make_twins(bundle: Path, run: Path, normal: Sequence[Path], folder: Path, progress: Report | None = None) -> Twins:
    """Write both bundles into `folder`; `run` is what `bundle` was made from and `normal` are files of normal running.

    Raises `DataError` when it is another run and, for a commissioned bundle, `UsageError` unless what it was commissioned on is
    among `normal`: laid beside it, the twins need to know the same machine.
    """
    import torch

    from trainer.checkpoint import load_info, load_windows
    from trainer.train import deterministic, fit

    opened = Bundle.open(bundle)
    info = load_info(run)
    lineage = opened.manifest.lineage
    if lineage.get("run") != sha256_of(run / "run.json"):
        raise DataError(f"{run}: not the run that {bundle} was made from; name that one, or leave --run out")
    commissioned_on = learned_from(lineage, "commissioned/")
    own = [path for path in (find_recordings(normal) if normal else []) if sha256_of(path) in commissioned_on]
    if "commissioned_from" in lineage and not own:
        raise UsageError(
            f"{bundle} was commissioned; with --run, name the recordings that it was commissioned on among --normal, "
            "so that the models it is compared with can be commissioned on them too"
        )

    def tell(step: int, text: str) -> None:
        if progress:
            progress(Step(step, 4, text))

    tell(0, "drawing an untrained encoder")
    # One step, at the end of whose schedule the learning rate is 0: weights as they were drawn.
    recipe = msgspec.structs.replace(info.recipe, training=msgspec.structs.replace(info.recipe.training, steps=1))
    windows, held_back, _ = load_windows(run)
    with deterministic(recipe.training.seed, recipe.training.threads):
        detector = fit(recipe, windows, held_back).detector
    drawn = folder / "untrained"
    shutil.copytree(run, drawn)
    torch.save(detector.state_dict(), drawn / "checkpoint.pt")
    precision: Literal["int8", "float32"] = "int8" if opened.manifest.precision == "int8" else "float32"
    twins = Twins(run, folder / "float32.amiss", folder / "untrained.amiss")
    tell(1, "exporting the float model")
    quantize(run, twins.float32, precision="float32", prune=WHOLE)
    tell(2, "compressing the untrained encoder")
    quantize(drawn, twins.untrained, precision=precision, budget=ANY, prune=WHOLE)
    if not own:
        tell(4, "ready to compare")
        return twins
    tell(3, "commissioning both")
    commissioned = Twins(run, folder / "own-float32.amiss", folder / "own-untrained.amiss")
    trusted = lineage.get("commissioned_trusted") == "yes"
    commission(twins.float32, own, commissioned.float32, trusted=trusted)
    commission(twins.untrained, own, commissioned.untrained, trusted=trusted)
    tell(4, "ready to compare")
    return commissioned
