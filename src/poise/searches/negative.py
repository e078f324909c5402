"""Semantic negatives: the image with its brightness turned round (Hosseini et al., 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from poise.searches.base import Ask, Problem, Steps
from poise.types import Access


@dataclass(frozen=True, slots=True)
class Negative:
    """x' = low + high - x, the reflection at the middle of the legal values; no gradient, no radius, nothing random.

    Applied before normalisation. Use it with the constraint `Anywhere`; a ball would move it back towards the image.

    >>> import torch, poise
    >>> from poise.constraints.anywhere import Anywhere
    >>> target, data = poise.models.load("builtin:digits"), poise.data.load("builtin:digits", samples=4)
    >>> goal = poise.objectives.Unconditional()
    >>> result = poise.attack(target, goal, Negative(), Anywhere(), data.images, data.labels)
    >>> moved = (result.table["prediction_after"] != result.table["prediction_before"]).to_list()
    >>> torch.equal(result.images[moved], 1 - data.images[moved])
    True
    """

    access: ClassVar[Access] = Access.LABELS

    def run(self, problem: Problem) -> Steps:
        reply = yield Ask(problem.clean, problem.everyone)
        ids = reply.active.nonzero()[:, 0]
        if len(ids):
            clean = problem.clean[ids]
            x = problem.box.low + problem.box.high - clean
            yield Ask(problem.constraint.project(x, clean, problem.box), ids)
