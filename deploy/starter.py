"""A model for a machine that nobody has recorded yet, so that a device that is new has something to begin with.

It knows the sensor, its channels and its rate, and no machine: the encoder is left as it was drawn, what counts as ordinary is
noise. The agent that is given one watches what comes for `learn_minutes`, raises nothing meanwhile, fits what is ordinary to
that, and from then on is an agent like any other. The default scorer looks at the signal itself, so little is lost by an
encoder that has learned nothing (docs/results-ablation.md); a model that was trained on recordings can be pushed at any time.
"""

import dataclasses
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from edge.bundle import Bundle, Manifest, members_of, pack_head, write_bundle
from edge.channel import ChannelSpec
from edge.sensing.recordings import Recording, write_recording

LEARN_MINUTES = 60.0
"""An hour of one machine is what commissioning wants (docs/howto/my-alarm-is-wrong.md)."""
SHORTEST, LONGEST = 64, 512
"""Samples of a window, which is to last about `WINDOW_S` where the rate is between."""
WINDOW_S = 1.0
WINDOWS = 6000
"""Of noise: enough that a threshold of 0.001 can be told, which people write into device.toml."""
FEWEST = 400
"""Windows that it learns from at least; a slow sensor takes longer than `LEARN_MINUTES` to send so many."""


def build(
    channels: Sequence[ChannelSpec],
    rate_hz: float,
    out: Path,
    *,
    name: str = "starter",
    window: int | None = None,
    hop: int | None = None,
    minutes: float | None = None,
) -> str:
    """Write the bundle `out` for a sensor of these channels; returns its digest. Takes some ten seconds, and PyTorch.

    `window` and `hop` in samples, found from the rate if not given, and how many `minutes` it is to learn. The same input gives
    the same bytes when SOURCE_DATE_EPOCH is set. Raises `CannotCreateError`.
    """
    from quantize import quantize
    from trainer.recipe import EncoderRecipe, Recipe, TrainingRecipe
    from trainer.train import train

    window = window or usual_window(rate_hz)
    untrained, once = EncoderRecipe(kind="random", size="5k"), TrainingRecipe(steps=1, device="cpu")
    recipe = Recipe(window=window, encoder=untrained, training=once)
    n = window + WINDOWS * recipe.hop_samples
    # Of no scale: whatever the head measures, it measures in spreads of what it was fitted to.
    x = np.random.default_rng(0).normal(size=(len(channels), n)).astype(np.float32)
    time_ns = np.round(np.arange(n) * (1e9 / rate_hz)).astype(np.int64)
    with tempfile.TemporaryDirectory(prefix="amiss-starter-") as folder:
        at = Path(folder)
        names = tuple(channel.name for channel in channels)
        write_recording(at / "noise.csv", Recording("noise.csv", names, time_ns, x))
        train(recipe, [at / "noise.csv"], at / "run")
        quantize(at / "run", at / "noise.amiss", precision="float32", name=name)
        made, members = Bundle.open(at / "noise.amiss"), members_of(at / "noise.amiss")
    # What a sensor does when all is well, and what drift is measured by, are the machine's: noise says nothing of them.
    head = dataclasses.replace(made.head, reference=None, usual=None)
    manifest = msgspec.structs.replace(
        made.manifest,
        channels=tuple(channels),
        hop=hop or made.manifest.hop,
        learn_minutes=minutes or learning_minutes(rate_hz, hop or made.manifest.hop),
        precision_reason="a starter: nothing was trained that could be compared",
    )
    return write_bundle(out, manifest, members | {"head.npz": pack_head(head), "README.md": _card(manifest).encode()})


def usual_window(rate_hz: float) -> int:
    """Samples: a power of two that lasts about `WINDOW_S`."""
    return min(max(1 << round(math.log2(max(rate_hz * WINDOW_S, 1))), SHORTEST), LONGEST)


def learning_minutes(rate_hz: float, hop: int) -> float:
    """`LEARN_MINUTES`, or whole minutes in which `FEWEST` windows come."""
    return max(LEARN_MINUTES, math.ceil(FEWEST * hop / rate_hz / 60))


def _card(manifest: Manifest) -> str:
    return f"""\
# {manifest.name}: a starter

It knows a sensor ({", ".join(channel.name for channel in manifest.channels)} at {manifest.rate_hz:g} Hz)
and no machine. Nothing was trained. The agent that runs it learns for {manifest.learn_minutes:g} minutes what is ordinary for
the machine that it is put on, and raises no alert before; let the machine run as it usually does meanwhile. A model that was
trained on recordings of it can take its place at any time: `amiss train`, `amiss quantize`, `amiss publish`.
"""
