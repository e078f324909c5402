"""Spline recalibration: the derivative of a smooth fit to the cumulative gap between correctness and confidence."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from torch import Tensor

from poise.defenses.posthoc.remap import Remainder, TopScore, interpolate
from poise.errors import InputError


class Splines(TopScore):
    """Adds to each confidence the local gap between accuracy and confidence, read off a natural cubic spline.

    Gupta et al. 2021, "Calibration of Neural Networks using Splines", sections 3 and 4. With the top scores sorted,
    s_1 <= ... <= s_N, and hits h, the cumulative gap is G_i = (1/N) sum_{j <= i} (h_j - s_j) at t_i = (i - 1)/(N - 1).
    A natural cubic spline f with equispaced knots on [0, 1] is fitted to (t_i, G_i) by least squares; the new
    confidence at s_i is s_i + f'(t_i), linear between scores, constant outside, clipped to [0, 1].

    As in the released code, G_i is paired with (i - 1)/(N - 1), so that the correction is (N - 1)/N of the exact one.
    Deviations from it: its two interpolation weights are swapped; equal scores get the mean of their values (it fails
    there); and the label is kept (`with_confidence`).

    Args:
        knots: of the spline, at least 2 (a straight line); 6 as published.
        monotone: make the map of confidences non-decreasing by isotonic regression; needs remainder "uniform".
        remainder: "uniform" or "proportional", see `TopScore`.

    Buffers:
        heights: (knots,) float64, f at the knots; scores: (m,) float64 ascending; values: (m,) float64, the new
        confidences at the scores.

    Raises:
        InputError: fewer than 2 knots, or `monotone` with remainder "proportional".

    Warns:
        PoiseWarning: at `fit`, where every sample is right or every one is wrong.

    Example:
        >>> top = torch.linspace(0.7, 0.7 + 1e-9, 101, dtype=torch.float64)
        >>> logits = torch.stack([top, 1 - top], dim=1).log()
        >>> labels = (torch.arange(101) % 10 == 0).long()  # right in 90 of 101
        >>> bool((Splines().fit(logits, labels)(logits).softmax(1)[:, 0] - 0.89).abs().mean() < 0.03)
        True
    """

    heights: Tensor
    scores: Tensor
    values: Tensor

    def __init__(self, *, knots: int = 6, monotone: bool = False, remainder: Remainder = "uniform") -> None:
        if knots < 2:
            raise InputError(f"Splines: knots must be at least 2, got {knots}")
        if monotone and remainder == "proportional":
            raise InputError("Splines: monotone=True needs remainder 'uniform', got 'proportional'")
        super().__init__(remainder=remainder)
        self.knots = knots
        self.monotone = monotone  # type: ignore[misc]  # the option is the promise
        for name in ("heights", "scores", "values"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.float64))

    def _learn(self, odds: Tensor, hits: Tensor) -> None:
        learned = dict(
            zip(
                ("heights", "scores", "values"),
                _recalibrated(odds.sigmoid().cpu().numpy(), hits.cpu().numpy(), self.knots, monotone=self.monotone),
                strict=True,
            )
        )
        for name, values in learned.items():
            setattr(self, name, torch.from_numpy(values).to(odds))

    def _calibrate(self, odds: Tensor) -> Tensor:
        return interpolate(odds.sigmoid(), self.scores, self.values)


def _recalibrated(
    scores: NDArray[np.float64], hits: NDArray[np.bool_], knots: int, *, monotone: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Heights of the spline at its knots, the distinct scores in order, and the new confidences there."""
    order = np.argsort(scores, kind="stable")
    s, n = scores[order], len(scores)
    gap = np.cumsum(hits[order] - s) / n
    t, at = np.linspace(0, 1, n), np.linspace(0, 1, knots)
    basis = CubicSpline(at, np.eye(knots), bc_type="natural")
    heights = np.linalg.lstsq(basis(t), gap, rcond=None)[0]
    new = s + basis(t, nu=1) @ heights
    distinct, index, count = np.unique(s, return_inverse=True, return_counts=True)
    new = np.clip(np.bincount(index, new) / count, 0, 1)
    if monotone:
        from sklearn.isotonic import IsotonicRegression

        # "clip": scores closer than 1e-15 are pooled, and the largest may then lie outside of the fitted range.
        new = IsotonicRegression(out_of_bounds="clip").fit_transform(distinct, new, sample_weight=count)
    return heights, distinct, np.asarray(new, dtype=np.float64)
