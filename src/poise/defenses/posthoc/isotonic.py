"""Isotonic regression of correctness on confidence."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from poise.defenses.posthoc.remap import Remainder, TopScore, interpolate


class Isotonic(TopScore):
    """The non-decreasing map of the top-1 confidence with the least squared error to correctness.

    Zadrozny and Elkan 2002, "Transforming Classifier Scores into Accurate Multiclass Probability Estimates", by the
    pool-adjacent-violators algorithm of scikit-learn. Equal confidences are pooled first; between the ends of the
    blocks the map is linear, outside it is constant. On the fitting data each block has the accuracy that it claims.
    Deviation: one map of the top score instead of one per class, and the label is kept (`with_confidence`).

    Inside a block the confidence does not move with the logits: its derivative is 0, and so is an attacker's gradient.

    Args:
        remainder: "uniform" or "proportional", see `TopScore`.

    Buffers:
        scores: (m,) float64 ascending, ends of the blocks; accuracies: (m,) float64, non-decreasing.

    Warns:
        PoiseWarning: at `fit`, where every sample is right or every one is wrong.

    Example:
        >>> top = torch.tensor([0.55, 0.6, 0.7, 0.8], dtype=torch.float64)
        >>> logits = torch.stack([top, 1 - top], dim=1).log()
        >>> defense = Isotonic().fit(logits, torch.tensor([1, 0, 1, 0]))  # wrong, right, wrong, right
        >>> defense.calibrate(top)
        tensor([0.0000, 0.5000, 0.5000, 1.0000], dtype=torch.float64)
    """

    monotone = True

    scores: Tensor
    accuracies: Tensor

    def __init__(self, *, remainder: Remainder = "uniform") -> None:
        super().__init__(remainder=remainder)
        self.register_buffer("scores", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("accuracies", torch.zeros(0, dtype=torch.float64))

    def _learn(self, odds: Tensor, hits: Tensor) -> None:
        from sklearn.isotonic import IsotonicRegression

        fitted = IsotonicRegression(y_min=0, y_max=1).fit(odds.sigmoid().cpu().numpy(), hits.double().cpu().numpy())
        for name, values in (("scores", fitted.X_thresholds_), ("accuracies", fitted.y_thresholds_)):
            setattr(self, name, torch.from_numpy(np.array(values)).to(odds))

    def _calibrate(self, odds: Tensor) -> Tensor:
        return interpolate(odds.sigmoid(), self.scores, self.accuracies)
