"""How points are proposed: a search yields points and receives answers, so that it reads like the paper."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from poise.constraints.base import Box, Constraint
from poise.rng import Rng
from poise.types import Access, Outputs


@dataclass(frozen=True, slots=True)
class Ask:
    """Points to evaluate.

    Args:
        x: (m, C, H, W), inside the ball and the box; the search's own, which may write into it once it is answered.
        ids: (m,) the row 0..n-1 of the sample each point belongs to.
        grad: also return d loss / d x (one forward and one backward pass).
        probe: a finite-difference point: charged, never returned as the result.
        repeats: the most points of any one sample in this ask.
        aim: (m,) float, which of the goal's losses each point follows (`Bound.aimed`); None is the goal's own.
        step: (m,) or one number, the step length that led here, for the trace alone.
        inside: the search vouches that the points lie in ball and box; they are looked at once, as results.

    >>> import torch
    >>> ask = Ask(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]), grad=True)
    >>> ask.at(torch.tensor([1])).ids
    tensor([1])
    """

    x: Tensor
    ids: Tensor
    grad: bool = False
    probe: bool = False
    repeats: int = 1
    aim: Tensor | None = None
    step: Tensor | float | None = None
    inside: bool = False

    def at(self, index: Tensor) -> Ask:
        """The points at these positions, or marked in a mask; `repeats` is kept."""
        step = self.step[index] if isinstance(self.step, Tensor) else self.step
        aim = None if self.aim is None else self.aim[index]
        return Ask(self.x[index], self.ids[index], self.grad, self.probe, self.repeats, aim, step, self.inside)


@dataclass(frozen=True, slots=True)
class Reply:
    """The answers to an `Ask`.

    Args:
        loss: (m,) what the search follows, lower is better; +inf where a point was not evaluated (its budget is spent).
        accept: (m,) bool, the point would do as a result.
        active: (n,) bool, samples neither done nor out of budget; a search asks for these alone. The very tensor of the
            last reply where nobody has ended since.
        grad: (m, C, H, W) or None.
        outputs: the answers themselves, where the driver hands them on; valid until the next ask.

    >>> import torch
    >>> loss, yes = torch.tensor([0.3, 0.1]), torch.tensor([True, True])
    >>> reply = Reply(loss=loss, accept=yes, active=loss > 0.2)
    >>> reply.active.nonzero()[:, 0]  # the samples that may be asked for
    tensor([0])
    """

    loss: Tensor
    accept: Tensor
    active: Tensor
    grad: Tensor | None = None
    outputs: Outputs | None = None


Judge = Callable[[Outputs, Tensor, Tensor | None], Tensor]
"""The goal's loss (m,) of answers, for the samples ids (m,) and an aim as in `Ask`."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What a search knows before its first question.

    Args:
        clean: (n, C, H, W).
        over: (n,) bool, the goal raises this sample's confidence; defined once the clean points are answered.
        constraint, box: where points may lie.
        rng: random streams of the n samples.
        budget: most queries per sample, the clean one included.
        classes: K.
        best: (n, C, H, W), the driver's own best points so far, to be read; a search may begin there.
        merit: (n,) their merit, +inf before the clean points are answered.
        goal: the least access that the goal needs; a search for labels alone refuses goals that need more.
        judge: the goal's loss of answers that nobody gave, for an attacker knows its own goal; costs no query. Defined
            once the clean points are answered.

    >>> import torch
    >>> from poise.constraints import Box, Linf
    >>> from poise.rng import Rng
    >>> clean = torch.rand(2, 1, 4, 4)
    >>> problem = Problem(
    ...     clean=clean, constraint=Linf(0.1), box=Box(0.0, 1.0), rng=Rng(0, torch.arange(2)), budget=10,
    ...     over=torch.zeros(2, dtype=torch.bool), classes=3, best=clean, merit=torch.full((2,), torch.inf),
    ... )
    >>> problem.everyone
    tensor([0, 1])
    """

    clean: Tensor
    constraint: Constraint
    box: Box
    rng: Rng
    budget: int
    over: Tensor
    classes: int
    best: Tensor
    merit: Tensor
    goal: Access = Access.LABELS
    judge: Judge | None = None

    @property
    def everyone(self) -> Tensor:
        """(n,) the rows of all samples."""
        return torch.arange(len(self.clean), device=self.clean.device)


def running(active: Tensor, ids: Tensor, *rows: Tensor) -> tuple[Tensor, ...]:
    """ids (m,) and rows of the samples that are still active (one look at the device)."""
    keep = active[ids]
    if bool(keep.all()):
        return (ids, *rows)
    return marked(keep, ids, *rows)


def marked(mask: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
    """The rows of each part that are marked in mask (m,); on a CPU several times faster than indexing by the mask."""
    rows = mask.nonzero().view(-1)
    return tuple(part.index_select(0, rows) for part in parts)


Steps = Generator[Ask, Reply, None]


class Search(Protocol):
    """An algorithm. Its hyper-parameters are its fields; all state lives in the generator.

    The first `Ask` is the clean points themselves, in order (`Ask(problem.clean, problem.everyone)`): from their
    answers the
    driver binds the objective, so no second forward pass is spent on them.

    A sample's points must not depend on the other samples. A search that cannot promise this says `shares = True`.

    >>> from poise import Access
    >>> from poise.searches.base import Ask
    >>> class Twice:
    ...     access = Access.LABELS
    ...     def run(self, problem):
    ...         reply = yield Ask(problem.clean, problem.everyone)
    ...         ids = reply.active.nonzero()[:, 0]
    ...         yield Ask(problem.constraint.sample(problem.clean[ids], problem.box, ids, problem.rng, 0), ids)
    >>> from poise.checks.searches import check_search
    >>> check_search(Twice())
    """

    @property
    def access(self) -> Access:
        """The least access that the search needs."""
        ...

    def run(self, problem: Problem) -> Steps:
        """Yields points, receives answers, returns when it has nothing more to ask."""
        ...


def shares(search: Search) -> bool:
    """The samples of one batch inform each other: the result depends on how the data are cut into batches."""
    return bool(getattr(search, "shares", False))
