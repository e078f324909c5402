"""Random points of the ball: the gradient-free member of attack bundling, and a control for every other attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from poise.errors import InputError
from poise.searches.base import Ask, Problem, Steps
from poise.types import Access


@dataclass(frozen=True, slots=True)
class Noise:
    """Uniform points of the ball, independent of each other (confidence thresholding, section 5.2, "noise").

    Args:
        points: how many per sample, one query each; None goes on to the end of the budget.

    >>> import poise
    >>> target, data = poise.models.load("builtin:digits"), poise.data.load("builtin:digits", samples=4)
    >>> goal, ball = poise.objectives.Misclassify(stop=False), poise.constraints.Linf(0.1)
    >>> poise.attack(target, goal, Noise(points=7), ball, data.images, data.labels).table["queries"].to_list()
    [8, 8, 8, 8]
    """

    access: ClassVar[Access] = Access.LABELS
    points: int | None = None

    def __post_init__(self) -> None:
        if self.points is not None and self.points < 1:
            raise InputError(f"Noise: points must be at least 1, got {self.points}")

    def run(self, problem: Problem) -> Steps:
        reply = yield Ask(problem.clean, problem.everyone)
        for step in range(problem.budget - 1 if self.points is None else self.points):
            ids = reply.active.nonzero()[:, 0]
            if not len(ids):
                return
            x = problem.constraint.sample(problem.clean[ids], problem.box, ids, problem.rng, step)
            reply = yield Ask(x, ids)
