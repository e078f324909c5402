"""The Kolmogorov-Smirnov calibration error: no bins, only a running sum."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from poise.metrics._columns import FloatArray, Statistic, answers, whole


def ks_error(confidence: ArrayLike, correct: ArrayLike, *, tie_blocks: bool = True) -> float:
    """Largest distance between the running sums of confidence and of correctness, rows sorted by confidence.

    Gupta et al. 2021, eq. 5: max_i |(1/N) sum_{j <= i} (correct_j - confidence_j)|, the empty sum included. It lies
    between |accuracy - mean confidence| and mean |correct - confidence|.

    The top-1 score is meant; for class k pass (p_k, 1[y = k]), for the top n the sum of the n highest probabilities and
    whether the label is among them.

    Args:
        confidence: (n,) in [0, 1].
        correct: (n,) in {0, 1}.
        tie_blocks: evaluate the sum only where the confidence changes. Within a block of equal confidences the sum
            depends on the order of the rows, which means nothing, and attacks that stop at 1.0 make large blocks. False
            evaluates after every row of a stable sort, as the published code does.

    Returns:
        The error, in [0, 1].

    Raises:
        InputError: columns empty, out of range or of different lengths.

    >>> round(ks_error([0.9, 0.6, 0.8, 0.7], [1, 0, 1, 1]), 2)
    0.15
    """
    return whole(ks_error_statistic(confidence, correct, tie_blocks=tie_blocks), confidence)


def ks_error_statistic(confidence: ArrayLike, correct: ArrayLike, *, tie_blocks: bool = True) -> Statistic:
    """`ks_error` as a function of counts (b, n), see `Statistic`."""
    scores, hits = answers(confidence, correct, "ks_error")
    order = np.argsort(scores, kind="stable")
    scores, residual = scores[order], (hits - scores)[order]
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True) | (not tie_blocks))

    def statistic(counts: FloatArray) -> FloatArray:
        path = np.cumsum(counts[:, order] * residual, axis=1)[:, last]
        return np.asarray(np.abs(path).max(axis=1) / counts.sum(axis=1))

    return statistic
