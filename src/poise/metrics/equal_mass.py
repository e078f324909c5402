"""Calibration errors over groups of equal size: adaptive ECE and the debiased error of Kumar et al."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from poise.metrics._columns import FloatArray, Statistic, answers, positive_integer, ratio, whole


def adaptive_ece(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> float:
    """ECE over groups of equal size: sum_m (n_m / N) |acc_m - conf_m|.

    Nixon et al. 2019. Rows are sorted by confidence (stable: ties keep their order) and cut into groups whose sizes
    differ by at most one, the larger ones first. Where more groups than rows are asked for, each row is a group.

    Args:
        confidence: (n,) in [0, 1].
        correct: (n,) in {0, 1}.
        bins: number of groups.

    Returns:
        The error, in [0, 1].

    Raises:
        InputError: columns empty, out of range or of different lengths; bins below 1.

    Deviation: focal-calibration interpolates edges of groups (lo, hi], which drops the smallest row; none is here.

    >>> round(adaptive_ece([0.9, 0.8, 0.6, 0.5], [1, 1, 0, 1], bins=2), 2)
    0.1
    """
    return whole(adaptive_ece_statistic(confidence, correct, bins), confidence)


def debiased_ece(confidence: ArrayLike, correct: ArrayLike, bins: int = 15, *, debias: bool = True) -> float:
    """Root mean squared calibration error over groups of equal size, less its bias from sampling.

    Kumar et al. 2019: sqrt(max(0, sum_m (n_m / N) ((conf_m - acc_m)^2 - acc_m (1 - acc_m) / (n_m - 1)))). A group
    of fewer than two rows contributes 0. Groups as in `adaptive_ece`.

    Args:
        confidence: (n,) in [0, 1].
        correct: (n,) in {0, 1}.
        bins: number of groups.
        debias: False gives the plug-in estimate, without the subtraction and with every group.

    Returns:
        The error, in [0, 1]; 0 where the estimate of its square is negative.

    Raises:
        InputError: columns empty, out of range or of different lengths; bins below 1.

    >>> round(debiased_ece([0.9, 0.9, 0.9, 0.9], [1, 0, 0, 0], bins=1), 4)
    0.6
    """
    return whole(debiased_ece_statistic(confidence, correct, bins, debias=debias), confidence)


def adaptive_ece_statistic(confidence: ArrayLike, correct: ArrayLike, bins: int = 15) -> Statistic:
    """`adaptive_ece` as a function of counts (b, n), see `Statistic`."""
    scores, hits = answers(confidence, correct, "adaptive_ece")
    positive_integer(bins, "adaptive_ece: bins")
    order = np.argsort(scores, kind="stable")
    residual = (hits - scores)[order]

    def statistic(counts: FloatArray) -> FloatArray:
        sizes, (gaps,) = _group_sums(counts[:, order], bins, residual)
        return np.asarray(np.abs(gaps).sum(axis=1) / sizes.sum(axis=1))

    return statistic


def debiased_ece_statistic(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 15, *, debias: bool = True
) -> Statistic:
    """`debiased_ece` as a function of counts (b, n), see `Statistic`."""
    scores, hits = answers(confidence, correct, "debiased_ece")
    positive_integer(bins, "debiased_ece: bins")
    order = np.argsort(scores, kind="stable")
    residual, right = (hits - scores)[order], hits[order]

    def statistic(counts: FloatArray) -> FloatArray:
        sizes, (gap, hit) = _group_sums(counts[:, order], bins, residual, right)
        square, accuracy = ratio(gap, sizes) ** 2, ratio(hit, sizes)
        if debias:
            square = np.where(sizes > 1, square - ratio(accuracy * (1 - accuracy), sizes - 1), 0.0)
        square = np.where(sizes > 0, sizes * square, 0.0)
        return np.asarray(np.sqrt(np.maximum(0.0, square.sum(axis=1) / sizes.sum(axis=1))))

    return statistic


def _group_sums(counts: FloatArray, groups: int, *values: FloatArray) -> tuple[FloatArray, list[FloatArray]]:
    """Sizes of equal-mass groups, and sums of the values in them.

    Args:
        counts: (b, n) of rows already sorted; their copies lie next to each other.
        groups: number of groups; sizes as `numpy.array_split` makes them.
        values: each (n,), sorted likewise.

    Returns:
        (b, groups) sizes and, for each of the values, (b, groups) sums. A row whose copies fall in two groups counts in
        both, by the number of copies.
    """
    position = np.concatenate([np.zeros((len(counts), 1)), np.cumsum(counts, axis=1)], axis=1)
    total = position[:, -1:]
    m = np.arange(groups + 1)
    edges = m * (total // groups) + np.minimum(m, total % groups)
    sums = []
    for value in values:
        running = np.concatenate([np.zeros((len(counts), 1)), np.cumsum(counts * value, axis=1)], axis=1)
        at_edges = [np.interp(e, x, y) for e, x, y in zip(edges, position, running, strict=True)]
        sums.append(np.diff(np.stack(at_edges), axis=1))
    return np.diff(edges, axis=1), sums
