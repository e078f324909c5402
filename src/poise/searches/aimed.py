"""A search along another of the goal's losses."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch

from poise.searches.apgd import APGD
from poise.searches.base import Ask, Problem, Reply, Search, Steps, shares
from poise.types import Access


@dataclass(frozen=True, slots=True)
class Aimed:
    """Runs `search` with every question put along one aim (`Bound.aimed`); the clean points are asked for again.

    Args:
        search: e.g. `APGD()`.
        aim: which of the goal's losses, a number that the goal understands; 0 is `MinConfidence`'s own.

    >>> import poise
    >>> target, data = poise.models.load("builtin:digits"), poise.data.load("builtin:digits", samples=4)
    >>> goal, ball = poise.objectives.KeepLabel(poise.objectives.MinConfidence()), poise.constraints.Linf(0.1)
    >>> search = Aimed(poise.searches.APGD(steps=5), aim=4.0)
    >>> result = poise.attack(target, goal, search, ball, data.images, data.labels)
    >>> (result.table["confidence_after"] < result.table["confidence_before"]).all()
    True
    """

    search: Search = field(default_factory=APGD)
    aim: float = 0.0

    @property
    def access(self) -> Access:
        """What the inner search needs."""
        return self.search.access

    @property
    def shares(self) -> bool:
        """As the inner search does."""
        return shares(self.search)

    def run(self, problem: Problem) -> Steps:
        steps = self.search.run(problem)
        ask = next(steps)
        reply = yield ask
        ids = reply.active.nonzero()[:, 0]
        if not len(ids):
            return
        again = yield Ask(problem.clean[ids], ids, grad=ask.grad, aim=self._aims(ids))
        loss = reply.loss.clone()
        loss[ids] = again.loss.to(loss.dtype)
        gradient = None
        if again.grad is not None:
            gradient = torch.zeros_like(problem.clean)
            gradient[ids] = again.grad
        reply = Reply(loss, reply.accept, again.active, gradient)
        while True:
            try:
                ask = steps.send(reply)
            except StopIteration:
                return
            reply = yield dataclasses.replace(ask, aim=self._aims(ask.ids))

    def _aims(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.full(ids.shape, self.aim, device=ids.device)
