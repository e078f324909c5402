"""MI-FGSM: gradient steps along an accumulated direction (Dong et al., CVPR 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from poise.constraints.l2 import per_row
from poise.errors import InputError
from poise.searches.base import Ask, Problem, Steps
from poise.searches.gradient import begin, check_steps, drop_finished, unit_sum
from poise.types import Access


@dataclass(frozen=True, slots=True)
class MomentumPGD:
    """v <- decay * v + g / ||g||_1, x <- Pi(x - a * steepest(v)) (Dong et al., CVPR 2018, Eq. 6 and 7; l2: Eq. 9).

    Cost: T forward+backward passes and one last forward pass; a random start costs one pass more.

    Args:
        steps: number of gradient steps T; 10.
        step: a, in the units of eps; None is the paper's eps / T.
        decay: mu, what is kept of the velocity, at least 0; 1.0. With 0 this is `PGD`.
        random_start: begin at a random point of the ball; not in the paper.
        undo: go back where a step's result is not accepted. The velocity is then forgotten, so the next step follows
            the gradient alone and may go elsewhere; where that too is refused the sample stands still.
        backtrack: at least 1. Above 1, a step after which the loss has not fallen is taken back too, and the sample's
            own step is divided by this (Stutz et al., ICML 2020, where the velocity stays).

    ||g||_1 is taken per sample. Deviation: released codes divide by the mean instead of the sum, which changes v by one
    constant factor and no direction. The paper keeps the linf bound by a = eps / T alone; here Pi does, for any a.

    >>> import torch, poise
    >>> from poise.searches.momentum import MomentumPGD
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> target = poise.ModuleTarget(model, num_classes=3)
    >>> goal, ball = poise.objectives.CrossEntropy(), poise.constraints.Linf(0.1)
    >>> result = poise.attack(target, goal, MomentumPGD(steps=4), ball, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))
    >>> result.table["queries"].to_list()
    [5, 5]
    """

    access: ClassVar[Access] = Access.GRADIENTS
    steps: int = 10
    step: float | None = None
    decay: float = 1.0
    random_start: bool = False
    undo: bool = False
    backtrack: float = 1.0

    def __post_init__(self) -> None:
        check_steps("MomentumPGD", self.steps, self.step)
        if not 0 <= self.decay < float("inf"):
            raise InputError(f"MomentumPGD: decay must be a number of at least 0, got {self.decay}")
        if not 1 <= self.backtrack < float("inf"):
            raise InputError(f"MomentumPGD: backtrack must be a number of at least 1, got {self.backtrack}")

    def run(self, problem: Problem) -> Steps:
        constraint, box, clean = problem.constraint, problem.box, problem.clean
        first = constraint.eps / self.steps if self.step is None else self.step
        a = clean.new_full((len(clean),), first)
        at = yield from begin(problem, random_start=self.random_start, fall_back=self.undo)
        velocity = torch.zeros_like(clean)
        for t in range(self.steps):
            if not len(at.ids):
                return
            v = self.decay * velocity[at.ids] + unit_sum(at.gradient)
            step = per_row(a[at.ids], at.x) * constraint.steepest(v)
            candidate = constraint.project(at.x - step, clean.index_select(0, at.ids), box)
            more = t + 1 < self.steps
            reply = yield Ask(candidate, at.ids, grad=more, step=a[at.ids])
            if more:
                moved = reply.accept if self.undo else torch.ones_like(reply.accept)
                velocity[at.ids] = v.masked_fill(~moved.view(-1, 1, 1, 1), 0)
                if self.backtrack > 1:
                    fell = reply.loss < at.loss
                    a[at.ids] = torch.where(fell, a[at.ids], a[at.ids] / self.backtrack)
                    moved = moved & fell
                at = drop_finished(at.where(moved, candidate, reply), reply)
