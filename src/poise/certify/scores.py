"""What was drawn at one image, reduced to what a bound needs: values and how often each occurred."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from poise.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Scores:
    """n scores in [low, high] as counts of distinct values; a binned score is known between two edges alone.

    Args:
        floor: (m,) ascending: no score of group j lies below floor[j].
        ceiling: (m,) ascending: none lies above ceiling[j]; equal to `floor` where scores are known exactly.
        counts: (m,) how many scores each group holds, at least 1.
        low, high: the range of the score.

    A bound from below takes every score for its floor, a bound from above for its ceiling: binning can only make a
    bound weaker, by at most the width of a bin.

    >>> Scores.exact([0.2, 0.5, 0.8, 0.9, 1.0]).n
    5
    """

    floor: Floats
    ceiling: Floats
    counts: Ints
    low: float = 0.0
    high: float = 1.0

    @classmethod
    def exact(cls, scores: ArrayLike, low: float = 0.0, high: float = 1.0) -> Scores:
        """From scores (n,) in [low, high], n >= 1, in any order.

        Raises:
            InputError: no score, or one outside the range.
        """
        _check_range(low, high)
        given = np.asarray(scores, dtype=np.float64)
        if given.ndim != 1 or not len(given):
            raise InputError(f"Scores: scores must be (n,) with n at least 1, got shape {given.shape}")
        if not bool(((given >= low) & (given <= high)).all()):
            raise InputError(f"Scores: scores must be in [{low:g}, {high:g}], got {given.min()} to {given.max()}")
        values, counts = np.unique(given, return_counts=True)
        return cls(values, values, counts.astype(np.int64), low, high)

    @classmethod
    def binned(cls, counts: ArrayLike, low: float = 0.0, high: float = 1.0) -> Scores:
        """From a histogram (B,): bin j holds the scores in [low + j w, low + (j + 1) w), w = (high - low) / B; the last
        one those equal to `high` too.

        Raises:
            InputError: not whole numbers of at least 0, or none above 0.
        """
        _check_range(low, high)
        given = np.asarray(counts)
        if given.ndim != 1 or not np.issubdtype(given.dtype, np.integer) or not len(given):
            raise InputError(f"Scores: counts must be (B,) whole numbers, got shape {given.shape} of {given.dtype}")
        if given.min() < 0 or given.max() == 0:
            raise InputError(f"Scores: counts must be at least 0 and not all 0, got {given.min()} to {given.max()}")
        (taken,) = np.nonzero(given)
        edges = low + (high - low) * np.arange(len(given) + 1) / len(given)
        return cls(edges[taken], edges[taken + 1], given[taken].astype(np.int64), low, high)

    @property
    def n(self) -> int:
        """How many scores there are."""
        return int(self.counts.sum())

    @property
    def mean_floor(self) -> float:
        """The mean with every score at its floor: at most the empirical mean."""
        return float(self.floor @ self.counts) / self.n

    @property
    def mean_ceiling(self) -> float:
        """The mean with every score at its ceiling: at least the empirical mean."""
        return float(self.ceiling @ self.counts) / self.n


def _check_range(low: float, high: float) -> None:
    if not -np.inf < low < high < np.inf:
        raise InputError(f"Scores: the range must be finite with low < high, got [{low}, {high}]")
