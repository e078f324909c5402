"""What certified intervals of many images say together: accuracy, mean confidence, Brier score, calibration error.

Every function takes per-image columns (N,): `lower` and `upper` enclose what the confidence in the predicted class can
be within the radius, and `hit` in {0, 1} says whether that prediction, certified not to change there, is right.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from poise import metrics
from poise.certify.scores import Floats
from poise.errors import InputError

_SWEEPS = 50


def mean_with_abstentions_as_zero(values: ArrayLike, abstained: ArrayLike) -> float:
    """Mean over all images; one that abstains has confidence 0. The spec of the paper's tables leaves this open.

    >>> mean_with_abstentions_as_zero([0.8, 0.2], [False, True])
    0.4
    """
    kept = ~np.asarray(abstained, dtype=bool)
    return float(np.where(kept, np.asarray(values, dtype=np.float64), 0.0).mean())


def mean_without_abstentions(values: ArrayLike, abstained: ArrayLike) -> float:
    """Mean over the images that do not abstain; NaN where all do.

    >>> mean_without_abstentions([0.8, 0.2], [False, True]), mean_with_abstentions_as_zero([0.8, 0.2], [False, True])
    (0.8, 0.4)
    """
    kept = ~np.asarray(abstained, dtype=bool)
    return float(np.asarray(values, dtype=np.float64)[kept].mean()) if kept.any() else float("nan")


def certified_brier_rows(lower: ArrayLike, upper: ArrayLike, hit: ArrayLike) -> Floats:
    """(N,) highest top-label Brier score of each image: (1 - lower)^2 where right, upper^2 where wrong."""
    low, high, right = _columns(lower, upper, hit)
    return np.where(right, (1 - low) ** 2, high**2)


def certified_brier(lower: ArrayLike, upper: ArrayLike, hit: ArrayLike) -> float:
    """Highest top-label Brier score that an attacker can cause: exact, as the intervals are independent.

    Emde et al., arXiv 2405.13922, section 3.2.

    >>> round(certified_brier([0.6, 0.3, 0.0], [1.0, 1.0, 0.8], [1, 1, 0]), 12)
    0.43
    """
    return float(certified_brier_rows(lower, upper, hit).mean())


def certified_gap_rows(lower: ArrayLike, upper: ArrayLike, hit: ArrayLike) -> Floats:
    """(N,) largest |hit - z| of each image, z in [lower, upper]."""
    low, high, right = _columns(lower, upper, hit)
    return np.where(right, 1 - low, high)


def certified_ece(lower: ArrayLike, upper: ArrayLike, hit: ArrayLike) -> float:
    """An upper bound of the ECE that an attacker can cause, for any binning: the mean of the largest |hit - z|.

    It holds because ECE <= mean |hit - z| for every choice of z. Emde et al. approximate the maximum itself, a
    mixed-integer problem, by ADMM; what they get is an estimate and no guarantee. See `worst_ece_found` for one from
    the other side: the truth lies between the two. With intervals [1/K, 1] this is the bound 1 - q/K of `mma_bound`.

    >>> round(certified_ece([0.6, 0.3, 0.0], [1.0, 1.0, 0.8], [1, 1, 0]), 12)
    0.633333333333
    """
    return float(certified_gap_rows(lower, upper, hit).mean())


def worst_ece_found(
    lower: ArrayLike, upper: ArrayLike, hit: ArrayLike, bins: int = 15
) -> tuple[float, NDArray[np.float64]]:
    """A LOWER estimate of the highest ECE within the intervals, and confidences that reach it. Not a certificate.

    Coordinate search: from maximum miscalibration on the interval's ends (right answers at `lower`, wrong ones at
    `upper`), one image after another is moved to the place in its interval where the ECE is highest, until none moves.
    Only the ends of the interval within each bin can be best, since the ECE is convex there.

    Args:
        lower, upper, hit: (N,), N >= 1.
        bins: of equal width, closed on the right as in `poise.metrics.ece`.

    Returns:
        The ECE found, and the confidences (N,) inside the intervals.

    >>> found, at = worst_ece_found([0.6, 0.3], [0.9, 0.5], [1, 0])
    >>> round(found, 3), at.tolist()
    (0.45, [0.6, 0.5])
    """
    low, high, right = _columns(lower, upper, hit)
    edges = np.arange(bins + 1) / bins
    z = np.where(right, low, high)
    place = np.searchsorted(edges[1:-1], z, side="left")
    sums = np.bincount(place, weights=right - z, minlength=bins).astype(np.float64)
    for _ in range(_SWEEPS):
        moved = False
        for i in range(len(z)):
            points, at = _candidates(low[i], high[i], edges)
            sums[place[i]] -= right[i] - z[i]
            best = int(np.argmax(np.abs(sums[at] + right[i] - points) - np.abs(sums[at])))
            gain = _gain(sums, at[best], right[i] - points[best]) - _gain(sums, place[i], right[i] - z[i])
            if gain > 1e-12:
                z[i], place[i], moved = points[best], at[best], True
            sums[place[i]] += right[i] - z[i]
        if not moved:
            break
    return metrics.ece(z, right.astype(np.float64), bins=bins), z


def _gain(sums: Floats, place: int, term: float) -> float:
    """What a term adds to the sum of |sums|."""
    return float(abs(sums[place] + term) - abs(sums[place]))


def _candidates(low: float, high: float, edges: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """The ends of [low, high] within each bin (a, b] that it meets, and those bins; the first bin holds 0 too."""
    first, last = np.searchsorted(edges[1:-1], [low, high], side="left")
    at = np.arange(first, last + 1)
    starts = np.maximum(low, np.nextafter(edges[at], 1.0))
    starts[0] = low
    return np.concatenate([starts, np.minimum(high, edges[at + 1])]), np.concatenate([at, at])


def _columns(lower: ArrayLike, upper: ArrayLike, hit: ArrayLike) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    low, high, right = (np.asarray(column, dtype=np.float64) for column in (lower, upper, hit))
    if low.ndim != 1 or not len(low) or not low.shape == high.shape == right.shape:
        raise InputError(
            f"certified: lower, upper and hit must be (N,) with N at least 1, got {low.shape}, {high.shape}, "
            f"{right.shape}"
        )
    if not bool(((low >= 0) & (low <= high) & (high <= 1)).all()):
        raise InputError("certified: intervals must satisfy 0 <= lower <= upper <= 1, got one that does not")
    if not bool(np.isin(right, (0, 1)).all()):
        raise InputError(f"certified: hit must be 0 or 1, got {right[~np.isin(right, (0, 1))][0]}")
    return low, high, right.astype(bool)
