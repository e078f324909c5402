"""The maximum-norm ball: every pixel may change by eps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from poise.constraints.base import Box, check_radius, within
from poise.rng import Rng


@dataclass(frozen=True, slots=True)
class Linf:
    """{x' : max |x' - x| <= eps}.

    Args:
        eps: radius in pixel units, in [0, 1]; 8/255 is common on CIFAR-10, 0.05 in the calibration-attack paper.

    >>> import torch
    >>> Linf(0.1).project(torch.tensor([[[[0.9]]]]), torch.tensor([[[[0.5]]]]), Box()).item()  # doctest: +ELLIPSIS
    0.6000...
    """

    eps: float

    def __post_init__(self) -> None:
        check_radius("Linf", self.eps, 1.0)

    def project(self, x: Tensor, clean: Tensor, box: Box) -> Tensor:
        """The nearest point of ball and box (for this norm the two commute)."""
        low, high = clean - self.eps, clean + self.eps
        buffer = None if x.requires_grad or (x.shape, x.dtype) != (low.shape, low.dtype) else low
        above = torch.maximum(x, low, out=buffer)  # clamp between two tensors takes twice as long
        return torch.minimum(above, high, out=buffer).clamp_(box.low, box.high)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The gradient's signs."""
        return gradient.sign()

    def sample(self, clean: Tensor, box: Box, ids: Tensor, rng: Rng, step: int) -> Tensor:
        """Uniform in the ball, then moved into the box."""
        noise = rng.uniform("linf-start", step, ids, tuple(clean.shape[1:])).to(clean.dtype)
        return self.project(clean + (2 * noise - 1) * self.eps, clean, box)

    def distance(self, x: Tensor, clean: Tensor) -> Tensor:
        """(m,) largest absolute change."""
        return (x - clean).flatten(1).abs_().amax(dim=1)

    def contains(self, x: Tensor, clean: Tensor) -> Tensor:
        """(m,) bool: no pixel changed by more than eps."""
        return within(self.distance(x, clean), self.eps, clean)
