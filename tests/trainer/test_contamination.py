"""What faults among the recordings cost is seen, and that trimming gives most of it back."""

from pathlib import Path

import numpy as np
import pytest
from small_bundle import build, normal

from edge.bundle import Bundle
from edge.signal import Float32
from trainer.contamination import DRAWS, SHARES, Refitted, contaminate
from trainer.stress import Material

LENGTH = 16


def windows(count: int, seed: int) -> Float32:
    """(count, 2, 16)"""
    return np.ascontiguousarray(normal(count * LENGTH, seed).reshape(2, count, LENGTH).transpose(1, 0, 2))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[float, bool], Refitted]:
    bundle = Bundle.open(build(tmp_path_factory.mktemp("spoilt") / "small.amiss", scorer="subspace(trace)", windows=400))
    calm, one = windows(150, 3), np.ones(2, np.float32)
    strange = calm[:60].copy()
    strange[:, 1] += 1.5
    material = Material(calm, strange, LENGTH, one, one, 0 * one)
    said: list[str] = []
    made = contaminate(bundle, windows(600, 1), windows(300, 2), material, said.append)
    assert made.windows == 600
    assert len(said) == DRAWS
    assert [point.share for point in made.points] == list(SHARES)
    plain = {(point.share, False): point.plain for point in made.points}
    return plain | {(point.share, True): point.trimmed for point in made.points}


def test_faults_cost_and_trimming_gives_back(found: dict[tuple[float, bool], Refitted]) -> None:
    clean, worst, trimmed = found[0.0, False], found[0.1, False], found[0.1, True]
    assert clean.labelled is not None
    assert worst.labelled is not None
    assert trimmed.labelled is not None
    assert worst.injected < clean.injected - 0.05
    assert worst.labelled < clean.labelled - 0.05
    assert trimmed.injected > worst.injected + 0.5 * (clean.injected - worst.injected)
    assert trimmed.labelled > worst.labelled + 0.5 * (clean.labelled - worst.labelled)


def test_what_is_left_is_what_was_put_in_less_what_was_trimmed(found: dict[tuple[float, bool], Refitted]) -> None:
    for share in SHARES:
        assert found[share, False].left == pytest.approx(share, abs=1e-3)
        assert found[share, True].left <= share / 2
    assert found[0.1, True].noticed < found[0.0, True].noticed / 2, "faults that calibrated make faults ordinary"


def test_without_labels_it_says_nothing_of_them(tmp_path: Path) -> None:
    bundle = Bundle.open(build(tmp_path / "small.amiss", windows=200))
    calm, one = windows(40, 3), np.ones(2, np.float32)
    made = contaminate(
        bundle, windows(200, 1), windows(90, 2), Material(calm, calm[:0], LENGTH, one, one, one), lambda text: None
    )
    assert {point.plain.labelled for point in made.points} == {None}
    again = contaminate(
        bundle, windows(200, 1), windows(90, 2), Material(calm, calm[:0], LENGTH, one, one, one), lambda text: None
    )
    assert again == made, "chance is drawn by seed"
