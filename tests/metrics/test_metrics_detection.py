"""AUROC and detection accuracy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from metric_reference import for_all
from sklearn.metrics import roc_auc_score, roc_curve

from poise.errors import InputError
from poise.metrics import accuracy_at_threshold, auroc, detection_accuracy

SCORES, ATTACKED = [0.9, 0.8, 0.3, 0.7, 0.2, 0.1], [1, 1, 1, 0, 0, 0]


def scored() -> st.SearchStrategy:
    number = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6))
    rows = st.lists(st.tuples(number, st.integers(0, 1)), min_size=2, max_size=30)
    table = rows.map(lambda r: (np.array([a for a, _ in r]), np.array([b for _, b in r])))
    return table.filter(lambda t: 0 < t[1].sum() < len(t[1]))


def test_hand_worked_vector() -> None:
    assert auroc(SCORES, ATTACKED) == pytest.approx(0.888888889, abs=1e-9)
    assert detection_accuracy(SCORES, ATTACKED) == pytest.approx(0.833333333, abs=1e-9)
    assert accuracy_at_threshold(SCORES, ATTACKED) == pytest.approx(0.666666667, abs=1e-9)
    assert accuracy_at_threshold([0.5, 0.5], [0, 0]) == 1


def test_ties_count_half() -> None:
    assert auroc([1, 1, 1, 1], [1, 0, 1, 0]) == 0.5
    assert detection_accuracy([1, 1, 1, 1], [1, 0, 1, 0]) == 0.5
    assert auroc([2, 1, 1], [1, 1, 0]) == 0.75


def test_agree_with_scikit_learn_and_with_pairs() -> None:
    def same(table) -> None:
        s, p = table
        assert auroc(s, p) == pytest.approx(roc_auc_score(p, s), abs=1e-9)
        ups, downs = s[p == 1], s[p == 0]
        pairs = np.sign(ups[:, None] - downs[None]) / 2 + 0.5
        assert auroc(s, p) == pytest.approx(pairs.mean(), abs=1e-9)
        false_rate, true_rate, _ = roc_curve(p, s, drop_intermediate=False)
        assert detection_accuracy(s, p) == pytest.approx((1 + true_rate - false_rate).max() / 2, abs=1e-9)

    for_all(same, scored(), examples=120)


def check_reversal_mirrors(metric) -> None:
    def holds(table) -> None:
        s, p = table
        assert metric(-s, p) == pytest.approx(1 - metric(s, p), abs=1e-9)

    for_all(holds, scored())


def counts_ties_as_wins(s, p) -> float:
    return float((s[p == 1][:, None] >= s[p == 0][None]).mean())


def test_reversed_scores_mirror_the_area_and_the_check_can_fail() -> None:
    check_reversal_mirrors(auroc)
    with pytest.raises(AssertionError):
        check_reversal_mirrors(counts_ties_as_wins)


def test_detection_accuracy_is_never_below_one_half() -> None:
    assert detection_accuracy([0.1, 0.9], [1, 0]) == 0.5


@pytest.mark.parametrize("metric", [auroc, detection_accuracy])
def test_needs_both_kinds(metric) -> None:
    with pytest.raises(InputError, match="positive must contain both 0 and 1, got only 1"):
        metric([0.5, 0.6], [1, 1])
