"""The white-box member of the standard attack: it walks across the label boundary and chooses its loss by reach."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from poise.constraints.base import Constraint
from poise.constraints.l2 import per_row
from poise.errors import InputError
from poise.searches.base import Ask, Problem, Reply, Steps, running
from poise.searches.gradient import check_steps, unit_sum
from poise.types import Access


@dataclass(frozen=True, slots=True)
class Pace:
    """How a sample moves: step lengths fall geometrically, the order of the loss rises geometrically.

    Args:
        first, last: first and last step length as shares of eps.
        momentum: what is kept of the last direction.
        orders: first and last order of the divergence that is followed (`MinConfidence`); 0 stands for KL(u || p).
    """

    first: float
    last: float
    momentum: float
    orders: tuple[float, float]

    def order(self, progress: float) -> float:
        """The order after that share of the steps."""
        low, high = self.orders
        return 0.0 if low == 0 else low * math.exp(progress * math.log(high / low))

    def step(self, progress: float) -> float:
        """The step length after that share of the steps, as a share of eps."""
        return self.first * math.exp(progress * math.log(self.last / self.first))


NEAR = Pace(first=0.5, last=0.0025, momentum=0.4, orders=(0.0, 0.0))
"""Where the uniform answer is within reach: pull all classes up at once, and land softly."""

FAR = Pace(first=1.0, last=0.03, momentum=0.75, orders=(1.3, 64.0))
"""Where it is not: look more and more at the highest class alone, with longer steps."""

LOOK = 2
"""Steps after which a sample's pace is chosen."""


@dataclass(frozen=True, slots=True)
class ConfidencePGD:
    """x <- Pi(x - a_t steepest(v_t)), v_t = mu v_{t-1} + g / ||g||_1; the driver keeps the best point that is accepted.

    No step is ever undone: the goal's loss punishes a lost label, and the iterate may cross the boundary and return
    from another side. After two steps at the pace `NEAR` the search asks how much further it is: loss / (eps * dual
    norm of the gradient), the share of the ball that a linear model would still need. Samples above `far` change to
    the pace `FAR`. At the clean image itself a saturated answer looks further away than it is, hence the two steps.

    Args:
        steps: gradient steps T; T forward+backward passes and one last forward pass.
        start: "clean", "random" (in the ball), or "best": the best point that an earlier member of a cascade found.
        pace: "reach" as described, "other" the opposite choice, "near" or "far" for all samples.
        far: the share of the ball above which a sample is far.
        scale: all step lengths are multiplied by it.

    >>> import poise
    >>> target, data = poise.models.load("builtin:digits"), poise.data.load("builtin:digits", samples=4)
    >>> goal, ball = poise.objectives.KeepLabel(poise.objectives.MinConfidence()), poise.constraints.Linf(0.1)
    >>> result = poise.attack(target, goal, ConfidencePGD(steps=20), ball, data.images, data.labels)
    >>> (result.table["confidence_after"] < result.table["confidence_before"]).all()
    True
    """

    access: ClassVar[Access] = Access.GRADIENTS
    steps: int = 100
    start: Literal["clean", "random", "best"] = "clean"
    pace: Literal["reach", "other", "near", "far"] = "reach"
    far: float = 0.3
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_steps("ConfidencePGD", self.steps, None)
        if not 0 < self.scale < math.inf:
            raise InputError(f"ConfidencePGD: scale must be a positive number, got {self.scale}")
        if self.start not in ("clean", "random", "best"):
            raise InputError(f"ConfidencePGD: start must be 'clean', 'random' or 'best', got '{self.start}'")
        if self.pace not in ("reach", "other", "near", "far"):
            raise InputError(f"ConfidencePGD: pace must be 'reach', 'other', 'near' or 'far', got '{self.pace}'")

    def run(self, problem: Problem) -> Steps:
        constraint, box, clean = problem.constraint, problem.box, problem.clean
        reply = yield Ask(clean, problem.everyone, grad=True)
        assert reply.grad is not None
        far = torch.full_like(problem.over, self.pace == "far")
        ids = reply.active.nonzero()[:, 0]
        x, gradient = clean[ids], reply.grad[ids]
        if self.start != "clean" and len(ids):
            x, reply = yield from self._begin_elsewhere(problem, ids, far)
            assert reply.grad is not None
            gradient = reply.grad
            ids, x, gradient = running(reply.active, ids, x, gradient)
        velocity = torch.zeros_like(x)
        for t in range(self.steps):
            if not len(ids):
                return
            progress = t / self.steps
            momentum = torch.where(far, FAR.momentum, NEAR.momentum)[ids]
            velocity = per_row(momentum, x) * velocity + unit_sum(gradient)
            step = torch.where(far, FAR.step(progress), NEAR.step(progress))[ids] * self.scale * constraint.eps
            x = constraint.project(x - per_row(step, x) * constraint.steepest(velocity), clean[ids], box)
            more = t + 1 < self.steps
            reply = yield Ask(x, ids, grad=more, aim=_orders(far, (t + 1) / self.steps)[ids], step=step)
            if more:
                assert reply.grad is not None
                if t + 1 == LOOK and self.pace in ("reach", "other"):
                    far[ids] = self._beyond(reply.loss, reply.grad, constraint)
                ids, x, gradient, velocity = running(reply.active, ids, x, reply.grad, velocity)

    def _beyond(self, loss: Tensor, gradient: Tensor, constraint: Constraint) -> Tensor:
        """(m,) bool: which samples take the pace FAR from here on."""
        beyond = loss > self.far * constraint.eps * dual_norm(constraint, gradient)
        return ~beyond if self.pace == "other" else beyond

    def _begin_elsewhere(
        self, problem: Problem, ids: Tensor, far: Tensor
    ) -> Generator[Ask, Reply, tuple[Tensor, Reply]]:
        if self.start == "best":
            x = problem.best[ids].clone()
        else:
            x = problem.constraint.sample(problem.clean[ids], problem.box, ids, problem.rng, 0)
        reply = yield Ask(x, ids, grad=True, aim=_orders(far, 0.0)[ids])
        return x, reply


def dual_norm(constraint: Constraint, gradient: Tensor) -> Tensor:
    """(m,) by how much a linear loss falls per unit of the ball's radius."""
    return (gradient * constraint.steepest(gradient)).flatten(1).sum(dim=1)


def _orders(far: Tensor, progress: float) -> Tensor:
    return torch.where(far, FAR.order(progress), NEAR.order(progress))
