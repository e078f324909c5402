"""NewtonFool: linearised Newton steps that lower one class's probability (Jang, Wu & Jha, ACSAC 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from poise.constraints.l2 import per_row, unit
from poise.errors import InputError
from poise.searches.base import Ask, Problem, Steps
from poise.searches.gradient import begin, check_steps, drop_finished
from poise.types import Access


@dataclass(frozen=True, slots=True)
class NewtonFool:
    """x <- Pi(x - d * g / ||g||_2^2) with d = min(eta * ||x_0||_2 * ||g||_2, L(x)) and g = grad L(x).

    Jang, Wu & Jha, "Objective Metrics and Gradient Descent Algorithms for Adversarial Examples in Machine Learning",
    ACSAC 2017, Alg. 1. The loss L must be a probability above its floor, p_k - 1/K in the paper: a step then aims at
    the floor, is never longer than eta * ||x_0||_2, and where L is linear never passes the floor. A loss of 0 or below
    does not move. Cost: T forward+backward passes and one last forward pass.

    Args:
        steps: most Newton steps T; 100.
        eta: longest step as a share of the clean image's length ||x_0||_2; 0.01.

    Used as an underconfidence attack it stops before the label flips: a step whose result is not accepted is not taken,
    and ends that sample. With a goal that accepts everything it runs on until the goal is reached, as published.

    Deviations: the paper has no bound on the change; here every iterate is projected into the ball and the box, which
    ART clips to at the end alone. ART floors ||g||^2 at 1e-7, which all but freezes saturated samples; here the step is
    written as a length, min(eta * ||x_0||, L / ||g||), times the unit gradient, so that a tiny gradient takes the
    longest step, and one of exactly 0 none.

    >>> import torch, poise
    >>> from poise.searches.newton_fool import NewtonFool
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> target = poise.ModuleTarget(model, num_classes=3)
    >>> goal = poise.objectives.KeepLabel(poise.objectives.UCA(tol=0.0))  # its gap, too, has the floor 0
    >>> images, labels = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    >>> result = poise.attack(target, goal, NewtonFool(steps=5), poise.constraints.L2(0.5), images, labels)
    >>> (result.table["loss_after"] <= result.table["loss_before"]).all()
    True
    """

    access: ClassVar[Access] = Access.GRADIENTS
    steps: int = 100
    eta: float = 0.01

    def __post_init__(self) -> None:
        check_steps("NewtonFool", self.steps, None)
        if not 0 < self.eta < float("inf"):
            raise InputError(f"NewtonFool: eta must be a positive number, got {self.eta}")

    def run(self, problem: Problem) -> Steps:
        constraint, box, clean = problem.constraint, problem.box, problem.clean
        longest = self.eta * clean.flatten(1).norm(dim=1)
        at = yield from begin(problem, random_start=False, fall_back=True)
        for t in range(self.steps):
            if not len(at.ids):
                return
            length = torch.minimum(longest[at.ids], _to_the_floor(at.loss, at.gradient))
            candidate = at.x - per_row(length, at.x) * unit(at.gradient)
            candidate = constraint.project(candidate, clean[at.ids], box)
            more = t + 1 < self.steps
            reply = yield Ask(candidate, at.ids, grad=more)
            if more:
                at = drop_finished(at.where(reply.accept, candidate, reply).only(reply.accept), reply)


def _to_the_floor(loss: Tensor, gradient: Tensor) -> Tensor:
    """(m,) L / ||g||_2, how far a linear loss falls to 0; in float64, where no square of a gradient vanishes."""
    slope = gradient.flatten(1).double().norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    length: Tensor = loss.double().clamp_min(0) / slope
    return length.to(gradient.dtype)
