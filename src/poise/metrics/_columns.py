"""What the metrics take: columns checked once, and statistics as functions of resampling counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from poise.errors import InputError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
AnyFloatArray = NDArray[np.floating[Any]]

Statistic = Callable[[FloatArray], FloatArray]
"""A metric of n fixed rows as a function of how often each row counts.

Takes counts (b, n) of b resamples, each of which sums to at least 1; returns (b,) values or (b, m) curves, NaN
where undefined. Metrics are written this way so that a bootstrap costs one matrix product and not b calls.
"""

TOLERANCE = 1e-6
"""How far outside [0, 1] a probability may lie before it is an error; float32 softmax gives 1 + 1e-7. It is clipped."""

SUM_TOLERANCE = 1e-3
"""How far from 1 a row of probabilities may sum: half precision and many classes stay within."""


def whole(statistic: Statistic, column: ArrayLike) -> float:
    """The statistic of the rows themselves, every row counting once; `column` is one of theirs and tells how many."""
    return float(statistic(np.ones((1, len(np.asarray(column)))))[0])


def ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """numerator / denominator, NaN where both vanish."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(numerator / denominator, dtype=np.float64)


def numbers(values: ArrayLike, name: str, ndim: int = 1) -> NDArray[Any]:
    """Finite numbers with `ndim` axes and at least one row, in the type given.

    Raises:
        InputError: wrong number of axes, no row, not numbers, NaN or infinite.
    """
    array = np.asarray(values)
    if array.ndim != ndim:
        raise InputError(f"{name} must be {ndim}-dimensional, got shape {array.shape}")
    if array.shape[0] == 0:
        raise InputError(f"{name} must have at least one row, got none")
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} must be numbers, got type {array.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"{name} must be finite, got NaN or infinity in {_where(~np.isfinite(array))}")
    return array


def unit(values: ArrayLike, name: str, ndim: int = 1) -> AnyFloatArray:
    """Numbers in [0, 1], clipped within `TOLERANCE`; a floating type is kept, for bin edges are compared in it.

    Raises:
        InputError: as `numbers`, or outside [0, 1].
    """
    array = numbers(values, name, ndim)
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    low, high = float(array.min()), float(array.max())
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        worst = low if low < -TOLERANCE else high
        outside = (array < -TOLERANCE) | (array > 1 + TOLERANCE)
        raise InputError(f"{name} must be in [0, 1], got {worst:g} in {_where(outside)}")
    return np.clip(array, 0, 1) if low < 0 or high > 1 else array


def binary(values: ArrayLike, name: str) -> FloatArray:
    """A column of 0 and 1, or of False and True.

    Raises:
        InputError: as `numbers`, or any other value.
    """
    array = numbers(values, name).astype(np.float64)
    wrong = (array != 0) & (array != 1)
    if wrong.any():
        raise InputError(f"{name} must be 0 or 1, got {array[wrong][0]:g} in {_where(wrong)}")
    return array


def same_length(caller: str, **columns: NDArray[Any]) -> None:
    """Checks that the columns, given by name, have the same number of rows.

    Raises:
        InputError: they have not.
    """
    if len({len(column) for column in columns.values()}) > 1:
        names, sizes = " and ".join(columns), " and ".join(str(len(c)) for c in columns.values())
        raise InputError(f"{caller}: {names} must have the same length, got {sizes}")


def answers(confidence: ArrayLike, correct: ArrayLike, caller: str) -> tuple[AnyFloatArray, FloatArray]:
    """The two columns that most metrics take, (n,) in [0, 1] and (n,) in {0, 1}, checked.

    Raises:
        InputError: not numbers, out of range, empty, or of different lengths.
    """
    scores = unit(confidence, f"{caller}: confidence")
    hits = binary(correct, f"{caller}: correct")
    same_length(caller, confidence=scores, correct=hits)
    return scores, hits


def labelled(probabilities: ArrayLike, labels: ArrayLike, caller: str) -> tuple[AnyFloatArray, IntArray]:
    """Probabilities (n, K) with rows that sum to 1, and labels (n,) in 0..K-1, checked.

    Raises:
        InputError: not so, or fewer than two classes.
    """
    p = unit(probabilities, f"{caller}: probabilities", ndim=2)
    y = numbers(labels, f"{caller}: labels")
    same_length(caller, probabilities=p, labels=y)
    if p.shape[1] < 2:
        raise InputError(f"{caller}: probabilities must have at least 2 columns, got {p.shape[1]}")
    off = np.abs(p.sum(axis=1, dtype=np.float64) - 1)
    if off.max() > SUM_TOLERANCE:
        total = float(p[off.argmax()].sum(dtype=np.float64))
        raise InputError(f"{caller}: probabilities must sum to 1 in every row, got {total:g} in row {off.argmax()}")
    classes = y.astype(np.int64)
    wrong = (classes != y) | (classes < 0) | (classes >= p.shape[1])
    if wrong.any():
        raise InputError(
            f"{caller}: labels must be integers in 0..{p.shape[1] - 1}, got {y[wrong][0]} in {_where(wrong)}"
        )
    return p, classes


def positive_integer(value: int, name: str) -> int:
    """A whole number of at least 1.

    Raises:
        InputError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)


def _where(mask: NDArray[np.bool_]) -> str:
    return f"row {int(np.argwhere(mask)[0][0])}"
