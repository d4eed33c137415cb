from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.scoring.smoothing import Smoother, smoothed


def feed(scores: list[float], positions: list[int] | None = None, reach: float = 3) -> tuple[list[float], list[int]]:
    at = np.array(positions if positions is not None else range(len(scores)), np.int64)
    means, seen = Smoother(reach, 1, 4).feed(at, np.array(scores, np.float32))
    return means.tolist(), seen.tolist()


def test_the_mean_of_the_newest_and_those_within_reach() -> None:
    scores = np.random.default_rng(0).gamma(9, size=50)
    means, seen = feed(scores.tolist())
    assert means[3:] == pytest.approx(np.convolve(scores, np.ones(4) / 4, "valid"), rel=1e-5)
    assert seen == [1, 2, 3] + [4] * 47


def test_a_start_raises_no_alarm_by_itself_and_hides_none_for_long() -> None:
    assert feed([8, 8, 8, 8])[0] == [2, 4, 6, 8]
    assert feed([-2, -2, -2, -2])[0] == [-2] * 4, "nor does it look strange where nothing is"


def test_nothing_reaches_across_a_gap_or_backwards() -> None:
    means, seen = feed([8, 8, 8, 8, 0, 0], [0, 1, 2, 3, 10, 11])
    assert (means[4:], seen[4:]) == ([0, 0], [1, 2])
    assert feed([8, 8, 8, 8, 0], [0, 1, 2, 3, 0])[0][4] == 0
    assert feed([8, 8, 8, 8, 0], [0, 1, 2, 3, 4])[0][4] == 6, "the control: without a gap it does"
    assert feed([8, 8, 8, 8, 0], [0, 1, 2, 3, 5])[0][4] == 6, "a stamp that jitters is no gap"


@given(st.lists(st.floats(-20, 1e6, width=32), min_size=1, max_size=60), st.lists(st.integers(0, 60), max_size=5), st.data())
def test_how_scores_are_split_into_calls_never_matters(scores: list[float], cuts: list[int], data: st.DataObject) -> None:
    steps = data.draw(st.lists(st.sampled_from([1, 1, 1, 1, 9, -5]), min_size=len(scores), max_size=len(scores)))
    at, values = np.cumsum(steps), np.array(scores, np.float32)
    whole = Smoother(3, 1, 4).feed(at, values)
    parts = Smoother(3, 1, 4)
    edges = [0, *sorted(min(cut, len(scores)) for cut in cuts), len(scores)]
    found = [parts.feed(at[a:b], values[a:b]) for a, b in pairwise(edges)]
    assert np.array_equal(np.concatenate([mean for mean, _ in found]), whole[0])
    assert np.array_equal(np.concatenate([seen for _, seen in found]), whole[1])


def test_after_the_strangest_comes_the_ordinary_again() -> None:
    means, _ = feed([1e6, 1e6, 0, 0, 0, 0, 0, 0])
    assert means[-1] == pytest.approx(0)


def test_no_reach_is_no_smoothing() -> None:
    assert feed([1, 5, 2], reach=0) == ([1, 5, 2], [1, 1, 1])


def test_a_wider_hop_averages_over_no_less_time() -> None:
    assert [Smoother(48, hop, 64).count for hop in (1, 16, 32, 64)] == [49, 4, 3, 2]


def test_only_whole_means_calibrate_where_there_are_any() -> None:
    at, scores = np.r_[0:6, 20:22], np.arange(8, dtype=np.float32)
    assert smoothed(Smoother(3, 1, 4), at, scores)[0] == pytest.approx([1.5, 2.5, 3.5])
    assert len(smoothed(Smoother(30, 1, 4), at, scores)[0]) == 8
