"""Brier scores and negative log-likelihood."""

from __future__ import annotations

import math

import numpy as np
import pytest
from metric_reference import P4, Y4, random_columns, random_probabilities
from sklearn.metrics import brier_score_loss, log_loss

from poise.metrics import brier, brier_rows, nll, nll_rows, top_label_brier


def test_hand_worked_vectors() -> None:
    assert brier(P4, Y4) == pytest.approx(0.48, abs=1e-12)
    assert brier(P4, Y4) / 3 == pytest.approx(0.16, abs=1e-12)
    assert nll(P4, Y4) == pytest.approx(0.818861544, abs=1e-9)
    confidence, correct = P4.max(axis=1), P4.argmax(axis=1) == Y4
    assert top_label_brier(confidence, correct) == pytest.approx(0.165, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_agree_with_scikit_learn(classes: int) -> None:
    p, y = random_probabilities(300, classes, seed=classes)
    assert nll(p, y) == pytest.approx(log_loss(y, p, labels=range(classes)), rel=1e-9)
    binary = sum(brier_score_loss(y == k, p[:, k]) for k in range(classes))
    assert brier(p, y) == pytest.approx(binary, rel=1e-9)


def test_top_label_agrees_with_scikit_learn() -> None:
    c, h = random_columns(300, 8)
    assert top_label_brier(c, h) == pytest.approx(brier_score_loss(h, c), rel=1e-9)


def test_rows_average_to_the_scores() -> None:
    p, y = random_probabilities(50, 4, seed=1)
    assert brier_rows(p, y).shape == nll_rows(p, y).shape == (50,)
    assert brier_rows(p, y).mean() == pytest.approx(brier(p, y))
    assert nll_rows(p, y).mean() == pytest.approx(nll(p, y))


def test_certain_answers() -> None:
    assert brier([[1.0, 0.0]], [0]) == nll([[1.0, 0.0]], [0]) == 0
    assert brier([[1.0, 0.0]], [1]) == 2
    assert nll([[1.0, 0.0]], [1]) == pytest.approx(-math.log(1e-12))


def check_truth_scores_best(score) -> None:
    """A proper score is least, on average over labels drawn from q, for the forecast q."""
    q = np.array([0.5, 0.3, 0.2])
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    truth = score(np.tile(q, (100, 1)), labels)
    for other in ([0.6, 0.2, 0.2], [0.4, 0.4, 0.2], [1 / 3, 1 / 3, 1 / 3], [0.9, 0.05, 0.05]):
        assert truth < score(np.tile(other, (100, 1)), labels)


@pytest.mark.parametrize("score", [brier, nll])
def test_scores_are_proper(score) -> None:
    check_truth_scores_best(score)


def test_an_improper_score_fails_the_check() -> None:
    with pytest.raises(AssertionError):
        check_truth_scores_best(lambda p, y: float(np.mean(1 - p[np.arange(len(y)), y])))


def test_inputs_are_left_alone() -> None:
    p = P4.copy()
    brier(p, Y4)
    assert (p == P4).all()
