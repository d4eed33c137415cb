"""A size means about the same number of parameters for every kind, and what a recipe says is what is built."""

from typing import get_args, get_type_hints

import pytest
import torch

from trainer.encoders import ENCODERS
from trainer.recipe import DEFAULT_SIZE, SIZES, EncoderRecipe, Size, contradiction


def parameters(recipe: EncoderRecipe) -> int:
    return sum(p.numel() for p in ENCODERS[recipe.kind](8, recipe).parameters())  # type: ignore[attr-defined]


def test_every_kind_has_every_size() -> None:
    assert set(ENCODERS) == set(SIZES) == set(get_args(get_type_hints(EncoderRecipe)["kind"]))
    assert all(tuple(sizes) == get_args(Size) for sizes in SIZES.values())


@pytest.mark.parametrize("size", get_args(Size))
@pytest.mark.parametrize("kind", SIZES)
def test_a_size_is_what_it_says(kind: str, size: Size) -> None:
    recipe = EncoderRecipe(kind=kind, size=size)  # type: ignore[arg-type]
    assert contradiction(recipe) is None
    assert parameters(recipe) == pytest.approx(1000 * int(size.removesuffix("k")), rel=0.2)


def test_without_a_size_it_is_the_default_one_but_for_what_is_said() -> None:
    assert EncoderRecipe().shape == SIZES["tcn"][DEFAULT_SIZE] == (48, 4)  # what the TCN has always been
    assert EncoderRecipe(width=20).shape == (20, 4)
    assert EncoderRecipe(kind="gru", depth=2).shape == (SIZES["gru"][DEFAULT_SIZE][0], 2)
    assert EncoderRecipe(size="200k").shape == (128, 4)


def test_the_default_tcn_is_the_same_to_the_bit() -> None:
    def drawn(recipe: EncoderRecipe) -> list[torch.Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return list(ENCODERS[recipe.kind](5, recipe).state_dict().values())  # type: ignore[attr-defined]

    ours = drawn(EncoderRecipe())
    for other in (EncoderRecipe(width=48, depth=4), EncoderRecipe(size="30k")):
        assert all(torch.equal(a, b) for a, b in zip(ours, drawn(other), strict=True))
    # Weights 5·48·5 + 4·48·48·3 + 48·16, biases of the projection, and five normalisation layers.
    assert sum(t.numel() for t in ours) == 1200 + 27648 + 768 + 16 + 5 * (4 * 48 + 1)
    assert not torch.equal(ours[-2], drawn(EncoderRecipe(depth=5))[-2])
