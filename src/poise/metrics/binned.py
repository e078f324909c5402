"""Calibration errors over equal-width bins: ECE, MCE, the unweighted mean, and ECE per class."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from poise.metrics._bins import Edges, assign, bin_sums
from poise.metrics._columns import FloatArray, Statistic, answers, labelled, ratio, whole


def ece(confidence: ArrayLike, correct: ArrayLike, bins: int = 15, *, edges: Edges = "right") -> float:
    """Expected calibration error: mean distance of accuracy and confidence over equal-width bins.

    Guo et al. 2017: sum_m (n_m / N) |acc_m - conf_m|. It is at least |accuracy - mean confidence|.

    Args:
        confidence: (n,) confidence of the prediction, in [0, 1].
        correct: (n,) 1 where the prediction is right, 0 where it is wrong.
        bins: number of bins on [0, 1].
        edges: where a confidence on an edge goes, see `poise.metrics.Edges`.

    Returns:
        The error, in [0, 1].

    Raises:
        InputError: columns empty, out of range or of different lengths; bins below 1.

    Deviation: the papers' bins (lo, hi] drop a confidence of exactly 0; here the first bin is closed at 0.

    >>> round(ece([0.95, 0.92, 0.87, 0.81], [1, 1, 1, 0], bins=5), 4)
    0.1375
    """
    return whole(ece_statistic(confidence, correct, bins, edges=edges), confidence)


def mce(confidence: ArrayLike, correct: ArrayLike, bins: int = 15, *, edges: Edges = "right") -> float:
    """Maximum calibration error: the largest distance of accuracy and confidence in a bin that is not empty.

    Naeini et al. 2015. Arguments, range and errors as `ece`.

    >>> round(mce([0.95, 0.92, 0.43], [1, 1, 0], bins=5), 2)
    0.43
    """
    return whole(mce_statistic(confidence, correct, bins, edges=edges), confidence)


def average_bin_error(confidence: ArrayLike, correct: ArrayLike, bins: int = 15, *, edges: Edges = "right") -> float:
    """Unweighted mean over the bins that are not empty of the distance of accuracy and confidence.

    The "ACE" of netcal, with equal-width bins; not Nixon's adaptive error (`adaptive_ece`). Arguments, range and errors
    as `ece`.

    >>> round(average_bin_error([0.95, 0.92, 0.43], [1, 1, 0], bins=5), 4)
    0.2475
    """
    return whole(average_bin_error_statistic(confidence, correct, bins, edges=edges), confidence)


def classwise_ece(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15, *, edges: Edges = "right") -> float:
    """Mean over all K classes of the ECE of (p_k, 1[y = k]).

    Kull et al. 2019. Every column of `probabilities` counts, also that of a class without a label.

    Args:
        probabilities: (n, K) rows that sum to 1.
        labels: (n,) true classes in 0..K-1.
        bins: number of bins on [0, 1].
        edges: where a probability on an edge goes, see `poise.metrics.Edges`.

    Returns:
        The error, in [0, 1].

    Raises:
        InputError: not probabilities, labels out of range, lengths differ, bins below 1.

    >>> round(classwise_ece([[0.7, 0.3], [0.4, 0.6]], [0, 1], bins=5), 2)
    0.35
    """
    return whole(classwise_ece_statistic(probabilities, labels, bins, edges=edges), labels)


def ece_statistic(confidence: ArrayLike, correct: ArrayLike, bins: int = 15, *, edges: Edges = "right") -> Statistic:
    """`ece` as a function of counts (b, n), see `Statistic`."""
    scores, hits = answers(confidence, correct, "ece")
    index, grid = assign(scores, bins, edges, "ece")
    residual = hits - scores

    def statistic(counts: FloatArray) -> FloatArray:
        gaps = np.abs(bin_sums(counts, index, residual, len(grid) - 1))
        return np.asarray(gaps.sum(axis=1) / counts.sum(axis=1))

    return statistic


def mce_statistic(confidence: ArrayLike, correct: ArrayLike, bins: int = 15, *, edges: Edges = "right") -> Statistic:
    """`mce` as a function of counts (b, n), see `Statistic`."""
    gaps = _gaps(confidence, correct, bins, edges, "mce")
    return lambda counts: np.asarray(np.nanmax(gaps(counts), axis=1))


def average_bin_error_statistic(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 15, *, edges: Edges = "right"
) -> Statistic:
    """`average_bin_error` as a function of counts (b, n), see `Statistic`."""
    gaps = _gaps(confidence, correct, bins, edges, "average_bin_error")
    return lambda counts: np.asarray(np.nanmean(gaps(counts), axis=1))


def classwise_ece_statistic(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = 15, *, edges: Edges = "right"
) -> Statistic:
    """`classwise_ece` as a function of counts (b, n), see `Statistic`."""
    p, y = labelled(probabilities, labels, "classwise_ece")
    each = [ece_statistic(column, y == k, bins, edges=edges) for k, column in enumerate(p.T)]
    return lambda counts: np.asarray(sum(error(counts) for error in each) / len(each))


def _gaps(confidence: ArrayLike, correct: ArrayLike, bins: int, edges: Edges, caller: str) -> Statistic:
    """|acc_m - conf_m| of every bin (b, bins), NaN in an empty one."""
    scores, hits = answers(confidence, correct, caller)
    index, grid = assign(scores, bins, edges, caller)
    residual, ones = hits - scores, np.ones(len(hits))

    def statistic(counts: FloatArray) -> FloatArray:
        gaps = np.abs(bin_sums(counts, index, residual, len(grid) - 1))
        return ratio(gaps, bin_sums(counts, index, ones, len(grid) - 1))

    return statistic
