"""check_search accepts every search of the table and refuses a twin for every promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from poise.checks.searches import CheckError, check_search
from poise.constraints import L2, Constraint, Linf
from poise.searches import PGD, SEARCHES, AdaptivePGD, Ask, DropoutPGD, Problem, Search, Square
from poise.searches.base import Steps
from poise.types import Access

VARIANTS = [
    *(kind() for kind in SEARCHES.values()),
    Square(start="stripes"),
    Square(inclusive=False, horizon=100),
    PGD(steps=3, random_start=True),
    PGD(steps=3, random_start=True, undo=False),
    PGD(steps=1, step=None, undo=False),
    DropoutPGD(mask_target="step", monotone=True),
    AdaptivePGD(on_no_improve="halve", random_start=True),
]


@pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.4)], ids=repr)
@pytest.mark.parametrize("search", VARIANTS, ids=repr)
def test_accepts(search: Search, constraint: Constraint) -> None:
    check_search(search, constraint=constraint)


@dataclass(frozen=True)
class Own:
    """A search made of a generator function."""

    steps: Callable[[Problem], Steps]
    access: ClassVar[Access] = Access.LABELS

    def run(self, problem: Problem) -> Steps:
        return self.steps(problem)


def walk(
    problem: Problem,
    *,
    point: Callable[[Problem, Tensor, int], Tensor] | None = None,
    ids: Callable[[Problem, Tensor], Tensor] = lambda problem, active: problem.everyone[active],
    asked: dict | None = None,
) -> Steps:
    """A correct random search, one part of which each twin replaces."""
    reply = yield Ask(problem.clean, problem.everyone)
    for step in range(problem.budget):
        some = ids(problem, reply.active)
        if not len(some):
            return
        if point is None:
            x = problem.constraint.sample(problem.clean[some], problem.box, some, problem.rng, step)
        else:
            x = point(problem, some, step)
        reply = yield Ask(x, some, **(asked or {}))


def test_accepts_a_plain_random_search() -> None:
    check_search(Own(walk))
    check_search(Own(lambda p: walk(p, point=lambda p, ids, step: p.clean[ids].clone())))


def test_accepts_probes_outside_the_ball_but_not_outside_the_box() -> None:
    def grey(problem: Problem, ids: Tensor, step: int) -> Tensor:
        return torch.full_like(problem.clean[ids], 0.5)

    check_search(Own(lambda p: walk(p, point=grey, asked={"probe": True})))
    with pytest.raises(CheckError, match="points must lie in the box"):
        check_search(Own(lambda p: walk(p, point=lambda *a: grey(*a) + 1, asked={"probe": True})))


def test_accepts_several_points_of_a_sample_where_it_says_so() -> None:
    def pairs(problem: Problem) -> Steps:
        reply = yield Ask(problem.clean, problem.everyone)
        ids = problem.everyone[reply.active].repeat_interleave(2)
        if len(ids):
            yield Ask(problem.clean[ids], ids, repeats=2)

    check_search(Own(pairs))


def copied(problem: Problem) -> Steps:
    yield Ask(problem.clean.clone(), problem.everyone)


def shuffled(problem: Problem) -> Steps:
    yield Ask(problem.clean, problem.everyone.flip(0))


def never(problem: Problem) -> Steps:
    yield from ()


def unannounced(problem: Problem) -> Steps:
    reply = yield Ask(problem.clean, problem.everyone)
    ids = problem.everyone[reply.active].repeat(2)
    if len(ids):
        yield Ask(problem.clean[ids], ids)


def endless(problem: Problem) -> Steps:
    yield Ask(problem.clean, problem.everyone)
    while True:
        yield Ask(problem.clean[:0], problem.everyone[:0])


def restless(problem: Problem) -> Steps:
    yield Ask(problem.clean, problem.everyone)
    while True:
        yield Ask(problem.clean, problem.everyone)


def greedy(problem: Problem) -> Steps:
    """One sample after another, the first beyond its budget."""
    yield Ask(problem.clean, problem.everyone)
    for _ in range(problem.budget + 1):
        yield Ask(problem.clean[:1], problem.everyone[:1])


def writes_the_clean(problem: Problem) -> Steps:
    yield Ask(problem.clean, problem.everyone)
    problem.clean.add_(1e-9)
    yield Ask(problem.clean, problem.everyone)


def writes_the_reply(problem: Problem) -> Steps:
    reply = yield Ask(problem.clean, problem.everyone)
    reply.loss.zero_()
    ids = problem.everyone[reply.active]
    if len(ids):
        yield Ask(problem.clean[ids], ids)


def pulls(problem: Problem) -> Steps:
    yield Ask(problem.clean, problem.everyone, grad=True)


def global_draws(problem: Problem, ids: Tensor, step: int) -> Tensor:
    return problem.clean[ids] * (1 - 0.01 * torch.rand(1, dtype=torch.float64))


class Counter:
    """Draws that go on from run to run."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, problem: Problem, ids: Tensor, step: int) -> Tensor:
        self.count += 1
        return problem.clean[ids] * (1 - 1e-5 * self.count)


def shared_step(problem: Problem, ids: Tensor, step: int) -> Tensor:
    """One number for the whole batch, taken from all of it."""
    return problem.clean[ids] * (1 - 0.01 * problem.clean.mean())


def by_row(problem: Problem, ids: Tensor, step: int) -> Tensor:
    return problem.clean[ids] * (1 - 0.01 * ids.double().view(-1, 1, 1, 1) / 5)


@dataclass(frozen=True)
class BadAccess:
    access: ClassVar[str] = "scores"


TWINS: dict[str, tuple[object, str]] = {
    "access": (BadAccess(), "access must be an Access"),
    "copy": (Own(copied), "the first ask must be the clean points themselves"),
    "shuffled": (Own(shuffled), "the first ask must be the clean points themselves"),
    "nothing": (Own(never), "must ask for the clean points, asked for nothing"),
    "unannounced": (Own(unannounced), "a sample has 2 points in one ask, repeats says 1"),
    "endless": (Own(endless), "must end"),
    "restless": (Own(restless), "must end when no sample is active"),
    "greedy": (Own(greedy), "samples that are done or out of budget must not be asked"),
    "finished": (
        Own(lambda p: walk(p, ids=lambda p, active: p.everyone if active.any() else p.everyone[:0])),
        "samples that are done or out of budget must not be asked",
    ),
    "ball": (
        Own(lambda p: walk(p, point=lambda p, ids, step: p.box.project(p.clean[ids] + 0.11))),
        "points that are no probes must lie in the ball",
    ),
    "box": (Own(lambda p: walk(p, point=lambda p, ids, step: p.clean[ids] - 0.1)), "points must lie in the box"),
    "shape": (Own(lambda p: walk(p, point=lambda p, ids, step: p.clean[ids][:, :1])), "points must be"),
    "dtype": (Own(lambda p: walk(p, point=lambda p, ids, step: p.clean[ids].float())), "points must be"),
    "ids": (
        Own(lambda p: walk(p, ids=lambda p, a: p.everyone[a].int(), point=lambda p, ids, step: p.clean[ids])),
        r"ids must be \(m,\) int64 in 0..4",
    ),
    "gradients": (Own(pulls), "gradients are asked for without the access"),
    "clean": (Own(writes_the_clean), "must not write into the clean points"),
    "reply": (Own(writes_the_reply), "must not write into the reply"),
    "global draws": (Own(lambda p: walk(p, point=global_draws)), r"same draws|global random generators"),
    "another time": (Own(partial(walk, point=Counter())), "the same draws must give the same points"),
    "company": (Own(lambda p: walk(p, point=shared_step)), "must not depend on the other samples"),
    "row": (Own(lambda p: walk(p, point=by_row)), "must not depend on the other samples"),
}


@pytest.mark.parametrize("twin", TWINS)
def test_refuses(twin: str) -> None:
    search, message = TWINS[twin]
    with torch.random.fork_rng(), pytest.raises(CheckError, match=message) as caught:
        check_search(search)
    assert "\n" not in str(caught.value)
