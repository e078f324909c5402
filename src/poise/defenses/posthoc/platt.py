"""Platt scaling of the top-1 confidence."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit
from torch import Tensor

from poise.defenses.base import PoiseWarning
from poise.defenses.posthoc.remap import Remainder, TopScore
from poise.errors import InputError

_SURE = 1e-6  # a mean target of 0 or 1 is moved inside by this: no finite intercept would meet it


class Platt(TopScore):
    """A logistic curve through the log-odds of the top-1 confidence: c' = sigmoid(slope ln(c / (1 - c)) + intercept).

    Platt 1999, "Probabilistic Outputs for Support Vector Machines", on the log-odds of the confidence instead of a
    margin, fitted by maximum likelihood of correctness (scikit-learn's Newton solver). With two classes, intercept 0
    and slope 1/T it is temperature scaling. Deviation: the label is kept (`with_confidence`), and the slope is not
    negative, so that a more confident answer never becomes a less confident one.

    Args:
        smooth: Platt's targets (N+ + 1)/(N+ + 2) and 1/(N- + 2) instead of 1 and 0. The minimum is then finite.
        max_slope: upper bound of the slope, above 0; met where the data are separable and `smooth` is False.
        remainder: "uniform" or "proportional", see `TopScore`.

    Buffers:
        slope, intercept: () float64, NaN before `fit`.

    Raises:
        InputError: max_slope is not positive and finite.

    Warns:
        PoiseWarning: at `fit`, where the slope is clamped to 0 or to max_slope, or every sample is right or wrong.

    Example:
        >>> top = torch.tensor([0.6, 0.9], dtype=torch.float64).repeat_interleave(10)
        >>> logits = torch.stack([top, 1 - top], dim=1).log()
        >>> labels = torch.tensor([1] * 5 + [0] * 5 + [1] * 3 + [0] * 7)  # right in 5 of 10, then in 7 of 10
        >>> defense = Platt(smooth=False).fit(logits, labels)
        >>> defense.calibrate(torch.tensor([0.6, 0.9], dtype=torch.float64))
        tensor([0.5000, 0.7000], dtype=torch.float64)
    """

    monotone = True

    slope: Tensor
    intercept: Tensor

    def __init__(self, *, smooth: bool = True, max_slope: float = 100.0, remainder: Remainder = "uniform") -> None:
        if not 0 < max_slope < math.inf:
            raise InputError(f"Platt: max_slope must be above 0 and finite, got {max_slope}")
        super().__init__(remainder=remainder)
        self.smooth = smooth
        self.max_slope = max_slope
        self.register_buffer("slope", torch.tensor(math.nan, dtype=torch.float64))
        self.register_buffer("intercept", torch.tensor(math.nan, dtype=torch.float64))

    def _learn(self, odds: Tensor, hits: Tensor) -> None:
        x, hit = odds.cpu().numpy().astype(np.float64), hits.cpu().numpy()
        right, wrong = int(hit.sum()), int((~hit).sum())
        high, low = ((right + 1) / (right + 2), 1 / (wrong + 2)) if self.smooth else (1.0, 0.0)
        target = np.where(hit, high, low)
        slope, intercept = _best(x, target)
        bounded = min(max(slope, 0.0), self.max_slope)
        if bounded != slope:
            why = "does not rise with confidence" if slope < 0 else "is told apart by confidence (almost) without error"
            text = f"Platt: correctness {why}, slope clamped to {bounded:g}"
            warnings.warn(text, PoiseWarning, stacklevel=5)
            intercept = _intercept(x, target, bounded)
        self.slope.fill_(bounded)
        self.intercept.fill_(intercept)

    def _calibrate(self, odds: Tensor) -> Tensor:
        return (self.slope * odds + self.intercept).sigmoid()


def _best(x: NDArray[np.float64], target: NDArray[np.float64]) -> tuple[float, float]:
    """Slope and intercept with the least mean cross-entropy to the targets; slope +-inf where none is best."""
    if x.max() == x.min() or target.max() == target.min():
        return 0.0, _intercept(x, target, 0.0)
    hit = target > target.min()
    if target.min() == 0 and x[hit].min() >= x[~hit].max():
        return math.inf, math.nan
    if target.min() == 0 and x[hit].max() <= x[~hit].min():
        return -math.inf, math.nan
    from sklearn.linear_model import LogisticRegression

    regression = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10, max_iter=1000)
    # A target between 0 and 1 is a hit and a miss that share the weight of one sample; what weighs nothing is left out,
    # because scikit-learn 1.4 counts it as a negative curvature and gives up on Newton's method.
    middle, spread = x.mean(), x.std()
    weight = np.concatenate([target, 1 - target])
    counts = weight > 0
    regression.fit(
        (np.concatenate([x, x])[:, None] / spread - middle / spread)[counts],
        np.repeat([1, 0], len(x))[counts],
        sample_weight=weight[counts],
    )
    slope = float(regression.coef_[0, 0]) / spread
    return slope, float(regression.intercept_[0]) - slope * middle


def _intercept(x: NDArray[np.float64], target: NDArray[np.float64], slope: float) -> float:
    """The best intercept for a given slope: the mean of the curve is the mean of the targets."""
    mean = min(max(float(target.mean()), _SURE), 1 - _SURE)
    far = slope * float(np.abs(x).max()) - math.log(_SURE) + 1
    return float(brentq(lambda b: expit(slope * x + b).mean() - mean, -far, far, xtol=1e-12))
