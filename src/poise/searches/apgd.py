"""Auto-PGD: momentum, and a step that halves where the loss stalls, per sample (Croce & Hein, ICML 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from poise.constraints.l2 import per_row
from poise.errors import InputError
from poise.searches.base import Ask, Problem, Steps
from poise.searches.gradient import Iterate, begin, check_steps
from poise.types import Access


def checkpoints(steps: int) -> frozenset[int]:
    """Numbers of steps after which APGD looks at its step size: intervals of 0.22 N, each 0.03 N shorter, to 0.06 N.

    >>> sorted(checkpoints(100))
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    interval, shorter, shortest = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    found, at = set(), interval
    while at <= steps:
        found.add(at)
        interval = max(interval - shorter, shortest)
        at += interval
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class APGD:
    """Auto-PGD (Croce & Hein, ICML 2020, Alg. 1), the gradient search of AutoAttack, for any objective.

    u = Pi(x_t - a * steepest(g)); x_{t+1} = Pi(x_t + m * (u - x_t) + (1 - m) * (x_t - x_{t-1})), the first step without
    momentum; a starts at 2 eps. At a checkpoint a sample halves its a and goes back to its best point, with the
    gradient stored there, if the loss fell in at most rho of the interval's steps, or if a was not halved at the
    checkpoint before and the lowest loss has not changed since. Cost: T forward+backward passes and one last forward
    pass; a random start costs one pass more.

    Args:
        steps: number of gradient steps T; 100.
        rho: share of the steps of an interval that must lower the loss, in [0, 1]; 0.75.
        momentum: m, weight of the new step against the last one, in (0, 1]; 0.75.
        random_start: begin at a random point of the ball, as AutoAttack does.

    Losses are lowered here, the paper raises them. "Best" is the lowest loss seen, whether accepted or not; the best
    acceptable point is kept by the driver. "At most rho" and no second condition at the first checkpoint are
    AutoAttack's code; the paper prints "less than". A step falls if it is below the point it left, as printed; the code
    compares the first step after a restart with the point before the restart instead. A random start is uniform in
    the ball, AutoAttack's lies on its surface.

    >>> import torch, poise
    >>> from poise.searches.apgd import APGD
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> target = poise.ModuleTarget(model, num_classes=3)
    >>> goal, ball = poise.objectives.CrossEntropy(), poise.constraints.Linf(0.1)
    >>> result = poise.attack(target, goal, APGD(steps=8), ball, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))
    >>> result.table["queries"].to_list()
    [9, 9]
    """

    access: ClassVar[Access] = Access.GRADIENTS
    steps: int = 100
    rho: float = 0.75
    momentum: float = 0.75
    random_start: bool = False

    def __post_init__(self) -> None:
        check_steps("APGD", self.steps, None)
        if not 0 <= self.rho <= 1:
            raise InputError(f"APGD: rho must be in [0, 1], got {self.rho}")
        if not 0 < self.momentum <= 1:
            raise InputError(f"APGD: momentum must be in (0, 1], got {self.momentum}")

    def run(self, problem: Problem) -> Steps:
        constraint, box, clean = problem.constraint, problem.box, problem.clean
        at = yield from begin(problem, random_start=self.random_start, fall_back=False)
        best, before, pace = at, at.x, _Pace.start(at, 2 * constraint.eps)
        looks, last = checkpoints(self.steps), 0
        for t in range(self.steps):
            if not len(at.ids):
                return
            x0, more = clean.index_select(0, at.ids), t + 1 < self.steps
            u = constraint.project(at.x - per_row(pace.a, at.x) * constraint.steepest(at.gradient), x0, box)
            m = self.momentum if t else 1.0
            candidate = constraint.project(at.x + m * (u - at.x) + (1 - m) * (at.x - before), x0, box)
            reply = yield Ask(candidate, at.ids, grad=more, step=pace.a)
            if not more:
                return
            before, fell = at.x, reply.loss < at.loss
            best = best.where(reply.loss < best.loss, candidate, reply)
            at = at.where(torch.ones_like(fell), candidate, reply)
            pace = pace.counted(fell)
            if t + 1 in looks:
                stalled = pace.stalled(best.loss, self.rho * (t + 1 - last))
                at = _back(at, stalled, best)
                pace, last = pace.after_a_look(stalled, best.loss), t + 1
            keep = reply.active[at.ids]
            if not bool(keep.all()):
                at, best, before, pace = at.only(keep), best.only(keep), before[keep], pace.only(keep)


def _back(at: Iterate, stalled: Tensor, best: Iterate) -> Iterate:
    """Samples marked in stalled (m,) go back to their best point, its loss and its gradient."""
    rows = stalled.view(-1, 1, 1, 1)
    return Iterate(
        at.ids,
        torch.where(rows, best.x, at.x),
        torch.where(stalled, best.loss, at.loss),
        torch.where(rows, best.gradient, at.gradient),
    )


@dataclass(frozen=True, slots=True)
class _Pace:
    """What decides the steps of m running samples, (m,) each: step a, falls since the last checkpoint, and there:
    whether a was halved, and the lowest loss."""

    a: Tensor
    falls: Tensor
    halved: Tensor
    lowest: Tensor

    @classmethod
    def start(cls, at: Iterate, a: float) -> _Pace:
        everyone = torch.ones_like(at.ids, dtype=torch.bool)
        return cls(at.x.new_full((len(at.ids),), a), torch.zeros_like(at.ids), everyone, at.loss)

    def counted(self, fell: Tensor) -> _Pace:
        return _Pace(self.a, self.falls + fell, self.halved, self.lowest)

    def stalled(self, lowest: Tensor, enough: float) -> Tensor:
        """(m,) bool: condition 1 or condition 2 of the paper."""
        return (self.falls <= enough) | (~self.halved & (lowest >= self.lowest))

    def after_a_look(self, stalled: Tensor, lowest: Tensor) -> _Pace:
        a = torch.where(stalled, self.a / 2, self.a)
        return _Pace(a, torch.zeros_like(self.falls), stalled, lowest)

    def only(self, keep: Tensor) -> _Pace:
        return _Pace(self.a[keep], self.falls[keep], self.halved[keep], self.lowest[keep])
