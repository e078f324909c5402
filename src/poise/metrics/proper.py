"""Proper scores: Brier and negative log-likelihood, per row and on average."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from poise.metrics._columns import FloatArray, Statistic, answers, labelled
from poise.metrics.averages import mean_statistic

FLOOR = 1e-12
"""Probabilities below this count as this in `nll`, so that a certain mistake costs 27.6 nats and not infinity."""


def brier(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Brier score of all classes: mean over rows of sum_k (p_k - 1[y = k])^2.

    Brier 1950. Some authors divide by K.

    Args:
        probabilities: (n, K) rows that sum to 1.
        labels: (n,) true classes in 0..K-1.

    Returns:
        The score, in [0, 2]; 0 is best.

    Raises:
        InputError: not probabilities, labels out of range, lengths differ.

    >>> round(brier([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]], [0, 0]), 2)
    0.44
    """
    return float(brier_rows(probabilities, labels).mean())


def nll(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Negative log-likelihood in nats: mean over rows of -log p_y.

    Args:
        probabilities: (n, K) rows that sum to 1; below `FLOOR` they count as `FLOOR`.
        labels: (n,) true classes in 0..K-1.

    Returns:
        The score, in [0, 27.7]; 0 is best.

    Raises:
        InputError: not probabilities, labels out of range, lengths differ.

    >>> round(nll([[0.7, 0.3], [0.5, 0.5]], [0, 1]), 4)
    0.5249
    """
    return float(nll_rows(probabilities, labels).mean())


def top_label_brier(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Brier score of the prediction alone: mean of (confidence - correct)^2.

    Gupta et al. 2021.

    Args:
        confidence: (n,) in [0, 1].
        correct: (n,) in {0, 1}.

    Returns:
        The score, in [0, 1]; 0 is best.

    Raises:
        InputError: columns empty, out of range or of different lengths.

    >>> round(top_label_brier([0.9, 0.6], [1, 0]), 3)
    0.185
    """
    scores, hits = answers(confidence, correct, "top_label_brier")
    return float(np.mean((scores - hits) ** 2))


def brier_rows(probabilities: ArrayLike, labels: ArrayLike) -> FloatArray:
    """sum_k (p_k - 1[y = k])^2 of every row, (n,) in [0, 2]; arguments and errors as `brier`.

    >>> brier_rows([[0.5, 0.5], [1.0, 0.0]], [0, 1]).tolist()
    [0.5, 2.0]
    """
    p, y = labelled(probabilities, labels, "brier")
    error = p.astype(np.float64)
    error[np.arange(len(y)), y] -= 1
    return np.asarray((error**2).sum(axis=1))


def nll_rows(probabilities: ArrayLike, labels: ArrayLike) -> FloatArray:
    """-log p_y of every row in nats, (n,); arguments and errors as `nll`.

    >>> nll_rows([[0.5, 0.5], [1.0, 0.0]], [0, 1]).round(2).tolist()
    [0.69, 27.63]
    """
    p, y = labelled(probabilities, labels, "nll")
    chosen = p[np.arange(len(y)), y].astype(np.float64)
    return np.asarray(-np.log(np.maximum(chosen, FLOOR)))


def brier_statistic(probabilities: ArrayLike, labels: ArrayLike) -> Statistic:
    """`brier` as a function of counts (b, n), see `Statistic`."""
    return mean_statistic(brier_rows(probabilities, labels))


def nll_statistic(probabilities: ArrayLike, labels: ArrayLike) -> Statistic:
    """`nll` as a function of counts (b, n), see `Statistic`."""
    return mean_statistic(nll_rows(probabilities, labels))


def top_label_brier_statistic(confidence: ArrayLike, correct: ArrayLike) -> Statistic:
    """`top_label_brier` as a function of counts (b, n), see `Statistic`."""
    scores, hits = answers(confidence, correct, "top_label_brier")
    return mean_statistic((scores - hits) ** 2)
