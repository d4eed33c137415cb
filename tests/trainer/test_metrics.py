"""Figures against values that are known, and against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.metrics import (
    auc_pr,
    auroc,
    buffer_length,
    episodes,
    judge_alerts,
    poisson_interval,
    vus_pr,
    wilson_interval,
)

SECOND = 1_000_000_000


def test_known_values() -> None:
    # The example in scikit-learn's documentation of roc_auc_score and average_precision_score.
    score, label = np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1], np.int8)
    assert auroc(score, label) == pytest.approx(0.75)
    assert auc_pr(score, label) == pytest.approx(0.8333, abs=1e-4)


def test_extremes() -> None:
    label = np.array([0, 0, 0, 1], np.int8)
    assert auroc(label.astype(float), label) == 1
    assert auroc(-label.astype(float), label) == 0
    assert auc_pr(label.astype(float), label) == 1
    assert auroc(np.zeros(4), label) == 0.5
    assert auc_pr(np.zeros(4), label) == 0.25  # flagging everything: the share of anomalies
    assert np.isnan(auroc(np.zeros(4), np.zeros(4, np.int8)))
    assert np.isnan(auc_pr(np.zeros(4), np.zeros(4, np.int8)))


rows = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40)


@given(rows)
def test_auroc_is_the_chance_that_it_says(pairs: list[tuple[int, bool]]) -> None:
    score, label = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs])
    if label.all() or not label.any():
        return
    chance = np.mean([(a > b) + 0.5 * (a == b) for a in score[label] for b in score[~label]])
    assert auroc(score, label) == pytest.approx(chance)


@given(rows, st.randoms())
def test_order_of_rows_is_nothing(pairs: list[tuple[int, bool]], random: object) -> None:
    label = np.array([p[1] for p in pairs])
    if label.all() or not label.any():
        return
    shuffled = sorted(pairs)
    for figure in (auroc, auc_pr):
        a = figure(np.array([p[0] for p in pairs], float), label)
        b = figure(np.array([p[0] for p in shuffled], float), np.array([p[1] for p in shuffled]))
        assert a == pytest.approx(b)


@given(st.lists(st.booleans(), max_size=30))
def test_episodes_give_the_label_back(bits: list[bool]) -> None:
    label = np.array(bits, np.int8)
    again = np.zeros_like(label)
    for first, last in episodes(label):
        again[first : last + 1] = 1
    assert np.array_equal(again, label)


def test_alerts() -> None:
    time_ns = np.arange(100, dtype=np.int64) * SECOND
    label = np.zeros(100, np.int8)
    label[20:30] = label[60:70] = 1
    s = SECOND
    found = judge_alerts(time_ns, label, [5 * s, 25 * s], [8 * s, 40 * s], grace_ns=3 * s)
    assert (found.episodes, found.detected, found.delays_s, found.false_alarms) == (2, 1, (5.0,), 1)
    assert found.normal_s == pytest.approx(80)
    # Raised before and still active as the episode begins: it was found at once, and the alert was wrong when it was raised.
    early = judge_alerts(time_ns, label, [15 * s], [], grace_ns=3 * s)
    assert (early.detected, early.delays_s, early.false_alarms) == (2, (0.0, 0.0), 1)
    # Within a window after the end it is still the episode's; later it is not.
    assert judge_alerts(time_ns, label, [32 * s], [33 * s], grace_ns=3 * s).detected == 1
    assert judge_alerts(time_ns, label, [34 * s], [35 * s], grace_ns=3 * s).false_alarms == 1


# VUS-PR. What is pinned was computed by the authors' package, TSB-AD 1.5: generate_curve(label, score, length, "opt", 250).

KNOWN = [
    (200, [(50, 70), (120, 125)], 20, None, 0.6760498595178829),
    (200, [(0, 10), (30, 33), (36, 50), (190, 200)], 31, None, 0.7716347810938341),  # at both ends, and two that grow together
    (60, [(20, 40)], 0, None, 0.7997956604558112),
    (400, [(100, 180), (300, 320)], 125, 1, 0.835323439626715),  # ties
]


def case(n: int, spans: list[tuple[int, int]], digits: int | None) -> tuple[np.ndarray, np.ndarray]:
    label, i = np.zeros(n, np.int8), np.arange(n)
    for start, stop in spans:
        label[start:stop] = 1
    score = np.sin(i * 0.7) * np.cos(i * 0.13) + label * 0.8
    return label, score if digits is None else np.round(score, digits)


@pytest.mark.parametrize(("n", "spans", "length", "digits", "expected"), KNOWN)
def test_vus_pr_is_that_of_its_authors(
    n: int, spans: list[tuple[int, int]], length: int, digits: int | None, expected: float
) -> None:
    label, score = case(n, spans, digits)
    assert vus_pr(score, label, length) == pytest.approx(expected, abs=1e-12)
    assert vus_pr(-score, label, length) < expected - 0.1, "the control: the other way round it is far worse"


def test_vus_pr_beside_the_package_where_it_is() -> None:
    metrics = pytest.importorskip(
        "TSB_AD.evaluation.metrics",
        reason="TSB-AD asks for numpy < 2 and amiss has numpy 2; what it computed for the cases above is pinned. Beside it, "
        "by hand: pip install --no-deps TSB_AD scikit-learn joblib threadpoolctl cloudpickle",
    )
    rng = np.random.default_rng(0)
    for _ in range(4):
        label = np.zeros(int(rng.integers(40, 200)), int)
        for start in rng.integers(len(label) - 1, size=4):
            label[start : start + int(rng.integers(1, 30))] = 1
        score, length = np.round(rng.normal(size=len(label)) + label, 2), int(rng.integers(0, 20))
        theirs = metrics.generate_curve(label, score, length, "opt", 250)[-1]
        assert vus_pr(score, label, length) == pytest.approx(theirs, abs=1e-12)


def test_vus_pr_forgives_labels_that_are_a_little_off() -> None:
    label = np.zeros(300, np.int8)
    label[100:120] = 1
    late = np.roll(label, 5).astype(float)
    assert vus_pr(label.astype(float), label, 20) > vus_pr(late, label, 20) > vus_pr(late, label, 0) + 0.1
    assert np.isnan(vus_pr(late, np.zeros(300, np.int8), 20))
    assert np.isnan(vus_pr(late, np.ones(300, np.int8), 20))


def test_buffer_length() -> None:
    i = np.arange(500)
    tones = np.sin(i * 2 * np.pi / 24), np.sin(i * 2 * np.pi / 24) + 0.9 * np.sin(i * 2 * np.pi / 7), i, np.sin(i * np.pi / 160)
    assert [buffer_length(x) for x in tones] == [24, 49, 125, 125]  # TSB-AD's find_length_rank(x, 1)
    assert buffer_length(np.zeros(50)) == 125


# How sure one may be


def test_poisson_interval() -> None:
    # Garwood's table, as scipy.stats.chi2 gives it.
    assert poisson_interval(0) == pytest.approx((0, 3.688879), abs=1e-5)
    assert poisson_interval(1) == pytest.approx((0.0253178, 5.571643), abs=1e-5)
    assert poisson_interval(200) == pytest.approx((173.240883, 229.721982), abs=1e-4)


@given(st.floats(0, 1), st.floats(1, 1e6))
def test_wilson_interval(share: float, n: float) -> None:
    low, high = wilson_interval(share, n)
    assert 0 <= low <= share + 1e-9
    assert share - 1e-9 <= high <= 1
    assert wilson_interval(0.0, n)[1] == pytest.approx(3.8415 / (n + 3.8415), rel=1e-3)
