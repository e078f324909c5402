"""Equal-width bins on [0, 1]: who falls where under the three edge conventions, and sums per bin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from poise.errors import one_of
from poise.metrics._columns import AnyFloatArray, FloatArray, IntArray, positive_integer

Edges = Literal["right", "left", "torchmetrics"]
"""Where a confidence on an edge goes.

`right`: bins (lo, hi], the first closed at 0 (the papers); `left`: bins [lo, hi), the last closed at 1 (netcal);
`torchmetrics`: bins [lo, hi) and a bin of its own for exactly 1.
"""


def _right(confidence: AnyFloatArray, edges: AnyFloatArray) -> tuple[IntArray, AnyFloatArray]:
    return np.searchsorted(edges[1:-1], confidence, side="left"), edges


def _left(confidence: AnyFloatArray, edges: AnyFloatArray) -> tuple[IntArray, AnyFloatArray]:
    return np.searchsorted(edges[1:-1], confidence, side="right"), edges


def _torchmetrics(confidence: AnyFloatArray, edges: AnyFloatArray) -> tuple[IntArray, AnyFloatArray]:
    return np.searchsorted(edges[1:], confidence, side="right"), np.append(edges, edges[-1])


_CONVENTIONS: dict[str, Callable[[AnyFloatArray, AnyFloatArray], tuple[IntArray, AnyFloatArray]]] = {
    "right": _right,
    "left": _left,
    "torchmetrics": _torchmetrics,
}


def assign(confidence: AnyFloatArray, bins: int, edges: Edges, caller: str) -> tuple[IntArray, AnyFloatArray]:
    """The bin of every confidence, and the edges.

    Args:
        confidence: (n,) in [0, 1]. The edges m / bins are computed and compared in its own type: 0.2 in float32 lies on
            the edge 1/5 of float32, and above the edge 1/5 of float64.
        bins: number M of bins of width 1 / M.
        edges: the convention; `torchmetrics` has M + 1 bins.
        caller: who asks, for the error.

    Returns:
        (n,) bin of each row, and the (bins + 1,) edges.

    Raises:
        InputError: bins is not a whole number of at least 1, or an unknown convention.
    """
    positive_integer(bins, f"{caller}: bins")
    if edges not in _CONVENTIONS:
        raise one_of(f"{caller}: edges", edges, list(_CONVENTIONS))
    grid = np.arange(bins + 1, dtype=confidence.dtype) / confidence.dtype.type(bins)
    return _CONVENTIONS[edges](confidence, grid)


def bin_sums(counts: FloatArray, index: IntArray, values: FloatArray, bins: int) -> FloatArray:
    """Sums of counts * values per bin.

    Args:
        counts: (b, n).
        index: (n,) bin of each row, in 0..bins-1.
        values: (n,) what is summed.
        bins: number of bins.

    Returns:
        (b, bins) sums, 0 in an empty bin.
    """
    if len(counts) == 1:
        return np.bincount(index, counts[0] * values, minlength=bins)[None].astype(np.float64)
    table = np.zeros((len(index), bins))
    table[np.arange(len(index)), index] = values
    return np.asarray(counts @ table)
