"""The encoder takes as many instructions on a small board as it did: a regression gate that no busy machine can spoil."""

import json

import pytest

from benchmarks.arm64 import BATCHES, FIGURES, GATE, VARIANTS, models, windows
from quantize.emulation import PROCESSORS, find
from quantize.target import boards

WITHIN = 0.05
Figures = dict[str, dict[int, int]]


def off(counted: Figures, known: dict[str, dict[str, int]]) -> list[str]:
    """What differs by more than `WITHIN`; `known` is JSON, whose keys are texts."""
    return [
        f"{variant}, batch {batch}: {n} instructions a window, {known[variant][str(batch)]} were written down"
        for variant, by_batch in counted.items()
        for batch, n in by_batch.items()
        if abs(n / known[variant][str(batch)] - 1) > WITHIN
    ]


@pytest.fixture(scope="session")
def built() -> dict[str, bytes]:
    return models(GATE)


@pytest.fixture(scope="session", params=list(PROCESSORS))
def counted(request: pytest.FixtureRequest, built: dict[str, bytes]) -> tuple[str, Figures]:
    return request.param, find().instructions(built, windows(), request.param, BATCHES)


def test_it_takes_as_many_as_it_did(counted: tuple[str, Figures]) -> None:
    processor, figures = counted
    known = json.loads(FIGURES.read_text())[processor]
    assert {variant: {str(b) for b in BATCHES} for variant in VARIANTS} == {v: set(by) for v, by in known.items()}
    assert not off(figures, known), "if that is meant: python -m benchmarks.arm64 --write"
    for factor in (0.9, 1.1):  # the control
        wrong = {v: {b: round(n * factor) for b, n in by.items()} for v, by in known.items()}
        assert len(off(figures, wrong)) == len(VARIANTS) * len(BATCHES), "a tenth more or less is to be seen"


def test_boards_name_the_kind_of_int8_that_takes_fewer(counted: tuple[str, Figures]) -> None:
    processor, figures = counted
    for board in boards().values():
        if board.processor == processor:
            other = {"signed": "unsigned", "unsigned": "signed"}[board.activations]
            assert all(figures[board.activations][b] < figures[other][b] for b in BATCHES), f"{board.name}: {figures}"
