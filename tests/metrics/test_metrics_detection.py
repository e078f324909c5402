"""AUROC and detection accuracy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from metric_reference import for_all
from sklearn.metrics import accuracy_score, roc_auc_score, roc_curve

from poise.errors import InputError
from poise.metrics import (
    SEPARATION,
    Bootstrap,
    accuracy_at_threshold,
    auroc,
    detection_accuracy,
    false_positive_rate,
    separation,
)

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


def test_false_positive_rate_by_hand() -> None:
    scores, attacked = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [1, 0, 1, 0, 1, 0]
    assert false_positive_rate(scores, attacked, 0.3) == 0
    assert false_positive_rate(scores, attacked, 0.6) == pytest.approx(1 / 3)
    assert false_positive_rate(scores, attacked) == pytest.approx(2 / 3)
    assert false_positive_rate([1, 1, 1], [1, 0, 0]) == 1
    assert false_positive_rate([2, 1], [1, 0]) == 0
    assert false_positive_rate([0, 1], [1, 0]) == 1


def check_false_positives(metric) -> None:
    def same(table) -> None:
        s, p = table
        for recall in (0.5, 0.95, 1.0):
            false_rate, true_rate, _ = roc_curve(p, s, drop_intermediate=False)
            assert metric(s, p, recall) == pytest.approx(false_rate[true_rate >= recall - 1e-9].min(), abs=1e-9)
        assert accuracy_at_threshold(s, p) == pytest.approx(accuracy_score(p, s > 0.5))

    for_all(same, scored(), examples=60)


def splits_ties(s, p, recall) -> float:
    """The broken twin: rows of equal score are let through one by one, the attacked first."""
    kinds = p[np.lexsort((1 - p, -s))]
    at = int(np.argmax(np.cumsum(kinds) >= recall * kinds.sum() - 1e-9))
    return float(np.cumsum(1 - kinds)[at] / (1 - kinds).sum())


def test_false_positives_and_plain_accuracy_agree_with_scikit_learn_and_the_check_can_fail() -> None:
    check_false_positives(false_positive_rate)
    with pytest.raises(AssertionError):
        check_false_positives(splits_ties)


def test_separation_is_the_four_figures() -> None:
    twins = np.random.default_rng(0).normal(size=(40, 2)) + np.array([0, 1])
    columns = twins.T.ravel(), np.repeat([0, 1], 40)
    singly = [metric(*columns) for metric in (auroc, detection_accuracy, accuracy_at_threshold, false_positive_rate)]
    assert separation(twins) == pytest.approx(singly, abs=1e-12)
    assert len(SEPARATION) == len(singly)
    third = np.column_stack([twins[:, 0], np.random.default_rng(1).normal(size=40), twins[:, 1]])
    assert separation(third)[0] == pytest.approx(roc_auc_score(np.repeat([0, 0, 1], 40), third.T.ravel()), abs=1e-12)


def test_intervals_draw_clean_and_attacked_together() -> None:
    """A score that raises every image by the same amount separates nothing across images, but a lot within them."""
    base = np.random.default_rng(1).normal(size=200)
    together = Bootstrap(resamples=400).interval(separation, np.stack([base, base + 0.1], axis=1))
    one_by_one = Bootstrap(resamples=400).interval(auroc, np.append(base, base + 0.1), np.repeat([0, 1], 200))
    assert together.low[0] <= together.value[0] <= together.high[0]
    assert together.high[0] - together.low[0] < (one_by_one.high - one_by_one.low) / 4


def test_all_resamples_at_once_are_one_after_another() -> None:
    scores, attacked = np.random.default_rng(2).integers(0, 6, 30) / 5, np.arange(30) % 2
    for metric in (accuracy_at_threshold, false_positive_rate):
        at_once = Bootstrap(resamples=50).interval(metric, scores, attacked)
        one_by_one = Bootstrap(resamples=50).interval(lambda s, p, metric=metric: metric(s, p), scores, attacked)
        assert (at_once.low, at_once.high) == pytest.approx((one_by_one.low, one_by_one.high), abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: false_positive_rate([1, 2], [0, 1], 0), "recall must be in (0, 1], got 0"),
        (lambda: auroc([0.5], [1, 0]), "auroc: scores and positive must have the same length, got 1 and 2"),
        (lambda: separation([1.0, 2.0]), "versions must be (n, 2 or more) scores, the last attacked, got (2,)"),
        (lambda: separation(np.zeros((0, 2))), "scores"),
        (lambda: separation([[np.nan, 1.0]]), "finite"),
    ],
)
def test_bad_input_is_one_line(call, message) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("metric", [auroc, detection_accuracy, false_positive_rate])
def test_needs_both_kinds(metric) -> None:
    with pytest.raises(InputError, match="positive must contain both 0 and 1, got only 1"):
        metric([0.5, 0.6], [1, 1])
