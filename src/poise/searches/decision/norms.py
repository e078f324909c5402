"""How HopSkipJump measures and draws in each norm."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from poise.constraints.base import Constraint
from poise.constraints.l2 import L2, per_row, unit
from poise.constraints.linf import Linf
from poise.errors import InputError
from poise.searches.decision.decisions import Decided, Decisions, blend


class Norm:
    """A norm's distance, its path from a wrong point to the boundary, and its random directions.

    Args:
        decisions: asks for decisions.
        ball: of the norm; its radius plays no part.
    """

    def __init__(self, decisions: Decisions, ball: Constraint) -> None:
        self.decisions, self.problem, self.ball = decisions, decisions.problem, ball
        self.d = math.prod(self.problem.clean.shape[1:])
        self.span = self.problem.box.high - self.problem.box.low

    def distance(self, x: Tensor, ids: Tensor) -> Tensor:
        """(m,) float64, from the clean images."""
        return self.ball.distance(x, self.problem.clean[ids]).double()

    def to_boundary(self, x: Tensor, ids: Tensor) -> Decided:
        """x (m, C, H, W) moved towards the clean images while it stays wrong."""
        raise TypeError(f"{type(self).__name__} must define to_boundary(x, ids)")

    def directions(self, purpose: str, step: int, ids: Tensor, count: int) -> Tensor:
        """(m, count, C, H, W) random, each of Euclidean length 1."""
        shape = tuple(self.problem.clean.shape[1:])
        draw = self._draw(purpose, step, ids, (count, *shape)).to(self.problem.clean.dtype)
        return unit(draw.flatten(0, 1)).view(len(ids), count, *shape)

    def _draw(self, purpose: str, step: int, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        return self.problem.rng.normal(purpose, step, ids, shape)

    def _floor(self) -> float:
        """Widths below this tell no two images apart."""
        return torch.finfo(self.problem.clean.dtype).eps


class Euclidean(Norm):
    """Straight paths, normal directions; a bracket of theta = 1 / (d sqrt d) of the path."""

    def to_boundary(self, x: Tensor, ids: Tensor) -> Decided:
        """By binary search on the straight line to the clean image."""
        one = torch.ones(len(ids), dtype=torch.float64, device=ids.device)
        theta = max(1 / (self.d * math.sqrt(self.d)), self._floor())
        path = blend(self.problem, ids, x)
        x, _ = yield from self.decisions.halve(path, ids, x, one, torch.zeros_like(one), theta * one)
        return x


class Maximum(Norm):
    """Paths that clip the change, uniform directions; a bracket of theta = 1 / d^2 of the change."""

    def to_boundary(self, x: Tensor, ids: Tensor) -> Decided:
        """By binary search on the largest change that is left."""
        clean, box, top = self.problem.clean, self.problem.box, self.distance(x, ids)

        def along(rows: Tensor, t: Tensor) -> Tensor:
            x0 = clean[ids[rows]]
            radius = per_row(t, x0)
            return box.project(x[rows].clamp(x0 - radius, x0 + radius))

        width = (top.clamp_max(self.span) / self.d**2).clamp_min(self._floor() * self.span)
        x, _ = yield from self.decisions.halve(along, ids, x, top, torch.zeros_like(top), width)
        return x

    def _draw(self, purpose: str, step: int, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        return 2 * self.problem.rng.uniform(purpose, step, ids, shape) - 1


NORMS: dict[type, Callable[[Decisions, Constraint], Norm]] = {Linf: Maximum, L2: Euclidean}
"""How to walk, by the ball in which success is judged."""


def norm_of(decisions: Decisions) -> Norm:
    """The norm of the problem's ball."""
    ball = decisions.problem.constraint
    kind = next((norm for known, norm in NORMS.items() if isinstance(ball, known)), None)
    if kind is None:
        raise InputError(f"{decisions.name}: the constraint must be Linf or L2, got {ball!r}")
    return kind(decisions, ball)
