import numpy as np
import pytest

from edge.scoring.evidence import MOST, Evidence
from edge.signal import Bool


def windows(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.float32)[:, None, None] * np.ones((1, 2, 4), np.float32)


def fed(strange: Bool, active: Bool, score: np.ndarray, pieces: int) -> Evidence:
    evidence, n = Evidence(), len(strange)
    for part in np.array_split(np.arange(n), pieces):
        evidence.update(windows(n)[part], score[part], strange[part], active[part])
    return evidence


@pytest.mark.parametrize("n", [1, 7, 8, 9, 100, 1000])
@pytest.mark.parametrize("pieces", [1, 7])
def test_few_windows_of_an_episode_are_kept_the_strangest_among_them_and_others_evenly(n: int, pieces: int) -> None:
    score = np.random.default_rng(n).random(n).astype(np.float32)
    evidence = fed(np.ones(n, bool), np.ones(n, bool), score, pieces)
    kept = evidence.x[:, 0, 0]
    assert min(n, MOST - 1) <= len(kept) <= MOST
    assert int(score.argmax()) in kept
    assert (np.diff(kept) > 0).all(), "in the order in which they came, none twice"
    if n >= 100:
        assert np.diff(kept).max() < n / 2.5


def test_the_last_episode_stays_until_there_is_another() -> None:
    active = np.zeros(100, bool)
    active[10:20] = True
    strange = active.copy()
    strange[[8, 9, 50]] = True  # what led to it counts; what led to nothing does not
    kept = fed(strange, active, np.ones(100, np.float32), 9).x[:, 0, 0]
    assert kept.min() == 8
    assert kept.max() <= 19


def test_what_is_kept_is_a_copy() -> None:
    x, yes = windows(1), np.ones(1, bool)
    evidence = Evidence()
    evidence.update(x, np.ones(1, np.float32), yes, yes)
    x[:] = -1
    assert (evidence.x == 0).all()


def test_before_the_first_episode_there_is_nothing() -> None:
    assert len(Evidence().x) == 0
