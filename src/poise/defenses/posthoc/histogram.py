"""Histogram binning: each confidence becomes the accuracy of its bin."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from poise.defenses.posthoc.remap import Remainder, TopScore, count_less
from poise.errors import InputError, one_of

Equal = Literal["width", "mass"]


class HistogramBinning(TopScore):
    """Replaces the top-1 confidence by the accuracy that its bin had on the held-out data.

    Zadrozny and Elkan 2001, "Obtaining calibrated probability estimates from decision trees and naive Bayesian
    classifiers"; bins of the top score as in Guo et al. 2017, section 4.1. Bins are closed on the right, the first also
    on the left. On the fitting data each bin has the accuracy that it claims. Deviation: one histogram of the top score
    instead of one per class, and the label is kept (`with_confidence`).

    The map is a staircase: its derivative is 0 almost everywhere, so that a gradient says nothing about it
    (`differentiable` is False; a white-box attacker goes around it), and accuracy may fall from a bin to the next.

    Args:
        bins: number of bins, at least 1.
        equal: "width" cuts [0, 1] into equal parts, "mass" the held-out data into equal groups (equal confidences stay
            together, so that there may be fewer).
        remainder: "uniform" or "proportional", see `TopScore`.

    Buffers:
        edges: (B - 1,) float64 ascending, upper ends of all bins but the last (for "mass" half-way between two
        scores, so that rounding moves no sample); accuracies: (B,) float64, the centre of the bin where it held no
        data; counts: (B,) int64.

    Raises:
        InputError: bins below 1, or an unknown name.

    Warns:
        PoiseWarning: at `fit`, where every sample is right or every one is wrong.

    Example:
        >>> top = torch.tensor([0.6, 0.7, 0.8, 0.9], dtype=torch.float64)
        >>> logits = torch.stack([top, 1 - top], dim=1).log()
        >>> defense = HistogramBinning(bins=4).fit(logits, torch.tensor([0, 1, 0, 0]))
        >>> defense.calibrate(torch.tensor([0.1, 0.6, 0.99]))
        tensor([0.1250, 0.5000, 1.0000], dtype=torch.float64)
    """

    differentiable = False

    edges: Tensor
    accuracies: Tensor
    counts: Tensor

    def __init__(self, bins: int = 15, *, equal: Equal = "width", remainder: Remainder = "uniform") -> None:
        if bins < 1:
            raise InputError(f"HistogramBinning: bins must be at least 1, got {bins}")
        if equal not in get_args(Equal):
            raise one_of("HistogramBinning: equal", equal, list(get_args(Equal)))
        super().__init__(remainder=remainder)
        self.bins = bins
        self.equal: Equal = equal
        self.register_buffer("edges", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("accuracies", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))

    def _learn(self, odds: Tensor, hits: Tensor) -> None:
        scores = odds.sigmoid()
        self.edges = self._edges(scores)
        index, bins = count_less(self.edges, scores), len(self.edges) + 1
        self.counts = torch.bincount(index, minlength=bins)
        right = torch.bincount(index, weights=hits.to(scores), minlength=bins).to(scores)
        ends = torch.cat([scores.new_zeros(1), self.edges, scores.new_ones(1)])
        centres = (ends[1:] + ends[:-1]) / 2
        self.accuracies = torch.where(self.counts > 0, right / self.counts.clamp_min(1), centres)

    def _edges(self, scores: Tensor) -> Tensor:
        if self.equal == "width":
            return torch.arange(1, self.bins, device=scores.device).to(scores) / self.bins
        distinct, index = np.unique(scores.cpu().numpy(), return_inverse=True)
        groups = np.array_split(np.sort(index), self.bins)
        last = np.unique([group[-1] for group in groups if len(group)])[:-1]  # the last bin has no upper end
        return torch.from_numpy((distinct[last] + distinct[last + 1]) / 2).to(scores)  # between scores, not on one

    def _calibrate(self, odds: Tensor) -> Tensor:
        return self.accuracies[count_less(self.edges, odds.sigmoid())]
