"""Where a search's gradients come from: autograd as it is, or the average over a model's own randomness."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from poise.errors import InputError
from poise.searches.base import Ask, Problem, Reply, Steps
from poise.types import Access


class Source(Protocol):
    """Answers the questions of a gradient search, in as many questions of its own as it needs.

    >>> from poise.searches import NES, PGD
    >>> PGD(source=NES(pairs=5)).access.name, PGD().access.name
    ('LABELS', 'GRADIENTS')
    """

    @property
    def access(self) -> Access:
        """What it needs of the target."""
        ...

    def through(self, steps: Steps, problem: Problem) -> Steps:
        """`steps` with every Ask(grad=True) answered by this source; all that it asks is charged as usual."""
        ...


@dataclass(frozen=True, slots=True)
class Autograd:
    """The target's own gradient: one forward and one backward pass.

    >>> from poise.searches import PGD
    >>> PGD(source=Autograd()) == PGD()
    True
    """

    access: ClassVar[Access] = Access.GRADIENTS

    def through(self, steps: Steps, problem: Problem) -> Steps:
        yield from steps


@dataclass(frozen=True, slots=True)
class EOT:
    """Expectation over transformation (Athalye et al., ICML 2018): the mean gradient of several answers.

    For targets that draw random numbers. Each of a point's copies is a query of its own and may become the result; the
    search is told the mean loss, the mean gradient, and that a point is accepted where most of its copies are. The
    clean image is asked for once more than that: its first answer defines the prediction.

    Args:
        samples: answers per point.

    >>> import poise
    >>> target, data = poise.models.load("builtin:digits"), poise.data.load("builtin:digits", samples=4)
    >>> goal, search = poise.objectives.CrossEntropy(), poise.searches.PGD(steps=2, source=EOT(3))
    >>> result = poise.attack(target, goal, search, poise.constraints.Linf(0.1), data.images, data.labels)
    >>> result.table["gradients"].to_list()
    [6, 6, 6, 6]
    """

    access: ClassVar[Access] = Access.GRADIENTS
    samples: int = 20

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError(f"EOT: samples must be at least 1, got {self.samples}")

    def through(self, steps: Steps, problem: Problem) -> Steps:
        ask = next(steps)
        reply = yield dataclasses.replace(ask, grad=False)  # the clean points, in order, as the driver wants them
        if ask.grad:
            reply = yield from self._at_the_clean_points(reply, problem)
        while True:
            try:
                ask = steps.send(reply)
            except StopIteration:
                return
            reply = (yield from self._ask(ask)) if ask.grad and len(ask.ids) else (yield ask)

    def _at_the_clean_points(self, reply: Reply, problem: Problem) -> Generator[Ask, Reply, Reply]:
        """The first gradient is a mean as well; samples that are finished have none."""
        ids, gradient = reply.active.nonzero()[:, 0], torch.zeros_like(problem.clean)
        if not len(ids):
            return dataclasses.replace(reply, grad=gradient)
        mean = yield from self._ask(Ask(problem.clean[ids], ids, grad=True))
        assert mean.grad is not None
        gradient[ids] = mean.grad
        loss, accept = reply.loss.index_copy(0, ids, mean.loss), reply.accept.index_copy(0, ids, mean.accept)
        return Reply(loss, accept, mean.active, gradient)

    def _ask(self, ask: Ask) -> Generator[Ask, Reply, Reply]:
        """`samples` copies of every point, answered as one."""
        copies = torch.arange(len(ask.ids), device=ask.ids.device).repeat_interleave(self.samples)
        many = yield dataclasses.replace(ask.at(copies), repeats=ask.repeats * self.samples)
        return self._mean(many)

    def _mean(self, many: Reply) -> Reply:
        """One answer per point; copies beyond the budget (infinite loss) do not count."""
        assert many.grad is not None
        loss = many.loss.view(-1, self.samples)
        asked = loss.isfinite()
        count = asked.sum(dim=1)
        weight = asked.to(many.grad.dtype) / count.clamp_min(1)[:, None]
        grad = (
            many.grad.view(len(loss), self.samples, *many.grad.shape[1:]) * weight.view(*weight.shape, 1, 1, 1)
        ).sum(1)
        mean = torch.where(asked, loss, 0).sum(dim=1) / count
        accept = many.accept.view(-1, self.samples).sum(dim=1) * 2 > count
        return dataclasses.replace(
            many, loss=torch.where(count > 0, mean, torch.inf), accept=accept & (count > 0), grad=grad
        )


AUTOGRAD = Autograd()
