"""Means of a column: average confidence, accuracy, shares, and the same among a part of the rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from poise.metrics._columns import FloatArray, Statistic, binary, numbers, ratio, same_length, whole


def mean(values: ArrayLike, where: ArrayLike | None = None) -> float:
    """Mean of a column, of all rows or of those where `where` is 1.

    With a column of confidences it is the average confidence of the papers' tables (over all rows, not only the correct
    ones); with `where=correct`, the confidence of the right answers; with a column of 0 and 1, a share.

    Args:
        values: (n,) any finite numbers.
        where: (n,) in {0, 1}, or None for all rows.

    Returns:
        The mean; NaN where no row is chosen.

    Raises:
        InputError: columns empty, not finite, or of different lengths.

    >>> mean([0.9, 0.6, 0.3], where=[1, 1, 0])
    0.75
    """
    return whole(mean_statistic(values, where), values)


def mean_statistic(values: ArrayLike, where: ArrayLike | None = None) -> Statistic:
    """`mean` as a function of counts (b, n), see `Statistic`."""
    column = numbers(values, "mean: values").astype(np.float64)
    chosen = np.ones(len(column)) if where is None else binary(where, "mean: where")
    same_length("mean", values=column, where=chosen)
    masked = column * chosen

    def statistic(counts: FloatArray) -> FloatArray:
        return ratio(counts @ masked, counts @ chosen)

    return statistic
