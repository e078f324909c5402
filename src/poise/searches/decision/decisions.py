"""What all decision-based searches share: asking for decisions, halving a bracket, and a wrong point to begin with."""

from __future__ import annotations

from collections.abc import Callable, Generator

import torch
from torch import Tensor

from poise.constraints.l2 import per_row
from poise.errors import InputError
from poise.searches.base import Ask, Problem, Reply
from poise.types import Access

Decided = Generator[Ask, Reply, Tensor]
"""Asks for points and returns a tensor."""

BLEND = 1e-3
"""How closely a random start is blended with the clean image."""


class Decisions:
    """Asks whether points are wrongly labelled, and remembers which samples are still active.

    A point outside the ball is asked as a probe: charged, never a result. So these searches walk outside and the driver
    keeps the first wrong point that lies in the ball.

    Args:
        problem: what the search was given.
        name: of the search, for its errors.
    """

    def __init__(self, problem: Problem, name: str) -> None:
        self.problem, self.name = problem, name
        self.active = torch.ones_like(problem.over)

    def begin(self) -> Decided:
        """(m,) the rows of the samples that are active and rightly labelled, after the clean points' answers."""
        problem = self.problem
        if problem.goal > Access.LABELS:
            raise InputError(
                f"{self.name}: the goal must be a wrong label seen through labels alone, Misclassify(), "
                f"got one that needs access '{problem.goal.name.lower()}' (confidence goals need scores)"
            )
        reply = yield Ask(problem.clean, problem.everyone)
        self.active = reply.active
        return (reply.active & ~_wrong(reply)).nonzero()[:, 0]

    def ask(self, x: Tensor, ids: Tensor) -> Decided:
        """(m,) bool: which points x (m, C, H, W), one per sample, are wrong; False where the budget is spent."""
        inside = self.problem.constraint.contains(x, self.problem.clean[ids])
        wrong = torch.zeros_like(inside)
        for part, probe in ((~inside, True), (inside, False)):
            rows = part.nonzero()[:, 0]
            if len(rows):
                reply = yield Ask(x[rows], ids[rows], probe=probe)
                wrong[rows], self.active = _wrong(reply), reply.active
        return wrong

    def probe(self, x: Tensor, ids: Tensor) -> Decided:
        """(m, b) bool: which of b points of each sample, x (m, b, C, H, W), are wrong; none of them is a result."""
        each = x.shape[1]
        reply = yield Ask(x.flatten(0, 1), ids.repeat_interleave(each), probe=True, repeats=each)
        self.active = reply.active
        return _wrong(reply).view(-1, each)

    def halve(
        self,
        along: Callable[[Tensor, Tensor], Tensor],
        ids: Tensor,
        x: Tensor,
        high: Tensor,
        low: Tensor,
        width: Tensor,
    ) -> Generator[Ask, Reply, tuple[Tensor, Tensor]]:
        """Binary search for the boundary, all samples at once.

        Args:
            along: (rows, t) to the points at t (r,) on the path of the samples rows (r,).
            ids: (m,) samples.
            x: (m, C, H, W) their wrong points, at high.
            high, low: (m,) brackets: wrong at high, right at low.
            width: (m,) where to stop.

        Returns:
            The nearest wrong points (m, C, H, W), each of them asked, and where they lie on their paths (m,).
        """
        x, high, low = x.clone(), high.clone(), low.clone()
        while True:
            rows = ((high - low > width) & self.active[ids]).nonzero()[:, 0]
            if not len(rows):
                return x, high
            middle = (low[rows] + high[rows]) / 2
            points = along(rows, middle)
            wrong = yield from self.ask(points, ids[rows])
            x[rows] = torch.where(wrong.view(-1, 1, 1, 1), points, x[rows])
            high[rows] = torch.where(wrong, middle, high[rows])
            low[rows] = torch.where(wrong, low[rows], middle)

    def start(self, ids: Tensor, tries: int) -> Generator[Ask, Reply, tuple[Tensor, Tensor]]:
        """Uniform noise until it is wrong, blended with the clean image (HopSkipJump's initialisation).

        Returns:
            ids (m,) and x (m, C, H, W) of the samples that found a wrong point; the others have given up.
        """
        problem, box = self.problem, self.problem.box
        x, found = problem.clean[ids].clone(), torch.zeros_like(ids, dtype=torch.bool)
        for step in range(tries):
            rows = (~found & self.active[ids]).nonzero()[:, 0]
            if not len(rows):
                break
            draw = problem.rng.uniform("noise-start", step, ids[rows], tuple(x.shape[1:])).to(x.dtype)
            noise = box.project(box.low + (box.high - box.low) * draw)
            wrong = yield from self.ask(noise, ids[rows])
            x[rows], found[rows] = noise, wrong
        ids, x = ids[found], x[found]
        one = torch.ones(len(ids), dtype=torch.float64, device=ids.device)
        path = blend(problem, ids, x)
        x, _ = yield from self.halve(path, ids, x, one, torch.zeros_like(one), BLEND * one)
        return ids, x


def blend(problem: Problem, ids: Tensor, x: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The straight path from the clean images at 0 to x (m, C, H, W) at 1."""

    def along(rows: Tensor, t: Tensor) -> Tensor:
        clean = problem.clean[ids[rows]]
        return problem.box.project(clean + per_row(t, clean) * (x[rows] - clean))

    return along


def _wrong(reply: Reply) -> Tensor:
    """(m,) bool: the loss of `Misclassify` is 0 where the label is wrong; +inf where the budget is spent."""
    return reply.accept & (reply.loss <= 0)
