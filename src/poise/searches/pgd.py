"""Projected gradient descent: the plain method, and the one with dropout of the calibration-attack paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from poise.constraints.l2 import per_row
from poise.constraints.reach import Reach
from poise.errors import InputError
from poise.searches.base import Ask, Problem, Steps
from poise.searches.gradient import begin, check_steps, drop_finished
from poise.searches.sources import AUTOGRAD, Source
from poise.types import Access


@dataclass(frozen=True, slots=True)
class PGD:
    """x <- Pi(x - a * steepest(grad L)) (Madry et al., ICLR 2018; Kurakin et al. without the random start).

    Args:
        steps: number of gradient steps T; T forward+backward passes and one last forward pass.
        step: a, in the units of eps; None stands for eps, which with one step is FGSM.
        random_start: begin at a random point of the ball, at the price of one more pass.
        undo: go back where a step's result is not accepted (the label-preserving version of the calibration-attack
            paper).
            The step is deterministic, so that sample then stands still; `DropoutPGD` and `AdaptivePGD` do not. With
            `undo`, a random start that is not accepted falls back to the clean image.
        source: where gradients come from, e.g. `EOT(20)` for a model that draws random numbers.
        jitter: begin at the clean point plus Gaussian noise of this standard deviation in pixel units, projected
            (TRADES: 0.001), at the price of one more pass; not together with `random_start`.

    >>> import poise
    >>> target, data = poise.models.load("builtin:digits"), poise.data.load("builtin:digits", samples=4)
    >>> goal, ball = poise.objectives.CrossEntropy(), poise.constraints.Linf(0.1)
    >>> result = poise.attack(target, goal, PGD(steps=5, step=0.02), ball, data.images, data.labels)
    >>> result.table["queries"].to_list(), result.table["gradients"].to_list()
    ([6, 6, 6, 6], [5, 5, 5, 5])
    """

    steps: int = 40
    step: float | None = 2 / 255
    random_start: bool = False
    undo: bool = True
    source: Source = AUTOGRAD
    jitter: float = 0.0

    def __post_init__(self) -> None:
        check_steps("PGD", self.steps, self.step)
        if not 0 <= self.jitter < float("inf") or (self.jitter and self.random_start):
            raise InputError(
                "PGD: jitter must be a number of at least 0, and 0 with random_start, "
                f"got {self.jitter} with random_start={self.random_start}"
            )

    @property
    def access(self) -> Access:
        """What the source of its gradients needs."""
        return self.source.access

    def run(self, problem: Problem) -> Steps:
        return self.source.through(self._run(problem), problem)

    def _run(self, problem: Problem) -> Steps:
        constraint, box, clean = problem.constraint, problem.box, problem.clean
        a = constraint.eps if self.step is None else self.step
        at = yield from begin(problem, random_start=self.random_start, fall_back=self.undo, jitter=self.jitter)
        ids, reach = at.ids, Reach(constraint, clean.index_select(0, at.ids), box)
        for t in range(self.steps):
            if at.ids is not ids:
                ids, reach = at.ids, Reach(constraint, clean.index_select(0, at.ids), box)
            if not len(ids):
                return
            more = t + 1 < self.steps
            candidate = reach.descend(at.x, at.gradient, a)
            reply = yield Ask(candidate, ids, grad=more, step=a, inside=reach.sure)
            if more:
                moved = reply.accept if self.undo else torch.ones_like(reply.accept)
                at = drop_finished(at.where(moved, candidate, reply), reply)


@dataclass(frozen=True, slots=True)
class DropoutPGD:
    """PGD that applies a random part of the change and undoes steps that flip the label (calibration attacks, App. C).

    Args:
        steps: number of gradient steps; 10 in the calibration-attack paper, 20 in the UAT paper.
        step: step length in the units of eps; 5/255 in both.
        keep_under: share of the entries kept where the goal lowers the confidence; the paper drops 0.95.
        keep_over: share kept where it raises it; the paper drops 0.2, its released code 0.1.
        mask_target: "delta" masks the whole change, so that a kept iterate is sparse (the released code); "step"
            masks the
            update only, so that changes add up.
        rescale: divide what is kept by its share, as the released code does. The points then LEAVE the ball of
            `radius`:
            give the attack the ball that they do reach, e.g. `Linf(min(radius / keep_under, 1))`.
        radius: the ball into which the change is clipped before it is masked; None is the attack's own eps.
        monotone: also undo steps after which the loss has not fallen.

    A fresh mask is drawn every step. The released code follows the cross-entropy to the true label:
    `MMA(under=UCA(follow="cross-entropy", label="true"), …)`.

    >>> import poise
    >>> target, data = poise.models.load("builtin:digits"), poise.data.load("builtin:digits", samples=4)
    >>> goal, ball = poise.objectives.KeepLabel(poise.objectives.UCA()), poise.constraints.Linf(0.1)
    >>> result = poise.attack(target, goal, DropoutPGD(mask_target="step"), ball, data.images, data.labels)
    >>> (result.table["confidence_after"] < result.table["confidence_before"]).all()
    True
    """

    access: ClassVar[Access] = Access.GRADIENTS
    steps: int = 10
    step: float = 5 / 255
    keep_under: float = 0.05
    keep_over: float = 0.8
    mask_target: Literal["delta", "step"] = "delta"
    rescale: bool = False
    radius: float | None = None
    monotone: bool = False

    def __post_init__(self) -> None:
        check_steps("DropoutPGD", self.steps, self.step)
        for name, keep in (("keep_under", self.keep_under), ("keep_over", self.keep_over)):
            if not 0 < keep <= 1:
                raise InputError(f"DropoutPGD: {name} must be in (0, 1], got {keep}")
        if self.mask_target not in ("delta", "step"):
            raise InputError(f"DropoutPGD: mask_target must be 'delta' or 'step', got '{self.mask_target}'")

    def run(self, problem: Problem) -> Steps:
        clean, box, rng = problem.clean, problem.box, problem.rng
        ball = problem.constraint if self.radius is None else type(problem.constraint)(self.radius)  # type: ignore[call-arg]
        at = yield from begin(problem, random_start=False, fall_back=True)
        share = clean.new_full(problem.over.shape, self.keep_under).masked_fill(problem.over, self.keep_over)
        for t in range(self.steps):
            if not len(at.ids):
                return
            x0, keep = clean.index_select(0, at.ids), per_row(share[at.ids], at.x)
            mask = (rng.uniform("dropout", t, at.ids, tuple(clean.shape[1:])).to(at.x.dtype) < keep).to(at.x.dtype)
            if self.rescale:
                mask = mask / keep
            step = -self.step * ball.steepest(at.gradient)
            if self.mask_target == "step":
                candidate = ball.project(at.x + mask * step, x0, box)
            else:
                candidate = box.project(x0 + mask * (ball.project(at.x + step, x0, box) - x0))
            more = t + 1 < self.steps
            reply = yield Ask(candidate, at.ids, grad=more, step=self.step)
            if more:
                moved = reply.accept & (reply.loss < at.loss) if self.monotone else reply.accept
                at = drop_finished(at.where(moved, candidate, reply), reply)
