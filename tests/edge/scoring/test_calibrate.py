import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.scoring.calibrate import Calibrator


def test_p_values_on_fresh_normal_scores_are_no_smaller_than_uniform() -> None:
    """The promise P(p ≤ α) ≤ α, averaged over calibrations, with its control: in-sample scores do not keep it."""
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(300):
        calibrator = Calibrator.fit(rng.gamma(2.0, size=99).astype(np.float32))
        kept.append((calibrator.p_value(rng.gamma(2.0, size=200).astype(np.float32)) <= 0.05).mean())
    assert np.mean(kept) == pytest.approx(0.05, abs=0.006)
    overfitted = Calibrator.fit(rng.gamma(2.0, size=99).astype(np.float32) * 0.8)
    assert (overfitted.p_value(rng.gamma(2.0, size=20000).astype(np.float32)) <= 0.05).mean() > 0.07


@given(st.lists(st.floats(0, 100, width=32), min_size=1, max_size=60), st.floats(-10, 200, width=32))
def test_p_is_within_its_bounds_and_counts_what_is_at_least_as_strange(scores: list[float], score: float) -> None:
    calibrator = Calibrator.fit(np.array(scores, np.float32))
    (p,) = calibrator.p_value(np.array([score], np.float32))
    at_least = sum(s >= np.float32(score) for s in np.array(scores, np.float32))
    assert 0 < p <= 1
    if at_least or np.float32(score) == np.float32(max(scores)):
        assert p == pytest.approx((1 + at_least) / (len(scores) + 1))
    else:
        assert p <= calibrator.floor


@given(st.lists(st.floats(0, 100, width=32), min_size=1, max_size=60), st.floats(0.001, 1))
def test_score_at_is_the_lowest_score_that_is_this_rare(scores: list[float], p_value: float) -> None:
    calibrator = Calibrator.fit(np.array(scores, np.float32))
    score = calibrator.score_at(p_value)
    if np.isfinite(score):
        at, below = calibrator.p_value(np.array([score, np.nextafter(np.float32(score), np.float32(-np.inf))], np.float32))
        assert at <= p_value + 1e-9
        assert below > p_value - 1e-9


@given(st.lists(st.floats(0, 100, width=32), min_size=1, max_size=60), st.integers(0, 2**32 - 1))
def test_beyond_all_scores_p_goes_on_falling_from_the_floor(scores: list[float], seed: int) -> None:
    calibrator = Calibrator.fit(np.array(scores, np.float32))
    more = np.sort(np.random.default_rng(seed).uniform(-10, 1e6, 50)).astype(np.float32)
    highest = np.float32(max(scores))
    p = calibrator.p_value(np.concatenate([[np.nextafter(highest, np.float32(np.inf))], more[more > highest]]))
    assert p[0] == pytest.approx(calibrator.floor, rel=1e-2)
    assert (np.diff(p) < 0).all()
    assert [calibrator.score_at(float(one)) for one in p[1:]] == pytest.approx(more[more > highest].tolist(), rel=1e-4)


# Two scores beyond all others have one p-value when they differ by less than a 10^15th of the tail's scale, as about zero.
@given(
    st.lists(st.floats(0, 100, width=32), min_size=1, max_size=60),
    st.floats(-10, 300, width=32).filter(lambda threshold: threshold == 0 or abs(threshold) > 1e-4),
    st.floats(-10, 300, width=32),
)
def test_a_threshold_on_the_score_is_one_on_p(scores: list[float], threshold: float, score: float) -> None:
    """Exactly so where the threshold is one of the scores or beyond them; else at the next of them that is higher."""
    calibrator = Calibrator.fit(np.array(scores, np.float32))
    higher = [s for s in map(np.float32, scores) if s >= np.float32(threshold)]
    limit = min(higher) if higher else np.float32(threshold)
    at = np.array([score, limit, np.nextafter(limit, np.float32(np.inf))], np.float32)
    assert (calibrator.p_value(at) <= calibrator.beyond(threshold)).tolist() == [bool(at[0] > limit), False, True]


def test_infinitely_strange_is_as_rare_as_it_gets() -> None:
    calibrator = Calibrator.fit(np.arange(9, dtype=np.float32))
    (p,) = calibrator.p_value(np.array([np.inf], np.float32))
    assert 0 < p < 1e-20


def test_nothing_to_calibrate_on_is_refused() -> None:
    with pytest.raises(ValueError, match="0 scores"):
        Calibrator.fit(np.empty(0, np.float32))
