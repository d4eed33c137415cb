"""Figures against values that are known, and against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.metrics import auc_pr, auroc, episodes, judge_alerts

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
