"""Grey levels inside a ball: the points that an 8-bit image file or a camera can deliver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from poise.constraints.anywhere import Anywhere
from poise.constraints.base import Box, Constraint
from poise.constraints.l2 import L2, per_row
from poise.constraints.linf import Linf
from poise.errors import InputError, one_of
from poise.rng import Rng

TOP = 255
"""The highest level; 0 is the lowest."""

_GUARD = 1e-4  # of one level: above float32's error of a level (3e-5), below what `Constraint.contains` allows (2.5e-4)


@dataclass(frozen=True, slots=True)
class EightBit:
    """The points of a ball whose values are all k/255 of the box, k = 0..255 (AAA paper, Chen et al. 2022, sec. 5.1).

    A point and its distance from the clean image are judged as they are after rounding. With an eps that is no multiple
    of 1/255, changes of a linf ball are therefore at most floor(255 eps)/255.

    Args:
        inner: the ball: `Linf`, `L2` or `Anywhere`.
        mode: how a value becomes a level: "round" to the nearest, halves upwards, or "floor", as the AAA paper's code
            does.
        box: lowest and highest level; those of the target.

    `project` goes into the ball, then to the grid. Where that step leaves the ball again, values take the level on the
    side of the clean image instead: in a linf ball each for itself, in an l2 ball as many as it takes, those first that
    come cheapest. Grid values are those of `torch.uint8` images divided by 255 in the images' own type.

    Images that are off the grid: their own values are asked for once and returned where nothing better was found; every
    other point lies on the grid, within eps of them. A ball that holds no such point is refused by `check`.

    `poise.attack` lets a search move in the ball itself and settles each of its questions on the grid, so that steps
    below one level add up, as with a straight-through gradient.

    Raises:
        InputError: an argument is not as above.

    >>> ball, clean = EightBit(Linf(2.6 / 255)), torch.full((1, 1, 1, 3), 100 / 255)
    >>> ball.project(clean + torch.tensor([0.4, 1.5, 9.0]) / 255, clean, Box()) * 255
    tensor([[[[100., 102., 102.]]]])
    """

    inner: Constraint
    mode: Literal["round", "floor"] = "round"
    box: Box = field(default_factory=Box)

    def __post_init__(self) -> None:
        if not isinstance(self.inner, tuple(_SETTLE)):
            raise InputError(f"EightBit: inner must be Linf, L2 or Anywhere, got {self.inner!r}")
        if self.mode not in ("round", "floor"):
            raise one_of("EightBit: mode", self.mode, ["round", "floor"])

    @property
    def eps(self) -> float:
        """Radius of the ball."""
        return self.inner.eps

    def project(self, x: Tensor, clean: Tensor, box: Box) -> Tensor:
        """A grid point of ball and box near x; the level nearest to the clean value where the ball holds none."""
        at, c = self._level(self.inner.project(x, clean, box)), self._level(clean)
        near = self._settled(at)
        toward = torch.where(at >= c.round(), at.floor(), at.ceil())
        eps = self.eps * TOP / (self.box.high - self.box.low) + _GUARD
        settle = next(rule for ball, rule in _SETTLE.items() if isinstance(self.inner, ball))
        return self._value(settle(Levels(at, c, near, toward, eps)), x)

    def settle(self, x: Tensor, clean: Tensor) -> Tensor:
        """The question that is put in place of x: on the grid, and in the ball where x is in the ball."""
        inside = per_row(self.inner.contains(x, clean), x).bool()
        return torch.where(inside, self.project(x, clean, self.box), self._value(self._settled(self._level(x)), x))

    def steepest(self, gradient: Tensor) -> Tensor:
        """The ball's."""
        return self.inner.steepest(gradient)

    def sample(self, clean: Tensor, box: Box, ids: Tensor, rng: Rng, step: int) -> Tensor:
        """The ball's random point, projected."""
        return self.project(self.inner.sample(clean, box, ids, rng, step), clean, box)

    def distance(self, x: Tensor, clean: Tensor) -> Tensor:
        """(m,) the ball's distance; x as it is."""
        return self.inner.distance(x, clean)

    def contains(self, x: Tensor, clean: Tensor) -> Tensor:
        """(m,) bool: all values of x are levels, to the last bit, and x lies in the ball."""
        on_grid = (x == self._value(self._level(x).round(), x)).flatten(1).all(dim=1)
        return on_grid & self.inner.contains(x, clean)

    def check(self, clean: Tensor, box: Box) -> None:
        """Refuses a box that is not the grid's own, and images (n, C, H, W) whose ball holds no point of the grid."""
        if box != self.box:
            raise InputError(f"EightBit: box must be the target's, {box!r}, got {self.box!r}")
        nearest = self._value(self._level(clean).round(), clean)
        lost = ~self.inner.contains(nearest, clean)
        if bool(lost.any()):
            row = int(lost.nonzero()[0, 0])
            away = float(self.distance(nearest[row : row + 1], clean[row : row + 1]))
            raise InputError(
                f"EightBit: eps must be at least {away:.3g}, the distance of image {row} from the nearest 8-bit image, "
                f"got {self.eps:.3g}"
            )

    def _level(self, x: Tensor) -> Tensor:
        """x in units of a level, float64; what float32 makes of a level is that level."""
        level = (x.double() - self.box.low) * (TOP / (self.box.high - self.box.low))
        whole = level.round()
        return torch.where((level - whole).abs() < _GUARD, whole, level)

    def _settled(self, level: Tensor) -> Tensor:
        return (level + (0.5 if self.mode == "round" else 0.0)).floor()

    def _value(self, level: Tensor, like: Tensor) -> Tensor:
        return grid(self.box, like.dtype, like.device)[level.clamp(0, TOP).long()]


@lru_cache(maxsize=16)
def grid(box: Box, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(256,) the values of all levels; divided on the host, as some devices multiply by 1/255 instead."""
    values: Tensor = torch.arange(TOP + 1).to(dtype) * (box.high - box.low) / TOP + box.low
    return values.to(device)


@dataclass(frozen=True, slots=True)
class Levels:
    """What the rules below choose from, all (m, C, H, W) in units of a level.

    Args:
        at: the point of the ball.
        clean: the centre.
        near: its level by the mode.
        toward: the whole level next to it on the centre's side.
        eps: radius.
    """

    at: Tensor
    clean: Tensor
    near: Tensor
    toward: Tensor
    eps: float


def _each_value(levels: Levels) -> Tensor:
    """Linf: each value for itself."""
    return torch.where((levels.near - levels.clean).abs() > levels.eps, levels.toward, levels.near)


def _together(levels: Levels) -> Tensor:
    """L2: values step back until the sum fits, in the order of what they lose per gain.

    First from `near` to `toward`; from there, for centres off the grid alone, on to the centre's nearest level.
    """
    at, clean = levels.at.flatten(1), levels.clean.flatten(1)
    near, toward, home = levels.near.flatten(1), levels.toward.flatten(1), clean.round()
    gains, orders = [], []
    for stage, (here, there) in enumerate(((near, toward), (toward, home))):
        gain = (here - clean).square() - (there - clean).square()
        loss = (there - at).square() - (here - at).square()
        price = torch.where(gain > 0, loss / gain.clamp_min(1e-12), torch.inf)
        gains.append(gain)
        orders.append(price.arctan() + 4.0 * stage)  # all of the first stage before the second
    gain = torch.cat(gains, dim=1)
    order = torch.cat(orders, dim=1).argsort(dim=1, stable=True)
    in_order = gain.gather(1, order)
    excess = (near - clean).square().sum(dim=1, keepdim=True) - levels.eps**2
    taken = torch.zeros_like(gain, dtype=torch.bool).scatter(1, order, in_order.cumsum(dim=1) - in_order < excess)
    first, second = taken.chunk(2, dim=1)
    return torch.where(second, home, torch.where(first, toward, near)).view(levels.at.shape)


def _nearest(levels: Levels) -> Tensor:
    return levels.near


_SETTLE: dict[type, Callable[[Levels], Tensor]] = {Linf: _each_value, L2: _together, Anywhere: _nearest}
"""How a point settles on the grid without leaving its ball."""
