"""The arrays behind a reliability diagram and a confidence histogram."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from poise.metrics._bins import Edges, assign, bin_sums
from poise.metrics._columns import FloatArray, IntArray, answers, ratio


@dataclass(frozen=True, slots=True)
class Reliability:
    """What falls into each of M bins.

    Args:
        edges: (M + 1,) of the bins, from 0 to 1.
        count: (M,) rows in each bin. A bin is empty where this is 0; an accuracy of 0 does not say so.
        right: (M,) of these, how many are correct.
        accuracy: (M,) right / count, NaN in an empty bin.
        confidence: (M,) mean confidence, NaN in an empty bin.

    >>> from poise.metrics import reliability
    >>> diagram = reliability([0.95, 0.9, 0.3], [1, 0, 1], bins=2)
    >>> diagram.count.tolist(), diagram.wrong.tolist(), diagram.accuracy.tolist()
    ([1, 2], [0, 1], [1.0, 0.5])
    """

    edges: FloatArray
    count: IntArray
    right: IntArray
    accuracy: FloatArray
    confidence: FloatArray

    @property
    def wrong(self) -> IntArray:
        """(M,) rows in each bin that are not correct."""
        return self.count - self.right


def reliability(confidence: ArrayLike, correct: ArrayLike, bins: int = 15, *, edges: Edges = "right") -> Reliability:
    """Counts, accuracy and mean confidence per equal-width bin.

    Args:
        confidence: (n,) in [0, 1].
        correct: (n,) in {0, 1}.
        bins: number of bins on [0, 1].
        edges: where a confidence on an edge goes, see `poise.metrics.Edges`; `torchmetrics` adds a bin of width 0 at 1.

    Returns:
        The arrays. `ece` is sum(count * |accuracy - confidence|) / n over the bins that are not empty.

    Raises:
        InputError: columns empty, out of range or of different lengths; bins below 1.

    >>> diagram = reliability([0.95, 0.92, 0.3], [1, 0, 0], bins=2)
    >>> diagram.count.tolist(), diagram.accuracy.tolist()
    ([1, 2], [0.0, 0.5])
    """
    scores, hits = answers(confidence, correct, "reliability")
    index, grid = assign(scores, bins, edges, "reliability")
    ones = np.ones((1, len(hits)))
    count, right, total = (
        bin_sums(ones, index, value, len(grid) - 1)[0] for value in (ones[0], hits, scores.astype(np.float64))
    )
    return Reliability(
        edges=grid.astype(np.float64),
        count=count.astype(np.int64),
        right=right.astype(np.int64),
        accuracy=ratio(right, count),
        confidence=ratio(total, count),
    )
