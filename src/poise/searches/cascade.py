"""Several searches one after the other on the same samples: the best point of all of them is the result."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from poise.errors import InputError
from poise.searches.base import Ask, Problem, Reply, Search, Steps, shares
from poise.searches.confidence_pgd import ConfidencePGD
from poise.searches.square import Square
from poise.types import Access


@dataclass(frozen=True, slots=True)
class Stage:
    """One member of a cascade.

    Args:
        search: what runs.
        above: only samples whose best merit so far lies above this take part.
        repeats: how often it runs, each time with fresh random draws.
        queries: the most it may use for one sample, each time; None for all that are left.

    >>> from poise.searches import PGD, Cascade, Square
    >>> search = Cascade((PGD(steps=10), Stage(Square(start="best"), above=0.1, repeats=2)))
    >>> [stage.repeats for stage in search.members]
    [1, 2]
    """

    search: Search
    above: float = -math.inf
    repeats: int = 1
    queries: int | None = None

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise InputError(f"Stage: repeats must be at least 1, got {self.repeats}")
        if self.queries is not None and self.queries < 1:
            raise InputError(f"Stage: queries must be at least 1, got {self.queries}")


@dataclass(frozen=True, slots=True)
class Cascade:
    """Attack bundling (confidence thresholding, section 5.2): per sample the best of all its members.

    Every stage runs on the samples that are not done and still above its level, from the clean image or, where its
    search says so, from the best point found before it. The clean points are asked for once. Each stage, and each
    repetition of it, has random draws of its own. Adding a member at the end never makes a result worse. Every member
    is told the whole budget: what is left of it differs from sample to sample, and no result may depend on the others.

    Args:
        stages: searches, or stages with a level and a number of repetitions, in order.

    >>> import poise
    >>> target, data = poise.models.load("builtin:digits"), poise.data.load("builtin:digits", samples=4)
    >>> goal, ball = poise.objectives.KeepLabel(poise.objectives.MinConfidence()), poise.constraints.Linf(0.1)
    >>> members = poise.searches.ConfidencePGD(steps=5), poise.searches.Square(start="best", strict=False)
    >>> result = poise.attack(target, goal, Cascade(members), ball, data.images, data.labels, budget=20)
    >>> (result.table["queries"] <= 20).all()
    True
    """

    stages: tuple[Stage | Search, ...] = (ConfidencePGD(), Square(start="best", strict=False))

    def __post_init__(self) -> None:
        if not self.stages:
            raise InputError("Cascade: stages must name at least one search, got none")

    @property
    def members(self) -> tuple[Stage, ...]:
        """All stages, bare searches as stages without a level."""
        return tuple(one if isinstance(one, Stage) else Stage(one) for one in self.stages)

    @property
    def access(self) -> Access:
        """What the most demanding member needs."""
        return max(stage.search.access for stage in self.members)

    @property
    def shares(self) -> bool:
        """Any member does."""
        return any(shares(stage.search) for stage in self.members)

    def run(self, problem: Problem) -> Steps:
        clean = yield Ask(problem.clean, problem.everyone, grad=self.access is Access.GRADIENTS)
        active = clean.active
        rounds = [stage for stage in self.members for _ in range(stage.repeats)]
        for branch, stage in enumerate(rounds):  # numbered whether it runs or not: draws do not depend on the company
            taking_part = active & (problem.merit > stage.above)
            if bool(taking_part.any()):
                mine = dataclasses.replace(problem, rng=problem.rng.fork(branch))
                active = yield from _run(stage, mine, dataclasses.replace(clean, active=taking_part), active)


def _run(stage: Stage, problem: Problem, clean: Reply, active: Tensor) -> Generator[Ask, Reply, Tensor]:
    """One member, its first question answered from what is known; returns who is active."""
    steps, reply, used = stage.search.run(problem), clean, torch.zeros_like(problem.everyone)
    next(steps)
    while True:
        try:
            ask = steps.send(reply)
        except StopIteration:
            return active
        reply = yield ask
        active = reply.active
        going_on = active & (problem.merit > stage.above)
        if stage.queries is not None:
            used.index_add_(0, ask.ids, torch.ones_like(ask.ids))
            going_on &= used < stage.queries
        reply = dataclasses.replace(reply, active=going_on)
