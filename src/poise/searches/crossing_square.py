"""bi-Square and op-Square: Square Attack for an attacker who knows that the margin may have been turned round."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import ClassVar, Literal

import torch
from torch import Tensor

from poise.errors import InputError
from poise.searches.base import Ask, Problem, Steps
from poise.searches.square import SQUARES, fraction
from poise.types import Access


@dataclass(frozen=True, slots=True)
class CrossingSquare:
    """Square's proposals, kept against the visible trend, and at the big drops that mark an interval's end.

    Chen et al. 2022, "Adversarial Attack on Attackers", section 5.6. With D = loss of the proposal - loss of the point
    it was made from, "up" (op-Square) keeps it where D > 0 or D < -crossing. "both" (bi-Square) keeps it where D < 0,
    as Square does, until a sample has seen a D > crossing; from its next iteration on the rule is that of "up". One
    query per proposal. The goal should be a logit margin (`Margin`): the threshold is in its unit.

    Args:
        direction: "both" or "up".
        crossing: size of a jump between intervals, above 0; tau / 2 of the defence, which the attacker guesses.
        count_any_success: every answer counts as a success if its label is wrong, as for a real attacker. False is the
            released rule: a wrong label counts only where the proposal is kept. Proposals are then probes, and one
            that is kept with a loss of at most 0 is asked again, at the price of one query, so that it counts. A model
            without the defence is then left as it was, unless one proposal drops by more than `crossing`.
        p: share of the image in the first squares, as in `Square`.
        start: "stripes" (linf) or a grid of bumps (l2), as published, or "clean".
        horizon: length N of the schedule that shrinks the squares; None is the budget's number of iterations.

    Deviation: as in `Square`, every image draws its own square, and a start that the goal does not accept is left.

    >>> import poise
    >>> target, data = poise.models.load("builtin:digits"), poise.data.load("builtin:digits", samples=4)
    >>> goal, ball = poise.objectives.Margin(), poise.constraints.Linf(0.3)
    >>> result = poise.attack(target, goal, CrossingSquare(), ball, data.images, data.labels, budget=30)
    >>> (result.table["queries"] <= 30).all()
    True
    """

    access: ClassVar[Access] = Access.LABELS
    direction: Literal["both", "up"] = "both"
    crossing: float = 3.0
    count_any_success: bool = True
    p: float | None = None
    start: Literal["stripes", "clean"] = "stripes"
    horizon: int | None = None

    def __post_init__(self) -> None:
        if self.direction not in ("both", "up"):
            raise InputError(f"CrossingSquare: direction must be 'both' or 'up', got '{self.direction}'")
        if not self.crossing > 0:
            raise InputError(f"CrossingSquare: crossing must be above 0, got {self.crossing}")
        if self.p is not None and not 0 < self.p <= 1:
            raise InputError(f"CrossingSquare: p must be in (0, 1], got {self.p}")
        if self.start not in ("stripes", "clean"):
            raise InputError(f"CrossingSquare: start must be 'stripes' or 'clean', got '{self.start}'")
        if self.horizon is not None and self.horizon < 1:
            raise InputError(f"CrossingSquare: horizon must be at least 1, got {self.horizon}")

    def run(self, problem: Problem) -> Steps:
        kind = next((squares for ball, squares in SQUARES.items() if isinstance(problem.constraint, ball)), None)
        if kind is None:
            raise InputError(f"CrossingSquare: the constraint must be Linf or L2, got {problem.constraint!r}")
        squares = kind(problem, inclusive=True)
        p = squares.p if self.p is None else self.p
        reply = yield Ask(problem.clean, problem.everyone)
        active, x, loss, spent = reply.active, problem.clean.clone(), reply.loss.clone(), 1
        upward = torch.full_like(active, self.direction == "up")
        if self.start == "stripes" and bool(active.any()):
            ids = active.nonzero()[:, 0]
            first = squares.first(ids)
            reply = yield Ask(first, ids)
            _keep(reply.accept, ids, x, loss, first, reply.loss)
            active, spent = reply.active, 2
        horizon = max(problem.budget - spent, 1) if self.horizon is None else self.horizon
        for i in count():
            ids = active.nonzero()[:, 0]
            if not len(ids):
                return
            candidate = squares.propose(x[ids], ids, fraction(p, i, horizon), i)
            reply = yield Ask(candidate, ids, probe=not self.count_any_success)
            active, change = reply.active, reply.loss - loss[ids]
            against = (change > 0) & reply.loss.isfinite() | (change < -self.crossing)
            kept = torch.where(upward[ids], against, change < 0) & reply.accept
            upward[ids] |= (change > self.crossing) & reply.loss.isfinite() & (self.direction == "both")
            _keep(kept, ids, x, loss, candidate, reply.loss)
            if not self.count_any_success:
                reached = kept & (reply.loss <= 0) & active[ids]
                if bool(reached.any()):
                    reply = yield Ask(candidate[reached], ids[reached])
                    active = reply.active


def _keep(kept: Tensor, ids: Tensor, x: Tensor, loss: Tensor, candidate: Tensor, answer: Tensor) -> None:
    """Writes the candidates (m, C, H, W) that are kept (m,) and their losses into those of all samples."""
    x[ids] = torch.where(kept.view(-1, 1, 1, 1), candidate, x[ids])
    loss[ids] = torch.where(kept, answer, loss[ids])
