"""Does a search keep its contract? Run on ours in the tests, and usable on your own.

from poise.checks.searches import check_search
check_search(MySearch())
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from poise.checks.base import CheckError, global_generators_untouched, require, same
from poise.constraints import Box, Constraint, Linf
from poise.rng import Rng
from poise.searches.base import Ask, Problem, Reply, Search, shares
from poise.searches.grid import steps_of
from poise.types import Access

_SHAPE = (2, 6, 5)
_NAMES = (11, -3, 70, 8, 2)
_ASKS = 400


def check_search(search: Search, *, constraint: Constraint | None = None, budget: int = 30) -> None:
    """Runs every check of the search's contract (`poise.searches.base.Search`) on a linear problem, driven by hand.

    Checked: the first ask is the clean points; shapes, types and ids; several points of one sample only as announced in
    `repeats`; points in the box, and in the ball unless they are probes; finished samples are never asked again; the
    search ends when nobody is active; gradients only with the access for them; nothing is written into; no global
    random state; the same draws give the same points, and a sample's points do not depend on its company, unless the
    search says that its samples inform each other (`shares`).

    Args:
        search: under test.
        constraint: the ball, `Linf(0.1)` unless given.
        budget: queries per sample.

    Raises:
        CheckError: an AssertionError with one line; the first promise that does not hold.

    >>> from poise.searches import Square
    >>> check_search(Square())
    """
    name = type(search).__name__
    require(isinstance(search.access, Access), f"{name}: access must be an Access, got {search.access!r}")
    with global_generators_untouched(name):
        for story in STORIES.values():
            subject = _Subject(name, search, constraint or Linf(0.1), budget, story)
            told = _drive(subject, torch.tensor(_NAMES))
            _compare(subject, told, _drive(subject, torch.tensor(_NAMES)), "the same draws must give the same points")
            for alone in () if shares(search) else ([2], [4, 0]):
                part = _drive(subject, torch.tensor(_NAMES)[alone])
                _compare(subject, told, part, "a sample's points must not depend on the other samples")


Story = Callable[[Tensor, Tensor], Tensor]
"""(names (m,), number of this sample's query (m,)) -> (m,) bool: the sample is finished after this answer."""


def _nobody(names: Tensor, query: Tensor) -> Tensor:
    return torch.zeros_like(query, dtype=torch.bool)


def _everybody(names: Tensor, query: Tensor) -> Tensor:
    return torch.ones_like(query, dtype=torch.bool)


def _one_by_one(names: Tensor, query: Tensor) -> Tensor:
    return query >= names.abs() % 7 + 1


STORIES: dict[str, Story] = {"nobody finishes": _nobody, "all are finished": _everybody, "one by one": _one_by_one}
"""When the samples of the linear problem reach their goal."""


@dataclass(frozen=True)
class _Subject:
    """A search under test and the problem that it is given."""

    name: str
    search: Search
    constraint: Constraint
    budget: int
    story: Story

    def require(self, holds: bool, message: str) -> None:
        require(holds, f"{self.name}: {message}")

    def problem(self, names: Tensor) -> Problem:
        clean = torch.stack([_image(int(name)) for name in names])
        over = torch.zeros(len(names), dtype=torch.bool)
        return Problem(
            clean, self.constraint, Box(), Rng(0, names), self.budget, over,
            classes=3, best=clean.clone(), merit=clean.new_full((len(clean),), torch.inf),
        )  # fmt: skip


def _image(seed: int) -> Tensor:
    return torch.rand(_SHAPE, generator=torch.Generator().manual_seed(seed + 100), dtype=torch.float64)


Asked = dict[int, list[tuple[Tensor, bool]]]
"""For each sample's name, its points in order, and whether each was a probe."""


class _Ledger:
    """Answers a search from a linear loss; counts what each sample was asked, and judges every ask."""

    def __init__(self, subject: _Subject, problem: Problem, names: Tensor) -> None:
        self.subject, self.problem, self.names = subject, problem, names
        self.queries = torch.zeros(len(names), dtype=torch.int64)
        self.done = torch.zeros(len(names), dtype=torch.bool)
        self.slope = _image(-50) - 0.5
        self.asked: Asked = {int(name): [] for name in names}

    @property
    def active(self) -> Tensor:
        return ~self.done & (self.queries < self.problem.budget)

    def judge(self, ask: Ask, number: int) -> None:
        subject, n = self.subject, len(self.names)
        if number == 0:
            first = ask.x is self.problem.clean and ask.ids.tolist() == list(range(n))
            subject.require(first, "the first ask must be the clean points themselves, with ids 0..n-1")
        subject.require(
            ask.x.shape == (len(ask.ids), *_SHAPE) and ask.x.dtype == torch.float64,
            f"points must be (m, 2, 6, 5) {torch.float64} as the images, got {tuple(ask.x.shape)} {ask.x.dtype}",
        )
        subject.require(
            ask.ids.ndim == 1 and ask.ids.dtype == torch.int64 and bool(((ask.ids >= 0) & (ask.ids < n)).all()),
            f"ids must be (m,) int64 in 0..{n - 1}, got {ask.ids.tolist()[:5]} {ask.ids.dtype}",
        )
        subject.require(
            not ask.grad or subject.search.access is Access.GRADIENTS, "gradients are asked for without the access"
        )
        most = int(torch.bincount(ask.ids, minlength=1).max()) if len(ask.ids) else 0
        subject.require(most <= ask.repeats, f"a sample has {most} points in one ask, repeats says {ask.repeats}")
        if number:
            subject.require(
                bool(self.active[ask.ids].all()), "samples that are done or out of budget must not be asked"
            )
        subject.require(bool(self.problem.box.contains(ask.x).all()), "points must lie in the box")
        inside = self.problem.constraint.contains(ask.x, self.problem.clean[ask.ids])
        subject.require(bool(inside.all()) or ask.probe or not number, "points that are no probes must lie in the ball")

    def answer(self, ask: Ask) -> Reply:
        for row, point in zip(ask.ids.tolist(), ask.x, strict=True):
            self.queries[row] += 1
            self.asked[int(self.names[row])].append((point.clone(), ask.probe))
        loss = (ask.x * self.slope).flatten(1).sum(dim=1)
        accept = (ask.x[:, 0, 0, 0] * 997).long() % 3 > 0  # two of three, by the point alone
        accept |= self.queries[ask.ids] == 1
        finished = self.subject.story(self.names[ask.ids], self.queries[ask.ids])
        self.done[ask.ids] |= finished & ~torch.tensor(ask.probe)
        gradient = self.slope.expand(ask.x.shape).clone() if ask.grad else None
        return Reply(loss, accept, self.active, gradient)


def _drive(subject: _Subject, names: Tensor) -> Asked:
    problem = subject.problem(names)
    clean, ledger = problem.clean.clone(), _Ledger(subject, problem, names)
    steps = steps_of(subject.search, problem)
    ask, number = next(steps, None), 0
    subject.require(ask is not None, "must ask for the clean points, asked for nothing")
    while ask is not None:
        if number:
            subject.require(bool(ledger.active.any()) or len(ask.ids) == 0, "must end when no sample is active")
        subject.require(number < _ASKS, f"must end, still asks after {_ASKS} asks")
        ledger.judge(ask, number)
        reply = ledger.answer(ask)
        kept = reply.loss.clone(), reply.accept.clone(), reply.active.clone()
        try:
            ask = steps.send(reply)
        except StopIteration:
            ask = None
        intact = all(torch.equal(a, b) for a, b in zip(kept, (reply.loss, reply.accept, reply.active), strict=True))
        subject.require(intact, "must not write into the reply")
        subject.require(torch.equal(problem.clean, clean), "must not write into the clean points")
        number += 1
    return ledger.asked


def _compare(subject: _Subject, whole: Asked, part: Asked, message: str) -> None:
    for name, points in part.items():
        other = whole[name]
        equal = len(points) == len(other) and all(
            same(x, y, 1e-12) and probe == other_probe
            for (x, probe), (y, other_probe) in zip(points, other, strict=True)
        )
        subject.require(equal, message)


__all__ = ["STORIES", "CheckError", "check_search"]
