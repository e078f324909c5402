"""HopSkipJump: boundary search, gradient of the decision by Monte Carlo, step (Chen, Jordan & Wainwright, 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import count
from typing import ClassVar

import torch
from torch import Tensor

from poise.constraints.l2 import per_row
from poise.errors import InputError
from poise.searches.base import Problem, Steps, running
from poise.searches.decision.decisions import Decided, Decisions
from poise.searches.decision.norms import Norm, norm_of
from poise.searches.decision.slow import Slow
from poise.types import Access

BLOCK = 2**15
"""Most numbers per sample in one ask of probes, so that large images are asked a few at a time."""

_BLOCKS = 10**6
"""More blocks of probes than any iteration has: iteration and block together name a draw."""


@dataclass(frozen=True, slots=True)
class HopSkipJump:
    """Labels alone: to the boundary, its slope by Monte Carlo, a step along it (HopSkipJumpAttack).

    Chen, Jordan & Wainwright, "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack", S&P 2020, Alg. 2; for
    `Misclassify()`.

    Start: uniform noise until it is wrong, blended with the clean image to 0.001. Iteration j: to the boundary by
    binary search, to theta = 1 / (d sqrt d) of the straight path (l2) or 1 / d^2 of the change (linf); `probes`
    sqrt(j) Monte-Carlo probes at radius delta (0.1 of the pixel range at j = 1, then dist / d, with the distance before
    the projection), whose decisions +-1, less their mean unless they agree, weigh the clipped displacements; a step of
    dist / sqrt(j) along that direction (l2) or its signs (linf), halved until it is wrong.

    Args:
        iterations: 40 in the reference code; None goes on to the end of the budget.
        probes: probes of the first iteration; 100.
        most_probes: of any iteration; 10,000.
        tries: random images to begin with; a sample that finds none wrong gives up.

    It seeks the smallest change and knows no eps: the ball gives the norm, and says which wrong point is a result.
    Points outside the ball, and all Monte-Carlo probes, are charged and never returned. So a success is a wrong point
    no farther than eps, and with `Misclassify()` a sample ends at its first. Images that are misclassified already are
    left alone.

    Deviation: a binary search ends where the images' floating-point type tells no two points apart (theta is below that
    for linf and large images).

    >>> import torch, poise
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> target = poise.ModuleTarget(model, num_classes=3)
    >>> images = torch.rand(2, 1, 2, 2)
    >>> labels = model(images).argmax(dim=1)
    >>> result = poise.attack(target, poise.objectives.Misclassify(), HopSkipJump(), poise.constraints.L2(0.5),
    ...                       images, labels, budget=200)
    >>> (result.table["l2"] <= 0.50001).all()
    True
    """

    access: ClassVar[Access] = Access.LABELS
    iterations: int | None = 40
    probes: int = 100
    most_probes: int = 10_000
    tries: int = 10_000

    def __post_init__(self) -> None:
        for name, value in (("iterations", self.iterations), ("probes", self.probes), ("tries", self.tries)):
            if value is not None and value < 1:
                raise InputError(f"HopSkipJump: {name} must be at least 1, got {value}")
        if self.most_probes < self.probes:
            raise InputError(f"HopSkipJump: most_probes must be at least probes, {self.probes}, got {self.most_probes}")

    def run(self, problem: Problem) -> Steps:
        decisions = Decisions(problem, "HopSkipJump")
        norm = norm_of(decisions)
        ids = yield from decisions.begin()
        ids, x = yield from decisions.start(ids, self.tries)
        yield from self.hops(norm, ids, x)

    def hops(self, norm: Norm, ids: Tensor, x: Tensor, slow: Slow | None = None) -> Decided:
        """The iterations, from wrong points x (m, C, H, W) of samples ids (m,); where it is slow a sample ends early.

        Returns:
            (m, C, H, W) the nearest wrong point of each sample.
        """
        decisions = norm.decisions
        nearest, least = x.clone(), norm.distance(x, ids)
        rows, reach, looked, spent = (
            torch.arange(len(ids), device=ids.device),
            least,
            torch.full_like(least, torch.inf),
            0,
        )
        x = yield from norm.to_boundary(x, ids)
        for j in count(1):
            distance = norm.distance(x, ids)
            closer = distance < least[rows]
            least[rows] = torch.where(closer, distance, least[rows])
            nearest[rows] = torch.where(closer.view(-1, 1, 1, 1), x, nearest[rows])
            if slow is not None and spent > slow.queries:
                going_on = looked - distance >= slow.gain * norm.span
                ids, rows, x, reach, distance = (part[going_on] for part in (ids, rows, x, reach, distance))
                looked, spent = distance, 0
            ids, rows, x, reach, distance, looked = running(decisions.active, ids, rows, x, reach, distance, looked)
            if not len(ids) or (self.iterations is not None and j > self.iterations):
                return nearest
            delta = torch.full_like(reach, 0.1 * norm.span) if j == 1 else reach / norm.d
            probes = min(int(self.probes * math.sqrt(j)), self.most_probes)
            slope = yield from _slope(norm, ids, x, delta, probes, j)
            x = yield from _step(norm, ids, x, norm.ball.steepest(slope), distance / math.sqrt(j))
            reach, spent = norm.distance(x, ids), spent + probes
            x = yield from norm.to_boundary(x, ids)
        raise AssertionError("count() does not end")


def _slope(norm: Norm, ids: Tensor, x: Tensor, delta: Tensor, probes: int, iteration: int) -> Decided:
    """(m, C, H, W) where the decision turns wrong, from `probes` points per sample at distance delta (m,) of x."""
    decisions, box = norm.decisions, norm.problem.box
    weighted, moved, score = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(delta)
    most = max(BLOCK // norm.d, 1)
    for block, first in enumerate(range(0, probes, most)):
        rows = decisions.active[ids].nonzero()[:, 0]
        if not len(rows):
            break
        size = min(most, probes - first)
        directions = norm.directions("hop-probes", iteration * _BLOCKS + block, ids[rows], size)
        here, radius = x[rows, None], per_row(delta[rows], x)[:, None]
        points = box.project(here + radius * directions)
        shift = (points - here) / radius
        sign = 2 * (yield from decisions.probe(points, ids[rows])).to(x.dtype) - 1
        weighted[rows] += (sign.view(*sign.shape, 1, 1, 1) * shift).sum(dim=1)
        moved[rows] += shift.sum(dim=1)
        score[rows] += sign.sum(dim=1).double()
    mean = score / probes
    return torch.where(per_row(mean.abs() == 1, x).bool(), weighted, weighted - per_row(mean, x) * moved)


def _step(norm: Norm, ids: Tensor, x: Tensor, direction: Tensor, length: Tensor) -> Decided:
    """x (m, C, H, W) moved along the direction by the first of length, length / 2, length / 4, ... that is wrong."""
    problem, x, length = norm.problem, x.clone(), length.clone()
    pending = torch.ones_like(ids, dtype=torch.bool)
    here = x.clone()
    while True:
        rows = (pending & norm.decisions.active[ids]).nonzero()[:, 0]
        if not len(rows):
            return x
        points = problem.box.project(here[rows] + per_row(length[rows], x) * direction[rows])
        wrong = yield from norm.decisions.ask(points, ids[rows])
        x[rows] = torch.where(wrong.view(-1, 1, 1, 1), points, x[rows])
        length[rows], pending[rows] = length[rows] / 2, ~wrong
