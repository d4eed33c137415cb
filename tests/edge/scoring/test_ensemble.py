import numpy as np
import pytest

from edge.scoring.backends import Outputs
from edge.scoring.ensemble import DEFAULT_SCORER, STRANGEST, VIEWS, Ensemble, fit_members, log_scores, parse
from edge.scoring.scorers import SCORERS

CHANNELS = 3


def outputs(n: int, seed: int = 0) -> Outputs:
    rng = np.random.default_rng(seed)
    shapes = [(n, 4), (n, CHANNELS), (n, CHANNELS), (n, 3, CHANNELS), (n, CHANNELS, 8), (n, 4, 4)]
    arrays = [rng.normal(size=shape) for shape in shapes]
    arrays[1] = np.exp(arrays[1])
    return Outputs(*(array.astype(np.float32) for array in arrays))


def fitted(name: str = DEFAULT_SCORER) -> Ensemble:
    return Ensemble.fit(name, outputs(600), outputs(400, seed=1))


@pytest.mark.parametrize("kind", SCORERS)
@pytest.mark.parametrize("view", VIEWS)
def test_every_scorer_can_have_every_view(kind: str, view: str) -> None:
    scores = fitted(f"{kind}({view})").score(outputs(200, seed=2))
    assert scores.shape == (200,)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", ["mahalanobis", "knn(signal)", DEFAULT_SCORER, "kmeans(trace) + marginal(residual) + knn"])
def test_ordinary_windows_score_about_zero(name: str) -> None:
    assert fitted(name).score(outputs(2000, seed=2)).mean() == pytest.approx(0, abs=0.4)


@pytest.mark.parametrize("field", ["trace", "level"])
def test_what_is_strange_to_one_member_only_is_heard(field: str) -> None:
    found = outputs(50, seed=2)
    ensemble = fitted()
    before = ensemble.score(found)
    getattr(found, field)[:, 0] += 8
    assert np.median(ensemble.score(found)) > np.quantile(before, 0.98)
    alone = "subspace(trace)" if field == "level" else "knn(signal)"
    assert np.allclose(log_scores(alone, fit_members(alone, outputs(600)), found), log_scores(
        alone, fit_members(alone, outputs(600)), outputs(50, seed=2)
    )), "the control: the other one is blind to it"  # fmt: skip


def test_stranger_stays_stranger_beyond_what_was_seen() -> None:
    found = outputs(6, seed=2)
    for i in range(6):
        found.level[i] = found.trace[i] = 3.0 * (i + 1)
    scores = fitted().score(found)
    assert (np.diff(scores) > 0).all()


def test_not_finite_is_the_strangest_and_no_more() -> None:
    found = outputs(3)
    found.level[0, 0], found.trace[1, 0, 0], found.level[2] = np.nan, np.inf, 3e38
    scores = fitted().score(found)
    assert (scores > fitted().score(outputs(400, seed=3)).max()).all()
    assert (scores <= STRANGEST).all()


def test_the_same_after_a_round_trip() -> None:
    ensemble, found = fitted(), outputs(100, seed=2)
    again = Ensemble.from_arrays(DEFAULT_SCORER, ensemble.arrays())
    assert np.array_equal(again.score(found), ensemble.score(found))
    with pytest.raises(KeyError):
        Ensemble.from_arrays(DEFAULT_SCORER, {key: a for key, a in ensemble.arrays().items() if key != "0.basis"})


@pytest.mark.parametrize("name", ["", "knn +", "nearest", "knn(sound)", "knn[trace]", "knn(trace"])
def test_a_name_that_says_nothing_is_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(ValueError, match=r"mahalanobis, knn.*signal"):
        parse(name)
