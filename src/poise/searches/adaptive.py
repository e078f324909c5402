"""PGD with a step size per sample that grows while the loss falls and halves where the label flips (UAT paper)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from poise.constraints.l2 import per_row
from poise.errors import InputError
from poise.searches.base import Ask, Problem, Steps
from poise.searches.gradient import begin, check_steps, drop_finished
from poise.searches.sources import AUTOGRAD, Source
from poise.types import Access


@dataclass(frozen=True, slots=True)
class AdaptivePGD:
    """Adaptive step size with step-back (UAT, Eq. 4 to 6 and Alg. 1), each sample with its own step.

    c = Pi(x - a * steepest(grad L)). Where c is not accepted: stay, a <- a/2. Where the loss fell: move, a <- growth
    * a.

    Args:
        steps: number of gradient steps; 20 in the paper's evaluation, 10 or 5 in its training.
        step: first step length a_0 in the units of eps; 5/255.
        growth: lambda, 1.1.
        on_no_improve: what to do where the label is kept but the loss did not fall: "move" (Eq. 6), "halve" the step
            and
            stay, or "literal", which stays and repeats the same step for ever (Alg. 1 as printed).
        random_start: begin at a random point of the ball; where that is not accepted, at the clean image.
        source: where gradients come from.

    The paper prints x + a sign(grad); all of its tests reward a falling loss, so the step goes down here. a is
    capped at 2 eps,
    beyond which nothing changes.

    >>> import poise
    >>> target, data = poise.models.load("builtin:digits"), poise.data.load("builtin:digits", samples=4)
    >>> goal, ball = poise.objectives.KeepLabel(poise.objectives.UCA()), poise.constraints.Linf(0.1)
    >>> result = poise.attack(target, goal, AdaptivePGD(steps=10), ball, data.images, data.labels)
    >>> (result.table["confidence_after"] < result.table["confidence_before"]).all()
    True
    """

    steps: int = 20
    step: float = 5 / 255
    growth: float = 1.1
    on_no_improve: Literal["move", "halve", "literal"] = "move"
    random_start: bool = False
    source: Source = AUTOGRAD

    def __post_init__(self) -> None:
        check_steps("AdaptivePGD", self.steps, self.step)
        if self.growth < 1:
            raise InputError(f"AdaptivePGD: growth must be at least 1, got {self.growth}")
        if self.on_no_improve not in ("move", "halve", "literal"):
            raise InputError(
                f"AdaptivePGD: on_no_improve must be 'move', 'halve' or 'literal', got '{self.on_no_improve}'"
            )

    @property
    def access(self) -> Access:
        """What the source of its gradients needs."""
        return self.source.access

    def run(self, problem: Problem) -> Steps:
        return self.source.through(self._run(problem), problem)

    def _run(self, problem: Problem) -> Steps:
        constraint, box, clean = problem.constraint, problem.box, problem.clean
        at = yield from begin(problem, random_start=self.random_start, fall_back=True)
        a = torch.full((len(clean),), min(self.step, 2 * constraint.eps), device=clean.device, dtype=clean.dtype)
        for t in range(self.steps):
            if not len(at.ids):
                return
            rows, more = at.ids, t + 1 < self.steps
            step = per_row(a[rows], at.x) * constraint.steepest(at.gradient)
            candidate = constraint.project(at.x - step, clean[rows], box)
            reply = yield Ask(candidate, rows, grad=more, step=a[rows])
            if not more:
                return
            kept, fell = reply.accept, reply.accept & (reply.loss < at.loss)
            on_stall = 0.5 if self.on_no_improve == "halve" else 1.0
            factor = torch.full_like(a[rows], 0.5).masked_fill(kept, on_stall).masked_fill(fell, self.growth)
            a[rows] = (a[rows] * factor).clamp_max(2 * constraint.eps)
            at = drop_finished(at.where(kept if self.on_no_improve == "move" else fell, candidate, reply), reply)
