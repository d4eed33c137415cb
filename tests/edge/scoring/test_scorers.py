import numpy as np
import pytest

from edge.scoring.scorers import SCORERS, MahalanobisScorer, NearestNeighbourScorer
from edge.testing import check_scorer


@pytest.mark.parametrize("name", SCORERS)
def test_every_scorer_keeps_the_contract(name: str) -> None:
    check_scorer(SCORERS[name])


def test_mahalanobis_sees_a_broken_correlation_that_no_single_feature_shows() -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(size=(2000, 1))
    z = np.hstack([common, common + 0.1 * rng.normal(size=(2000, 1))]).astype(np.float32)
    scorer = MahalanobisScorer.fit(z)
    together, apart = scorer.score(np.array([[2, 2], [2, -2]], np.float32))
    assert apart > 5 * together


def test_mahalanobis_scores_ordinary_windows_about_one_whatever_their_size() -> None:
    rng = np.random.default_rng(0)
    for k in (2, 40):
        z = (rng.normal(size=(4000, k)) * 10 ** rng.uniform(-3, 3, k)).astype(np.float32)
        assert np.median(MahalanobisScorer.fit(z).score(z)) == pytest.approx(1, abs=0.25)


def test_mahalanobis_with_fewer_windows_than_features_is_finite() -> None:
    z = np.random.default_rng(0).normal(size=(10, 50)).astype(np.float32)
    assert np.isfinite(MahalanobisScorer.fit(z).score(z + 3)).all()


def test_neighbours_know_two_modes_and_the_empty_middle_between_them() -> None:
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal(-5, 0.3, (500, 4)), rng.normal(5, 0.3, (500, 4))]).astype(np.float32)
    modes = np.array([[-5] * 4, [5] * 4], np.float32)
    middle = np.zeros((1, 4), np.float32)
    knn, blob = NearestNeighbourScorer.fit(z), MahalanobisScorer.fit(z)
    assert knn.score(middle) > 5 * knn.score(modes).max()
    assert blob.score(middle) < blob.score(modes).max(), "the control: one blob is blind here"


def test_neighbours_keep_a_rare_mode_in_a_bounded_memory() -> None:
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal(0, 1, (3000, 3)), rng.normal(30, 0.1, (4, 3))]).astype(np.float32)
    scorer = NearestNeighbourScorer.fit(rng.permutation(z))
    assert len(scorer.arrays()["prototypes"]) == NearestNeighbourScorer.PROTOTYPES
    assert scorer.score(np.full((1, 3), 30, np.float32)) < 0.1


@pytest.mark.parametrize("name", SCORERS)
def test_features_that_are_not_finite_are_refused_by_fit(name: str) -> None:
    z = np.ones((10, 3), np.float32)
    z[3, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        SCORERS[name].fit(z)
