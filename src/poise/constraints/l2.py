"""The Euclidean ball: the change as a whole has length eps at most."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from poise.constraints.base import TOLERANCE, Box, check_radius, within
from poise.rng import Rng


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """values (m,) shaped to broadcast over the rows of `like` (m, C, H, W)."""
    return values.view(-1, *[1] * (like.ndim - 1)).to(like.dtype)


def unit(direction: Tensor) -> Tensor:
    """Rows scaled to Euclidean length 1; rows of zeros stay zero.

    Divides by the largest entry first: squares of gradients of 1e-25, usual near saturation, vanish in float32.
    """
    top = direction.flatten(1).abs().amax(dim=1)
    scaled = direction / per_row(torch.where(top > 0, top, 1), direction)
    length = scaled.flatten(1).norm(dim=1)
    return scaled / per_row(torch.where(length > 0, length, 1), direction)


@dataclass(frozen=True, slots=True)
class L2:
    """{x' : ||x' - x||_2 <= eps}, over all pixels and channels.

    Args:
        eps: radius in pixel units, at least 0; 0.5 is common on CIFAR-10, 5.0 on 224 x 224 images.

    `project` scales the change into the ball, then clips to the box: a point of both, though not the nearest one of the
    intersection; clipping moves every value towards the clean image, so it never leaves the ball again.

    >>> clean = torch.full((1, 1, 1, 2), 0.5)
    >>> round(L2(0.1).distance(L2(0.1).project(clean + 0.3, clean, Box()), clean).item(), 5)
    0.1
    """

    eps: float

    def __post_init__(self) -> None:
        check_radius("L2", self.eps, None)

    def project(self, x: Tensor, clean: Tensor, box: Box) -> Tensor:
        """x with its change scaled to length eps where it is longer, then clipped to the box."""
        change = x - clean
        length = change.flatten(1).norm(dim=1)
        factor = torch.where(length > self.eps, self.eps / torch.where(length > 0, length, 1), 1)
        return box.project(torch.where(per_row(length <= self.eps, x).bool(), x, clean + change * per_row(factor, x)))

    def steepest(self, gradient: Tensor) -> Tensor:
        """The gradient at Euclidean length 1."""
        return unit(gradient)

    def sample(self, clean: Tensor, box: Box, ids: Tensor, rng: Rng, step: int) -> Tensor:
        """Uniform in the ball (direction uniform, radius by the volume's law), then clipped to the box."""
        direction = unit(rng.normal("l2-start", step, ids, tuple(clean.shape[1:])).to(clean.dtype))
        dimensions = float(max(math.prod(clean.shape[1:]), 1))
        radius = rng.uniform("l2-radius", step, ids).double().pow(1.0 / dimensions)
        return self.project(clean + direction * per_row(radius * self.eps, clean), clean, box)

    def distance(self, x: Tensor, clean: Tensor) -> Tensor:
        """(m,) Euclidean length of the change."""
        length: Tensor = (x - clean).flatten(1).norm(dim=1)
        return length

    def contains(self, x: Tensor, clean: Tensor) -> Tensor:
        """(m,) bool: the change is no longer than eps, up to float32 rounding of a sum over all pixels."""
        return within(self.distance(x, clean), self.eps * (1 + TOLERANCE), clean)
