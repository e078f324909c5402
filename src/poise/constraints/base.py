"""Where a point may lie: a ball around the clean image, cut with the box of legal pixel values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from poise.errors import InputError
from poise.rng import Rng

TOLERANCE = 1e-6
"""How far float32 rounding may leave a point outside ball or box, for pixels up to 1; in proportion above."""


@dataclass(frozen=True, slots=True)
class Box:
    """Legal pixel values, both ends included.

    Args:
        low, high: bounds in the units of the images.

    >>> import torch
    >>> Box(0.0, 1.0).project(torch.tensor([-0.5, 0.5, 2.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise InputError(f"Box: low must be below high, got {self.low} and {self.high}")

    def project(self, x: Tensor) -> Tensor:
        """x with every value moved to the nearest legal one."""
        return x.clamp(self.low, self.high)

    def contains(self, x: Tensor) -> Tensor:
        """(m,) bool: every value of x (m, C, H, W) is legal."""
        flat = x.flatten(1)
        low, high = flat.amin(dim=1), flat.amax(dim=1)  # both at once (aminmax) is ten times slower along a dimension
        slack = TOLERANCE * max(1.0, abs(self.low), abs(self.high))
        return (low >= self.low - slack) & (high <= self.high + slack)


class Constraint(Protocol):
    """A ball {x' : distance(x', clean) <= eps}; all points are (m, C, H, W), rows are independent.

    >>> import torch
    >>> from poise.constraints import Box, Linf
    >>> ball: Constraint = Linf(0.1)
    >>> clean = torch.full((1, 1, 2, 2), 0.95)
    >>> ball.project(clean + 0.3, clean, Box(0.0, 1.0)).amax().item(), ball.contains(clean + 0.3, clean).tolist()
    (1.0, [False])
    """

    @property
    def eps(self) -> float:
        """Radius, in the units of the images."""
        ...

    def project(self, x: Tensor, clean: Tensor, box: Box) -> Tensor:
        """A point of the ball and the box near x; x itself where it already lies in both."""
        ...

    def steepest(self, gradient: Tensor) -> Tensor:
        """Direction of length 1 in this ball's norm along which the loss rises fastest; zero where the gradient is."""
        ...

    def sample(self, clean: Tensor, box: Box, ids: Tensor, rng: Rng, step: int) -> Tensor:
        """A random point of the ball and the box."""
        ...

    def distance(self, x: Tensor, clean: Tensor) -> Tensor:
        """(m,) distance of x from clean in this ball's norm."""
        ...

    def contains(self, x: Tensor, clean: Tensor) -> Tensor:
        """(m,) bool: x lies in the ball, up to float32 rounding."""
        ...


def rounding(clean: Tensor) -> Tensor:
    """(m,) by how much float32 rounding of clean + change may exceed a radius."""
    return clean.flatten(1).abs().amax(dim=1).clamp_min(1.0) * TOLERANCE


def within(distance: Tensor, eps: float, clean: Tensor) -> Tensor:
    """(m,) bool: distance (m,) from clean (m, C, H, W) is at most eps, up to float32 rounding."""
    inside = distance <= eps + TOLERANCE
    if inside.device.type == "cpu" and bool(inside.all()):  # large pixels can only allow more
        return inside
    return distance <= eps + rounding(clean)


def check_radius(name: str, eps: float, highest: float | None) -> None:
    """Refuses radii that cannot be meant: eps of 8 where 8/255 is."""
    hint = (
        " (did you mean 8/255?)" if eps == 8 else f" (did you mean {eps:g}/255?)" if 1 < eps <= 64 and highest else ""
    )
    if not 0 <= eps < float("inf") or (highest is not None and eps > highest):
        limit = f"in [0, {highest:g}]" if highest is not None else "a finite number of at least 0"
        raise InputError(f"{name}: eps must be {limit}, got {eps}{hint}")
