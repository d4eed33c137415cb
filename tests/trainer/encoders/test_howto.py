"""docs/howto/add-an-encoder.md is true: its encoder passes what it says that one has to pass."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from quantize.testing import check_export, check_int8
from trainer import recipe as recipes
from trainer.encoders import ENCODERS
from trainer.model import Detector
from trainer.recipe import EncoderRecipe, Recipe
from trainer.testing import check_encoder

BLOCKS = re.findall(
    r"^```python\n(.*?)^```", (Path(__file__).parents[3] / "docs/howto/add-an-encoder.md").read_text("utf-8"), re.M | re.S
)


def test_the_encoder_of_the_howto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, entry, kind, sizes = BLOCKS
    names: dict[str, object] = {}
    exec(compile(code, "linear.py", "exec"), names)
    made = eval(f"{{{entry}}}", names)
    assert set(eval(f"{{{sizes}}}")) == set(made) == {"linear"}
    assert re.findall(r'"(\w+)"', kind) == [*ENCODERS, "linear", "tcn"]  # the last one is the default
    Patches = made["linear"]
    for stride in (2, 4, 8):
        recipe = EncoderRecipe(width=16, depth=2, embedding=8, stride=stride)  # type: ignore[arg-type]
        check_encoder(lambda channels, recipe=recipe: Patches(channels, recipe))  # type: ignore[misc]
    for size, (width, depth) in eval(f"{{{sizes}}}")["linear"].items():
        parameters = sum(p.numel() for p in Patches(8, EncoderRecipe(width=width, depth=depth)).parameters())
        assert parameters == pytest.approx(1000 * int(size.removesuffix("k")), rel=0.2)

    monkeypatch.setitem(ENCODERS, "linear", Patches)
    monkeypatch.setitem(recipes.SIZES, "linear", eval(f"{{{sizes}}}")["linear"])
    windows = (np.cumsum(np.random.default_rng(0).normal(size=(160, 3, 34)), axis=2) + 50).astype(np.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = Detector(3, Recipe(encoder=EncoderRecipe(kind="linear", size="20k")))  # type: ignore[arg-type]
        detector.fit_normalisation(windows)
    check_int8(check_export(detector.eval(), windows, tmp_path), windows[:100], windows[100:])
