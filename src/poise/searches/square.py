"""Square Attack: random search over squares on the ball's surface (Andriushchenko et al., ECCV 2020)."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import count
from typing import ClassVar, Literal

import torch

from poise.constraints.l2 import L2
from poise.constraints.linf import Linf
from poise.errors import InputError
from poise.searches.base import Ask, Problem, Steps, running
from poise.searches.squares import L2Squares, LinfSquares, Proposals, Squares
from poise.types import Access

SQUARES = {Linf: LinfSquares, L2: L2Squares}
"""How squares are drawn, by the ball they live in."""

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""p halves after these iterations of a schedule of 10,000 (strictly after: iteration 10 still uses p)."""


def fraction(p: float, iteration: int, horizon: int) -> float:
    """Share of the image that a square covers at `iteration` (from 0) of a schedule of `horizon` iterations.

    >>> [fraction(0.8, i, 10_000) for i in (0, 10, 11, 51, 8001)]
    [0.8, 0.8, 0.4, 0.2, 0.0015625]
    """
    rescaled = int(iteration / horizon * 10_000)
    return p * 0.5 ** bisect_left(HALVINGS, rescaled)


@dataclass(frozen=True, slots=True)
class Square:
    """Random search with squares of shrinking size; every image draws its own square and its own signs.

    Args:
        p: share of the image in the first squares; None is 0.05 for linf and 0.1 for l2 (standard models). The
            AAA paper's runs used 0.3 for all but one model.
        start: "clean" begins at the clean image (calibration attacks: no initial perturbation), "stripes" at vertical
            stripes (linf) or a grid of bumps (l2), as published; "best" at the best point that an earlier member of a
            cascade found.
        horizon: length N of the schedule that shrinks the squares; None is the budget's number of iterations.
            10,000 with a smaller budget reproduces the AAA paper.
        inclusive: draw positions up to the last row and column; the reference code never reaches them.
        strict: keep only proposals that would do as a result; False goes by the loss alone, for goals whose loss
            punishes a lost label (`MinConfidence`). What is returned would do in either case.
        aim: which of the goal's losses to follow (`Bound.aimed`), at the price of one more query from the clean image;
            None is its own.

    A proposal is kept where it is accepted and its loss is strictly lower. One query each. As published, the starting
    pattern replaces the clean image whatever its loss; here only where it is accepted.
    """

    access: ClassVar[Access] = Access.LABELS
    p: float | None = None
    start: Literal["clean", "stripes", "best"] = "clean"
    horizon: int | None = None
    inclusive: bool = True
    strict: bool = True
    aim: float | None = None

    def __post_init__(self) -> None:
        if self.p is not None and not 0 < self.p <= 1:
            raise InputError(f"Square: p must be in (0, 1], got {self.p}")
        if self.start not in ("clean", "stripes", "best"):
            raise InputError(f"Square: start must be 'clean', 'stripes' or 'best', got '{self.start}'")
        if self.horizon is not None and self.horizon < 1:
            raise InputError(f"Square: horizon must be at least 1, got {self.horizon}")

    def run(self, problem: Problem) -> Steps:
        yield from self.walk(problem, self.squares(problem))

    def squares(self, problem: Problem) -> Squares:
        """How squares are drawn in the problem's ball."""
        kind = next((squares for ball, squares in SQUARES.items() if isinstance(problem.constraint, ball)), None)
        if kind is None:
            raise InputError(f"Square: the constraint must be Linf or L2, got {problem.constraint!r}")
        return kind(problem, inclusive=self.inclusive)

    def walk(self, problem: Problem, squares: Proposals) -> Steps:
        """The search with what it asks for drawn from `squares`."""
        p = squares.p if self.p is None else self.p
        reply = yield Ask(problem.clean, problem.everyone)
        active, ids = reply.active, reply.active.nonzero()[:, 0]
        x, loss = problem.clean[ids], reply.loss[ids]
        spent = 1
        if (self.start != "clean" or self.aim is not None) and len(ids):
            first = self._first(problem, squares, ids)
            reply = yield Ask(first, ids, aim=self._aim(ids))
            taken = reply.accept | (self.start != "stripes") & reply.loss.isfinite()
            x = torch.where(taken.view(-1, 1, 1, 1), first, x)
            known = loss if self.aim is None else torch.inf  # the clean answer is the goal's own loss: another scale
            loss, spent = torch.where(taken, reply.loss, known), 2
            active, (ids, x, loss) = reply.active, running(reply.active, ids, x, loss)
        horizon = max(problem.budget - spent, 1) if self.horizon is None else self.horizon
        for i in count():
            if not len(ids):
                return
            move = squares.move(x, ids, fraction(p, i, horizon), i)
            reply = yield Ask(move.x, ids, aim=self._aim(ids), inside=move.inside)
            better = (reply.loss < loss) & reply.accept if self.strict else reply.loss < loss
            x = move.settle(better)
            loss = torch.where(better, reply.loss, loss)
            if reply.active is not active:
                active, (ids, x, loss) = reply.active, running(reply.active, ids, x, loss)

    def _first(self, problem: Problem, squares: Proposals, ids: torch.Tensor) -> torch.Tensor:
        """Where the samples ids begin, if it is to be asked for."""
        if self.start == "stripes":
            return squares.first(ids)
        return (problem.best if self.start == "best" else problem.clean)[ids].clone()

    def _aim(self, ids: torch.Tensor) -> torch.Tensor | None:
        return None if self.aim is None else torch.full(ids.shape, self.aim, device=ids.device)
