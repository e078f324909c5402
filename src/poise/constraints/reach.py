"""A ball around the same clean images, made ready for many steps."""

from __future__ import annotations

import torch
from torch import Tensor

from poise.constraints.base import Box, Constraint
from poise.constraints.linf import Linf


class Reach:
    """Where the points of m samples may lie: what `Constraint.project` does, step after step around the same images.

    A linf ball and the box cut each other in limits per pixel, which are worked out once; other balls project as ever.

    Args:
        ball, box: where points may lie.
        clean: (m, C, H, W).

    Attributes:
        sure: what `project` gives lies in ball and box by its making (`Ask.inside`).

    >>> clean = torch.tensor([[[[0.5, 0.98]]]])
    >>> Reach(Linf(0.1), clean, Box()).project(clean + 0.3)
    tensor([[[[0.6000, 1.0000]]]])
    """

    def __init__(self, ball: Constraint, clean: Tensor, box: Box) -> None:
        self._ball, self._clean, self._box = ball, clean, box
        self.sure = isinstance(ball, Linf)
        if self.sure:
            self._low, self._high = ((clean + side).clamp_(box.low, box.high) for side in (-ball.eps, ball.eps))

    def project(self, x: Tensor) -> Tensor:
        """`ball.project(x, clean, box)`, to the last bit; may write into x (m, C, H, W)."""
        if not self.sure:
            return self._ball.project(x, self._clean, self._box)
        return torch.minimum(torch.maximum(x, self._low, out=x), self._high, out=x)

    def descend(self, x: Tensor, gradient: Tensor, length: float) -> Tensor:
        """x (m, C, H, W), which stays as it is, moved by `length` against the gradient's steepest direction."""
        direction = self._ball.steepest(gradient)
        if self.sure:  # signs: their products are exact, so that one rounding does for both
            return self.project(torch.sub(x, direction, alpha=length))
        return self.project(x - length * direction)
