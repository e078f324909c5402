"""From resampled values to confidence limits: percentile and BCa."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from poise.metrics._columns import FloatArray

Jackknife = Callable[[], list[FloatArray]]
"""Values without each row in turn, one array (n, ...) per group of rows; computed when called."""


def limits(
    value: FloatArray, draws: FloatArray, level: float, method: str, jackknife: Jackknife
) -> tuple[FloatArray, FloatArray]:
    """Lower and upper confidence limit of a number or of each entry of a curve.

    Args:
        value: () or (m,) the metric of the rows themselves.
        draws: (b,) or (b, m) the metric of the resamples; NaN where undefined, which is left out.
        level: nominal coverage, in (0, 1).
        method: a name in `METHODS`.
        jackknife: values without each row in turn, for methods that need them.

    Returns:
        Lower and upper limits, each of the shape of `value`; NaN where it or every resample is undefined.
    """
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    center, flat = value.ravel(), draws.reshape(len(draws), -1)
    levels = METHODS[method](tails, center, flat, jackknife)
    pairs = np.full((len(center), 2), np.nan)
    for j, column in enumerate(flat.T):
        defined = column[np.isfinite(column)]
        if len(defined) and math.isfinite(center[j]):
            pairs[j] = np.quantile(defined, levels[j])
    return pairs[:, 0].reshape(value.shape), pairs[:, 1].reshape(value.shape)


def percentile(tails: FloatArray, value: FloatArray, draws: FloatArray, jackknife: Jackknife) -> FloatArray:
    """Which quantiles of the resampled values to take, (m, 2): those of the tails."""
    return np.tile(tails, (len(value), 1))


def bca(tails: FloatArray, value: FloatArray, draws: FloatArray, jackknife: Jackknife) -> FloatArray:
    """Which quantiles to take, (m, 2), after Efron 1987: from the bias z0 and the acceleration a of each entry.

    Where no resampled value, or every one, lies below the value itself, z0 would be infinite; it is then taken as
    if half a resample did.
    """
    normal = NormalDist()
    groups = [values.reshape(len(values), -1) for values in jackknife()]
    levels = np.tile(tails, (len(value), 1))
    for j in range(len(value)):
        column = draws[np.isfinite(draws[:, j]), j]
        if len(column) == 0:
            continue
        below = ((column < value[j]).mean() + (column <= value[j]).mean()) / 2
        z0 = normal.inv_cdf(float(np.clip(below, 0.5 / len(column), 1 - 0.5 / len(column))))
        a = _acceleration([group[:, j] for group in groups])
        shifted = [z0 + normal.inv_cdf(float(t)) for t in tails]
        levels[j] = [normal.cdf(z0 + s / (1 - a * s)) for s in shifted]
    return levels


METHODS: dict[str, Callable[[FloatArray, FloatArray, FloatArray, Jackknife], FloatArray]] = {
    "percentile": percentile,
    "bca": bca,
}
"""How limits are made from resampled values."""


def _acceleration(groups: list[FloatArray]) -> float:
    """Skewness of the metric's influence, from its leave-one-out values; 0 where they do not vary."""
    third = second = 0.0
    for values in groups:
        defined = values[np.isfinite(values)]
        if len(defined):
            influence = (defined.mean() - defined) * (len(defined) - 1) / len(defined)
            third += float((influence**3).sum())
            second += float((influence**2).sum())
    return third / (6 * second**1.5) if second > 0 else 0.0
