"""Gradients from answers alone: what NES, SPSA and Bandits share, each a search of its own and a source for others."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from dataclasses import dataclass
from itertools import count
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from poise.errors import InputError
from poise.searches.base import Ask, Problem, Reply, Steps, running
from poise.types import Access


class Estimator(Protocol):
    """Estimates gradients for the n samples of one problem, and holds what it has learnt about them."""

    pairs: int
    """Most pairs of probes per estimate."""

    def slope(self, ask: Ask, step: int, pairs: int) -> Generator[Ask, Reply, tuple[Tensor, Tensor]]:
        """d loss / d x at the points of `ask`, (m, C, H, W), from 1 to `self.pairs` pairs each; and who is active."""
        ...


@dataclass(frozen=True, slots=True)
class Estimating:
    """A search that follows an estimate, and a source that gives it to another search: `PGD(source=NES())`."""

    access: ClassVar[Access] = Access.LABELS

    def estimator(self, problem: Problem) -> Estimator:
        """A fresh estimator for the samples of this problem."""
        raise TypeError(f"{type(self).__name__} must define estimator(problem)")

    def through(self, steps: Steps, problem: Problem) -> Steps:
        """`steps` with every Ask(grad=True) answered by an estimate: the point itself, then the probes around it.

        The last query is left to the search's next point. Where the budget allows no pair, the gradient is zero.
        """
        estimator, spent, estimates = self.estimator(problem), 0, count()
        ask = next(steps)
        while True:
            reply = yield dataclasses.replace(ask, grad=False) if ask.grad else ask
            spent += ask.repeats
            if ask.grad:
                pairs = min(estimator.pairs, max(problem.budget - spent - 1, 0) // (2 * ask.repeats))
                reply = yield from _with_slope(ask, reply, estimator, next(estimates), pairs)
                spent += 2 * pairs * ask.repeats
            try:
                ask = steps.send(reply)
            except StopIteration:
                return


def _with_slope(ask: Ask, reply: Reply, estimator: Estimator, step: int, pairs: int) -> Generator[Ask, Reply, Reply]:
    """The reply with estimates for the points whose samples are still active, zeros for the others."""
    rows, active = reply.active[ask.ids].nonzero()[:, 0], reply.active
    grad = torch.zeros_like(ask.x)
    if pairs and len(rows):
        grad[rows], active = yield from estimator.slope(ask.at(rows), step, pairs)
    return dataclasses.replace(reply, grad=grad, active=active)


def follow(problem: Problem, estimator: Estimator, step: float | None, *, undo: bool) -> Steps:
    """x <- Pi(x - step * steepest(estimate)) until the budget ends; `undo` stays at x where that is not accepted.

    Per step the probes of one estimate and one query for the new point. An estimate that the budget does not cover has
    fewer pairs, so that the new point is still asked for; what is left after that goes into steps along the last one.
    """
    constraint, box, clean = problem.constraint, problem.box, problem.clean
    a = constraint.eps if step is None else step
    reply = yield Ask(clean, problem.everyone)
    ids, spent = reply.active.nonzero()[:, 0], 1
    x, slope = clean[ids], torch.zeros_like(clean[ids])
    for t in count():
        pairs = min(estimator.pairs, max(problem.budget - spent - 1, 0) // 2)
        if not len(ids) or (t == 0 and not pairs):
            return
        if pairs:
            slope, _ = yield from estimator.slope(Ask(x, ids), t, pairs)
        candidate = constraint.project(x - a * constraint.steepest(slope), clean[ids], box)
        reply = yield Ask(candidate, ids, step=a)
        spent += 2 * pairs + 1
        x = torch.where(reply.accept.view(-1, 1, 1, 1), candidate, x) if undo else candidate
        ids, x, slope = running(reply.active, ids, x, slope)


def differences(ask: Ask, probes: Tensor, problem: Problem) -> Generator[Ask, Reply, tuple[Tensor, Tensor, Tensor]]:
    """Asks for pairs of probes (m, q, 2, C, H, W) around the points of `ask`, moved into the box.

    Returns the first one's loss less the second one's, (m, q), 0 where the budget did not cover the pair; how many it
    covered, (m,); and who is active, (n,).
    """
    q = probes.shape[1]
    points = problem.box.project(probes).flatten(0, 2)
    rows = torch.arange(len(ask.ids), device=ask.ids.device).repeat_interleave(2 * q)
    aim = None if ask.aim is None else ask.aim[rows]
    reply = yield Ask(points, ask.ids[rows], probe=True, repeats=2 * q * ask.repeats, aim=aim)
    loss = reply.loss.view(-1, q, 2)
    known = loss.isfinite().all(dim=2)
    difference = torch.where(known, loss[..., 0] - loss[..., 1], 0).to(probes.dtype)
    return difference, known.sum(dim=1), reply.active


def check_positive(name: str, **values: float | None) -> None:
    """Refuses lengths and rates that are not positive numbers; None stands for a default."""
    for field, value in values.items():
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"{name}: {field} must be a positive number, got {value}")
