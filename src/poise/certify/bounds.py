"""How far a Gaussian-smoothed score can be moved within an l2 ball: bounds from a finite sample, in float64.

The smoothed score is h(x) = E[s(x + v)], v ~ N(0, sigma^2 I), s in [low, high]. All functions are pure; `epsilon` is
the statistical slack of `dkw_epsilon`, and `radius` a number or an array of them.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri

from poise.certify.scores import Floats, Scores
from poise.errors import InputError


def dkw_epsilon(n: int, alpha: float) -> float:
    """sqrt(ln(1/alpha) / 2n): how far an empirical distribution of n draws lies on one side of the true one, at most.

    Massart (1990), the one-sided Dvoretzky-Kiefer-Wolfowitz inequality: it fails with a probability of at most alpha,
    for all thresholds at once. Hoeffding's inequality gives a mean of scores in [0, 1] the same slack. For a lower and
    an upper bound that hold together, give each half of alpha.

    Args:
        n: draws, at least 1.
        alpha: in (0, 0.5]; the inequality does not hold with this constant above that.

    >>> round(dkw_epsilon(100_000, 0.001), 9)
    0.00587697
    """
    if n < 1:
        raise InputError(f"dkw_epsilon: n must be at least 1, got {n}")
    if not 0 < alpha <= 0.5:
        raise InputError(f"dkw_epsilon: alpha must be in (0, 0.5], got {alpha}")
    return math.sqrt(math.log(1 / alpha) / (2 * n))


def cdf_lower(scores: Scores, radius: ArrayLike, *, sigma: float, epsilon: float) -> Floats:
    """Lower bound of h(x + delta) over all ||delta||_2 <= radius, by the whole distribution of the scores.

    Kumar et al., NeurIPS 2020, section 4: with q_i = max(0, P(s >= s_i) - epsilon) of the empirical distribution,

        low + sum_i (s_i - s_{i-1}) Phi(Phi^-1(q_i) - radius / sigma),   s_0 = low:

    the Neyman-Pearson lemma on each level set {s >= t}, integrated over t.

    Args:
        scores: n draws of s(x + v).
        radius: (r,) or one number, at least 0, in the units of a pixel.
        sigma: standard deviation of the noise, positive, in the same units.
        epsilon: slack in [0, 1); 0 takes the empirical distribution for the true one.

    Returns:
        (r,) bounds, or a 0-d array; falling in the radius, at radius 0 at most the empirical mean.

    Deviation: the released code keeps every 10th of 100,000 scores and divides by their number, which is a bound only
    where that divides n; here the counts are exact, and a histogram's scores lie at their bins' lower edges.

    >>> five = Scores.exact([0.2, 0.5, 0.8, 0.9, 1.0])
    >>> cdf_lower(five, [0.0, 0.25, 0.5], sigma=0.25, epsilon=0.05).round(9).tolist()
    [0.63, 0.32749018, 0.110103764]
    """
    shift = _shift(radius, sigma, epsilon)
    reached = scores.counts[::-1].cumsum()[::-1] / scores.n
    gaps = np.diff(scores.floor, prepend=scores.low)
    return scores.low + _moved(np.maximum(reached - epsilon, 0.0), -shift) @ gaps


def cdf_upper(scores: Scores, radius: ArrayLike, *, sigma: float, epsilon: float) -> Floats:
    """Upper bound of h(x + delta) over all ||delta||_2 <= radius: the mirror image of `cdf_lower`.

    With p_i = min(1, P(s > s_i) + epsilon) of the empirical distribution, p_0 = 1, the sum over all gaps up to `high`
    of (s_{i+1} - s_i) Phi(Phi^-1(p_i) + radius / sigma). Arguments and returns as there; rising in the radius.

    >>> five = Scores.exact([0.2, 0.5, 0.8, 0.9, 1.0])
    >>> cdf_upper(five, [0.0, 0.25, 0.5], sigma=0.25, epsilon=0.05).round(9).tolist()
    [0.72, 0.912514358, 0.984786983]
    """
    shift = _shift(radius, sigma, epsilon)
    above = (scores.n - np.concatenate([[0], scores.counts.cumsum()])) / scores.n
    gaps = np.diff(scores.ceiling, prepend=scores.low, append=scores.high)
    return scores.low + _moved(np.minimum(above + epsilon, 1.0), shift) @ gaps


def naive_lower(scores: Scores, radius: ArrayLike, *, sigma: float, epsilon: float) -> Floats:
    """Lower bound from the mean alone: Hoeffding, then the Lipschitz bound of Salman et al. for any score.

    Kumar et al., section 3: with m = max(low, mean - (high - low) epsilon), scaled to [0, 1],
    Phi(Phi^-1(m) - radius / sigma). Arguments and returns as in `cdf_lower`, which is never below it.

    >>> five = Scores.exact([0.2, 0.5, 0.8, 0.9, 1.0])
    >>> naive_lower(five, [0.0, 0.25, 0.5], sigma=0.25, epsilon=0.05).round(9).tolist()
    [0.63, 0.252019992, 0.047643309]
    """
    width = scores.high - scores.low
    share = max(0.0, (scores.mean_floor - scores.low) / width - epsilon)
    return scores.low + width * _moved(np.array(share), -_shift(radius, sigma, epsilon))[..., 0]


def naive_upper(scores: Scores, radius: ArrayLike, *, sigma: float, epsilon: float) -> Floats:
    """Upper bound from the mean alone, the mirror image of `naive_lower`.

    >>> from poise.certify import Scores
    >>> five = Scores.exact([0.2, 0.5, 0.8, 0.9, 1.0])
    >>> naive_upper(five, [0.0, 0.25], sigma=0.25, epsilon=0.05).round(9).tolist()
    [0.73, 0.946607429]
    """
    width = scores.high - scores.low
    share = min(1.0, (scores.mean_ceiling - scores.low) / width + epsilon)
    return scores.low + width * _moved(np.array(share), _shift(radius, sigma, epsilon))[..., 0]


def _moved(shares: Floats, shift: Floats) -> Floats:
    """(r, m) Phi(Phi^-1(share) + shift): how probable an event of each share is where it is most or least so."""
    moved: Floats = ndtr(ndtri(np.atleast_1d(shares)) + shift[..., None])
    return moved


def _shift(radius: ArrayLike, sigma: float, epsilon: float) -> Floats:
    """radius / sigma, checked."""
    given = np.asarray(radius, dtype=np.float64)
    if given.size and not bool(((given >= 0) & np.isfinite(given)).all()):
        raise InputError(f"radius: must be a number of at least 0, got {given.min()}")
    check_sigma(sigma)
    if not 0 <= epsilon < 1:
        raise InputError(f"epsilon: must be in [0, 1), got {epsilon} (too few draws for this alpha?)")
    return given / sigma


def check_sigma(sigma: float) -> None:
    """Refuses noise that certifies nothing.

    Raises:
        InputError: sigma is not positive and finite.
    """
    if not 0 < sigma < math.inf:
        raise InputError(f"sigma: must be a number above 0 (without noise nothing is certified), got {sigma}")
