"""All target classes at once: one copy of a search per class, in the same batches (confidence thresholding)."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from poise.errors import InputError
from poise.rng import Rng
from poise.searches.base import Ask, Problem, Reply, Search, Steps, shares
from poise.searches.pgd import PGD
from poise.types import Access


@dataclass(frozen=True, slots=True)
class EveryClass:
    """Runs `search` towards each of the K - 1 numbered aims of the goal (`MaxConfidence`), side by side.

    Every (sample, aim) pair is a row of the inner search with its own state and its own random draws; the pairs share
    the batches that are sent to the target, so the cost is that of K - 1 targeted runs without a loop over classes.

    Args:
        search: e.g. `PGD(steps=40, random_start=True, undo=False)`.
        at_once: most aims per sample at the same time; memory grows with it. 16 covers K = 10 in one go.

    >>> import poise
    >>> target, data = poise.models.load("builtin:digits"), poise.data.load("builtin:digits", samples=4)
    >>> goal, search = poise.objectives.MaxConfidence(), EveryClass(poise.searches.PGD(steps=3, undo=False))
    >>> result = poise.attack(target, goal, search, poise.constraints.Linf(0.05), data.images, data.labels)
    >>> result.table["queries"].to_list()  # the clean image, and 9 classes x (3 steps + the last point)
    [37, 37, 37, 37]
    """

    search: Search = field(default_factory=lambda: PGD(random_start=True, undo=False))
    at_once: int = 16

    def __post_init__(self) -> None:
        if self.at_once < 1:
            raise InputError(f"EveryClass: at_once must be at least 1, got {self.at_once}")

    @property
    def access(self) -> Access:
        """The least access that the inner search needs."""
        return self.search.access

    @property
    def shares(self) -> bool:
        """As the inner search does."""
        return shares(self.search)

    def run(self, problem: Problem) -> Steps:
        aims = problem.classes - 1
        reply = yield Ask(problem.clean, problem.everyone, grad=False)
        for first in range(0, aims, self.at_once):
            rows = reply.active.nonzero()[:, 0]
            if not len(rows):
                return
            chosen = torch.arange(first, min(first + self.at_once, aims), device=rows.device)
            reply = yield from self._side_by_side(problem, rows, chosen, reply)

    def _side_by_side(
        self, problem: Problem, rows: Tensor, chosen: Tensor, reply: Reply
    ) -> Generator[Ask, Reply, Reply]:
        """The inner search on pairs (sample in rows, aim in chosen); returns the last reply."""
        sample, aim = rows.repeat_interleave(len(chosen)), chosen.repeat(len(rows))
        names = problem.rng.sample_ids[sample] * problem.classes + aim
        inner = dataclasses.replace(
            problem,
            clean=problem.clean[sample],
            rng=Rng(problem.rng.seed, names),
            over=problem.over[sample],
            best=problem.best[sample],
            merit=problem.merit[sample],
        )
        steps = self.search.run(inner)
        ask = next(steps)
        while True:
            outer = Ask(ask.x, sample[ask.ids], ask.grad, ask.probe, ask.repeats * len(chosen), aim[ask.ids], ask.step)
            reply = yield outer
            answer = Reply(reply.loss, reply.accept, reply.active[sample], reply.grad)
            try:
                ask = steps.send(answer)
            except StopIteration:
                return reply
