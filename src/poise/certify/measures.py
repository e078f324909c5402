"""What is smoothed and certified: a score of one class, in a known range."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


def _probability(probabilities: Tensor, classes: Tensor) -> Tensor:
    return probabilities.gather(1, classes[:, None])[:, 0]


def _margin(probabilities: Tensor, classes: Tensor) -> Tensor:
    others = probabilities.scatter(1, classes[:, None], -1.0).amax(dim=1)
    return _probability(probabilities, classes) - others


@dataclass(frozen=True)
class Measure:
    """A score of class c at one noisy image, in [low, high] (Kumar et al., NeurIPS 2020, section 3).

    Args:
        name: as the paper's code calls it.
        low, high: its range; whole numbers, so that bin edges are exact.
        certified_above: a smoothed score above it means that class c is the smoothed prediction.
        score: probabilities (m, K) and classes (m,) to scores (m,).

    >>> import torch
    >>> above_half = Measure("above_half", 0.0, 1.0, 0.5, lambda p, c: (p.gather(1, c[:, None])[:, 0] > 0.5).to(p))
    >>> above_half.score(torch.tensor([[0.7, 0.3]]), torch.tensor([0]))
    tensor([1.])
    """

    name: str
    low: float
    high: float
    certified_above: float
    score: Callable[[Tensor, Tensor], Tensor]


PRED_SCORE = Measure("pred_score", 0.0, 1.0, 0.5, _probability)
"""p_c, in [0, 1]: above 1/2 no other class can have more."""

MARGIN = Measure("margin", -1.0, 1.0, 0.0, _margin)
"""p_c - max_{j != c} p_j, in [-1, 1]: top-1 minus top-2 where c is the top class, p_c - p_top otherwise."""

MEASURES = {measure.name: measure for measure in (PRED_SCORE, MARGIN)}
"""Measures by name."""
