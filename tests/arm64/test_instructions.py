"""Encoder and agent take as many instructions on a small board as they did: a gate that no busy machine can spoil."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.arm64 import BATCHES, FIGURES, GATE, PRECISIONS, VARIANTS, agent_instructions, agents, models, windows
from benchmarks.models import SHAPES
from quantize.emulation import PROCESSORS, find
from quantize.target import boards

WITHIN = 0.05
Figures = dict[str, dict[int, int]]
ANEW = "if that is meant: python -m benchmarks.arm64 --write"


def off(counted: Mapping[str, Mapping[Any, int]], known: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What differs by more than `WITHIN`; `known` is JSON, whose keys are texts."""
    return [
        f"{name}, {case}: {n} instructions a window, {known[name][str(case)]} were written down"
        for name, by_case in counted.items()
        for case, n in by_case.items()
        if abs(n / known[name][str(case)] - 1) > WITHIN
    ]


def of_another_day(known: Mapping[str, Mapping[str, int]], factor: float) -> dict[str, dict[str, int]]:
    return {name: {case: round(n * factor) for case, n in by.items()} for name, by in known.items()}


@pytest.fixture(scope="session")
def built() -> dict[str, bytes]:
    return models(GATE)


@pytest.fixture(scope="session", params=list(PROCESSORS))
def counted(request: pytest.FixtureRequest, built: dict[str, bytes]) -> tuple[str, Figures]:
    return request.param, find().instructions(built, windows(), request.param, BATCHES)


def test_it_takes_as_many_as_it_did(counted: tuple[str, Figures]) -> None:
    processor, figures = counted
    known = json.loads(FIGURES.read_text())[processor]["model"]
    assert {variant: {str(b) for b in BATCHES} for variant in VARIANTS} == {v: set(by) for v, by in known.items()}
    assert not off(figures, known), ANEW
    for factor in (0.9, 1.1):  # the control
        wrong = off(figures, of_another_day(known, factor))
        assert len(wrong) == len(VARIANTS) * len(BATCHES), "a tenth more or less is to be seen"


def test_boards_name_the_kind_of_int8_that_takes_fewer(counted: tuple[str, Figures]) -> None:
    processor, figures = counted
    for board in boards().values():
        if board.processor == processor:
            other = {"signed": "unsigned", "unsigned": "signed"}[board.activations]
            assert all(figures[board.activations][b] < figures[other][b] for b in BATCHES), f"{board.name}: {figures}"


@pytest.fixture(scope="session")
def devices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    return agents(tmp_path_factory.mktemp("agents"))


@pytest.mark.parametrize("processor", PROCESSORS)
def test_so_does_the_agent_from_bytes_to_alarm(devices: dict[str, dict[str, Path]], processor: str) -> None:
    figures = agent_instructions(find(), devices, processor)
    known = json.loads(FIGURES.read_text())[processor]["agent"]
    assert {name: set(by) for name, by in known.items()} == {shape.name: set(PRECISIONS) for shape in SHAPES}
    assert not off(figures, known), ANEW
    for factor in (0.9, 1.1):  # the control
        assert len(off(figures, of_another_day(known, factor))) == len(SHAPES) * len(PRECISIONS)
