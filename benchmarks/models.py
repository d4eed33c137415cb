"""The two models that are measured: the encoder that the recipe's defaults give, learned briefly and made int8.

A few steps are enough, since speed does not depend on what the weights are. Bundles are kept and made again when the code
that makes them is newer.
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from edge.bundle import verify, write_bundle
from edge.sensing.recordings import Recording, write_recording
from edge.signal import Float32

STEPS = 40
LEARN_WINDOWS = 4500
"""At a hop of a quarter. Enough that the calibration can tell a p-value of 0.001, the agent's default."""


@dataclass(frozen=True, slots=True)
class Shape:
    name: str
    channels: int
    rate_hz: float
    window: int
    frame: int
    """Samples in a frame on the wire: 25 frames a second, as many as fit, as `amiss simulate` sends."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"channel_{i}" for i in range(self.channels))


SHAPES = (Shape("8 ch, 100 Hz", 8, 100.0, 64, 4), Shape("3 ch, 10 kHz", 3, 10_000.0, 256, 64))


def signal(shape: Shape, n: int, seed: int) -> Float32:
    """(C, n) of a machine in steady operation: three tones and noise, in another mixture in each channel."""
    rng = np.random.default_rng(seed)
    turns = np.arange(n) * np.array([[0.011], [0.023], [0.052]])  # frequencies as shares of the sampling rate
    tones = np.sin(2 * np.pi * (turns + rng.random((3, 1))))
    mixture = np.random.default_rng(shape.channels).uniform(0.2, 1.5, (shape.channels, 3))  # of the machine, not of the day
    x: Float32 = (mixture @ tones + 0.5 * rng.standard_normal((shape.channels, n))).astype(np.float32)
    return x


def bundle(shape: Shape, folder: Path) -> Path:
    """Its bundle, from `folder` or made now; hop is a quarter of the window."""
    path = folder / f"{shape.channels}ch-{shape.rate_hz:g}Hz-{shape.window}.amiss"
    root = Path(__file__).parent.parent
    sources = [Path(__file__), *(root / "trainer").rglob("*.py"), *(root / "quantize").glob("*.py"), root / "edge/bundle.py"]
    if path.exists() and path.stat().st_mtime > max(source.stat().st_mtime for source in sources):
        return path
    from quantize import quantize  # torch is needed only here
    from trainer.recipe import Recipe, TrainingRecipe
    from trainer.train import train

    n = LEARN_WINDOWS * shape.window // 4
    time_ns = 1_700_000_000_000_000_000 + np.rint(np.arange(n) * 1e9 / shape.rate_hz).astype(np.int64)
    normal = folder / f"{path.stem}.csv"
    write_recording(normal, Recording("normal", shape.names, time_ns, signal(shape, n, seed=0)))
    recipe = Recipe(window=shape.window, rate_hz=shape.rate_hz, training=TrainingRecipe(steps=STEPS))
    train(recipe, [normal], folder / f"{path.stem}.run", overwrite=True)
    quantize(folder / f"{path.stem}.run", path)
    normal.unlink()
    return path


def with_hop(path: Path, hop: int, out: Path) -> None:
    """The same bundle with another hop, and beside it the bare model for those who want only that."""
    manifest, members = verify(path.read_bytes())
    write_bundle(out, msgspec.structs.replace(manifest, hop=hop), members)
    out.with_suffix(".onnx").write_bytes(members["model.onnx"])
