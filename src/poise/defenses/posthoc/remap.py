"""From a recalibrated top-1 confidence back to logits, for every defence that maps the confidence alone."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor

from poise.defenses.base import PoiseWarning, PostHoc, keep_top, wide
from poise.errors import one_of

Remainder = Literal["uniform", "proportional"]
"""How 1 - confidence is shared among the other classes."""

_MARGIN = 1e-6  # by how much a confidence stays above the next class and below 1
_FLOOR = -1e30  # a class this far below the top has no weight, and sums of it are finite


class TopScore(PostHoc):
    """A defence that maps the top-1 confidence to another one and rebuilds the logits around it (`with_confidence`).

    A subclass writes `_learn` and `_calibrate`. The log-odds of the confidence are passed, not the confidence: they
    keep their digits where it rounds to 1. Any number of classes K will do after the fit.

    Args:
        remainder: "uniform" shares 1 - confidence equally among the other classes, so that their order is lost;
            "proportional" keeps their ratios and raises a confidence that would let the runner-up win (then a row of
            lower confidence can end above another one, and `monotone` is not promised).

    Warns:
        PoiseWarning: at `fit`, where every sample is right or every one is wrong: all confidences become about 1 or
            about the lowest that keeps the label, whatever the model says.

    >>> import torch
    >>> from poise.defenses import Isotonic, TopScore
    >>> logits, labels = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 3
    >>> defense = Isotonic().fit(logits, labels)
    >>> isinstance(defense, TopScore), defense.calibrate(torch.tensor([0.5, 0.9])).shape
    (True, torch.Size([2]))
    """

    keeps_label = True

    def __init__(self, *, remainder: Remainder = "uniform") -> None:
        if remainder not in get_args(Remainder):
            raise one_of(f"{type(self).__name__}: remainder", remainder, list(get_args(Remainder)))
        super().__init__()
        self.remainder: Remainder = remainder
        if remainder == "proportional":
            self.monotone = False  # type: ignore[misc]  # its lowest confidence differs from row to row

    def calibrate(self, confidence: Tensor) -> Tensor:
        """The recalibrated confidence before it is made safe for the label.

        Args:
            confidence: (n,) in [0, 1].

        Returns:
            (n,) in [0, 1], float64.

        Raises:
            NotFittedError: `fit` has not happened.
        """
        self.require_fitted()
        return self._calibrate(wide(confidence).logit())

    def _fit(self, logits: Tensor, labels: Tensor) -> None:
        hits = logits.argmax(dim=1) == labels
        if bool(hits.all()) or not bool(hits.any()):
            what = "right" if bool(hits.all()) else "wrong"
            text = f"{type(self).__name__}: every sample is {what}, so confidence is calibrated to one number"
            warnings.warn(text, PoiseWarning, stacklevel=4)
        self._learn(log_odds(logits), hits)

    def _map(self, logits: Tensor) -> Tensor:
        return with_confidence(logits, self._calibrate(log_odds(logits)), remainder=self.remainder)

    @abstractmethod
    def _learn(self, odds: Tensor, hits: Tensor) -> None:
        """Writes the buffers anew from log-odds (n,) float64 and hits (n,) bool."""

    @abstractmethod
    def _calibrate(self, odds: Tensor) -> Tensor:
        """Log-odds (n,) of the model's confidence to the new confidence (n,) in [0, 1]."""


def log_odds(logits: Tensor) -> Tensor:
    """ln(c / (1 - c)) of the top-1 confidence c, without ever forming c.

    Args:
        logits: (n, K).

    Returns:
        (n,) float64, at least -ln(K - 1), finite for finite logits.

    Example:
        >>> log_odds(torch.tensor([[800.0, 0.0], [1.0, 1.0]]))
        tensor([800.,  -0.], dtype=torch.float64)
    """
    below, is_top = _below_top(logits)
    return -below.masked_fill(is_top, -math.inf).logsumexp(dim=1)


def with_confidence(logits: Tensor, confidence: Tensor, *, remainder: Remainder = "uniform") -> Tensor:
    """Log-probabilities whose top class is that of the logits and has the given probability.

    With q_j the share of class j in the remainder, 1/(K - 1) or p_j/(1 - p_a), the label is safe where r > (1 - r) q_j
    for all j; r is clipped to [1/(1 + 1/max q) + 1e-6, 1 - 1e-6]. For "uniform" the lower end is 1/K + 1e-6.
    Deviation from the released code of Obadinma et al., which clips negative values to 1/K and 1 to 0.99 only, so that
    a confidence below 1/K moves the label.

    Args:
        logits: (n, K); gradients pass through the shares of "proportional".
        confidence: (n,) wanted, clipped as above; gradients pass.
        remainder: "uniform" or "proportional", see `TopScore`.

    Returns:
        (n, K), type and device of the logits.

    Example:
        >>> with_confidence(torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([0.6])).exp()
        tensor([[0.6000, 0.2000, 0.2000]])
    """
    classes = logits.shape[1]
    below, is_top = _below_top(logits)
    if remainder == "uniform":
        share = torch.full_like(below, -math.log(classes - 1))  # ln q
    else:
        share = below - below.masked_fill(is_top, -math.inf).logsumexp(dim=1, keepdim=True)
    least = share.masked_fill(is_top, -math.inf).amax(dim=1, keepdim=True).sigmoid() + _MARGIN
    most = torch.ones_like(least) - _MARGIN  # 1 - 1e-6 as one number would be rounded to float32 in an export
    top = torch.maximum(torch.minimum(confidence.to(below.dtype)[:, None], most), least)
    rebuilt = torch.where(is_top, top.log(), share + torch.log1p(-top))
    return keep_top(logits, rebuilt.clamp_min(torch.finfo(logits.dtype).min).to(logits.dtype))


def _below_top(logits: Tensor) -> tuple[Tensor, Tensor]:
    """z - max z (n, K), at most 0, and where the predicted class is, (n, K) bool."""
    z = wide(logits)
    top = z.argmax(dim=1, keepdim=True)
    is_top = torch.arange(z.shape[1], device=z.device) == top
    return (z - z.gather(1, top)).clamp_min(_FLOOR), is_top


def count_less(edges: Tensor, values: Tensor) -> Tensor:
    """How many of the sorted edges lie strictly below each value, by a binary search of fixed length.

    torch.searchsorted would do, but has no counterpart in ONNX; this is gathers and comparisons.

    Args:
        edges: (m,) ascending, m >= 0.
        values: (n,) of the same type; NaN counts 0.

    Returns:
        (n,) int64 in [0, m].

    Example:
        >>> count_less(torch.tensor([0.25, 0.5]), torch.tensor([0.1, 0.25, 0.3, 0.9]))
        tensor([0, 0, 1, 2])
    """
    count = torch.zeros_like(values, dtype=torch.int64)
    for power in reversed(range(len(edges).bit_length())):
        more = count + 2**power
        found = (more <= len(edges)) & (edges[(more - 1).clamp_max(len(edges) - 1)] < values)
        count = torch.where(found, more, count)
    return count


def interpolate(values: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Linear interpolation through (x, y), constant outside.

    Args:
        values: (n,), same type as x and y.
        x: (m,) strictly ascending, m >= 1.
        y: (m,).

    Returns:
        (n,), differentiable in the values.

    Example:
        >>> interpolate(torch.tensor([0.0, 0.5, 3.0]), torch.tensor([0.25, 0.75]), torch.tensor([0.0, 1.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    if len(x) == 1:
        return y[0] + 0 * values
    right = count_less(x, values).clamp(1, len(x) - 1)
    left = right - 1
    weight = ((values - x[left]) / (x[right] - x[left])).clamp(0, 1)
    return y[left] + weight * (y[right] - y[left])


__all__ = ["Remainder", "TopScore", "count_less", "interpolate", "log_odds", "with_confidence"]
