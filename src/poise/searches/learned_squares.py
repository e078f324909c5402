"""Random squares that begin with strong patterns, and steps along a response of all logits learned from the queries."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import ClassVar

import torch
from torch import Tensor

from poise.constraints.l2 import per_row
from poise.errors import InputError
from poise.searches.base import Ask, Judge, Problem, Steps, running
from poise.searches.responses import Responses, Slopes, Tiles, mixed, patterns
from poise.searches.square import Square, fraction
from poise.types import Access, OutputKind, Outputs

WALK = 15
"""Steps on the learned model inside one proposal; they ask nothing."""

LONGER, SHORTER, SHORTEST = 1.5, 0.75, 0.02
"""The reach of such a proposal after a success, after a failure, and at least."""

MEMORY, TRUST, LEAST = 0.97, 0.2, 0.05
"""How fast gains are forgotten; the model's first rate, by the squares'; how often each kind has its turn at least."""


@dataclass(frozen=True, slots=True)
class LearnedSquares:
    """Random search for score access that uses all K numbers of an answer (this library; no paper).

    1. The first `starts` queries of samples whose confidence is to fall are random full patterns on the ball's surface,
       2 x 2 blocks and vertical stripes in turn; the best is kept. Samples whose confidence is to rise skip this.
    2. Then `square`, with `squares` windows per query instead of one.
    3. From query `warm_up` on, some proposals come from a model: recursive least squares learns, from every answer and
       for each sample by itself, how all logits respond to changes of `side` x `side` tiles (`Responses`). The attacker
       knows its own goal, so it can walk down the goal's loss of the predicted logits without a query, as far as a
       reach that grows with success and shrinks with failure, plus a random pattern of a fifth of it.
    4. Which kind proposes is drawn per sample, in proportion to the squared gain in loss per query of late. Smooth
       networks are mostly walked by the model, jagged ones searched by squares.

    Every query teaches the model, whoever proposed it and whether it was kept. Without score vectors in the replies, or
    with a goal whose loss has no slope, steps 1 and 2 alone remain.

    Args:
        square: p, horizon, strict, start and aim of the random search. `start` is "clean" or "best"; from "best" there
            are no patterns.
        squares: windows per query.
        starts: random patterns at first.
        side: tiles per row and column of the model.
        noise: variance of what the model cannot explain, as a share of the mean squared change.
        warm_up: queries without the model.

    >>> import torch, poise
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> target = poise.ModuleTarget(model, num_classes=3)
    >>> goal, ball = poise.objectives.KeepLabel(poise.objectives.MinConfidence()), poise.constraints.Linf(0.1)
    >>> result = poise.attack(target, goal, LearnedSquares(), ball, torch.rand(2, 1, 4, 4), torch.zeros(2).long(),
    ...                       budget=30)
    >>> bool((result.table["loss_after"] < result.table["loss_before"]).all())
    True
    """

    access: ClassVar[Access] = Access.SCORES
    square: Square = field(default_factory=lambda: Square(p=0.1, horizon=1000, strict=False))
    squares: int = 2
    starts: int = 4
    side: int = 8
    noise: float = 0.05
    warm_up: int = 6

    def __post_init__(self) -> None:
        if self.square.start == "stripes":
            raise InputError("LearnedSquares: square must start at 'clean' or 'best', got 'stripes'")
        for name, value, least in (("squares", self.squares, 1), ("side", self.side, 1), ("starts", self.starts, 0)):
            if value < least:
                raise InputError(f"LearnedSquares: {name} must be at least {least}, got {value}")
        if self.warm_up < 1:
            raise InputError(f"LearnedSquares: warm_up must be at least 1, got {self.warm_up}")
        if not 0 < self.noise < float("inf"):
            raise InputError(f"LearnedSquares: noise must be a positive number, got {self.noise}")

    def run(self, problem: Problem) -> Steps:
        how, clean, rng = self.square, problem.clean, problem.rng
        windows = how.squares(problem)
        reply = yield Ask(clean, problem.everyone)
        ids = reply.active.nonzero()[:, 0]
        x, loss, answers = clean[ids], reply.loss[ids], reply.outputs
        starts = self.starts if how.start == "clean" else 0
        if (how.start == "best" or how.aim is not None) and len(ids):
            known = loss if how.aim is None else torch.full_like(loss, torch.inf)  # the clean answer has another scale
            if how.start == "best":
                x = problem.best[ids].clone()
            reply = yield Ask(x, ids, aim=self._aim(ids))
            loss = torch.where(reply.loss.isfinite(), reply.loss, known)
            answers, kept = None if answers is None else reply.outputs, reply.active[ids]
            z = None if answers is None else answers.logits.to(clean.dtype)[kept]
            ids, x, loss = ids[kept], x[kept], loss[kept]
        else:
            z = None if answers is None else answers.logits.to(clean.dtype)[ids]
        tiles = Tiles(clean, self.side, problem.constraint.eps)
        model = None if z is None or problem.judge is None else Responses(tiles, len(ids), z.shape[1], self.noise)
        z = loss.new_zeros(len(ids), 1) if model is None or z is None else z
        horizon = max(problem.budget - 1, 1) if how.horizon is None else how.horizon
        reach = clean.new_full((len(ids),), 0.5)
        gain, use = loss.new_zeros(len(ids), 2), loss.new_zeros(len(ids), 2)  # columns: squares, model
        for i in count():
            if not len(ids):
                return
            candidate, by_model = x, torch.zeros_like(ids, dtype=torch.bool)
            for window in range(self.squares):
                candidate = windows.propose(candidate, ids, fraction(how.p or windows.p, i, horizon), i * 64 + window)
            if i < starts:
                pattern = patterns(i, rng.signs("start", i, ids, (clean.shape[1], 16, 16)), (tiles.height, tiles.width))
                full = clean[ids] + problem.constraint.eps * problem.constraint.steepest(pattern.to(clean.dtype))
                full = problem.constraint.project(full, clean[ids], problem.box)
                candidate = mixed(problem.over[ids], candidate, full)
            if i == self.warm_up and model is not None:
                rate = gain[:, 0] / use[:, 0].clamp_min(1)
                gain, use = torch.stack([rate, TRUST * rate], dim=1), torch.ones_like(use)
            if i >= self.warm_up and model is not None:
                squared = (gain / use).square()
                likely = (squared[:, 1] / squared.sum(dim=1).clamp_min(1e-30)).clamp(LEAST, 1 - LEAST)
                by_model = rng.uniform("kind", i, ids) < likely
                rows = by_model.nonzero()[:, 0]
                walked = self._walk(problem, model.of(rows), x[rows], z[rows], ids[rows], reach[rows], i)
                candidate = candidate.index_copy(0, rows, walked)
            reply = yield Ask(candidate, ids, aim=self._aim(ids))
            better = (reply.loss < loss) & (reply.accept if how.strict else True)
            if model is not None and reply.outputs is not None:
                answer = reply.outputs.logits.to(clean.dtype)
                model.learn(candidate - x, answer - z, reply.loss.isfinite())
                z = torch.where(better[:, None], answer, z)
            won = torch.where(better & loss.isfinite(), loss - reply.loss, 0)
            kind = torch.stack([~by_model, by_model], dim=1)
            gain, use = torch.where(kind, gain * MEMORY + won[:, None], gain), torch.where(kind, use * MEMORY + 1, use)
            factor = torch.where(better, LONGER, SHORTER).to(reach.dtype)
            reach = torch.where(by_model, (reach * factor).clamp(SHORTEST, 1), reach)
            x, loss = mixed(better, candidate, x), torch.where(better, reply.loss, loss)
            if not bool(reply.active[ids].all()):
                if model is not None:
                    model.keep(reply.active[ids])
                ids, x, loss, z, reach, gain, use = running(reply.active, ids, x, loss, z, reach, gain, use)

    def _walk(
        self, problem: Problem, model: Slopes, x: Tensor, z: Tensor, ids: Tensor, reach: Tensor, step: int
    ) -> Tensor:
        """(m, C, H, W) where the model sees the goal's loss lowest within reach of x, and a random pattern on top."""
        assert problem.judge is not None
        ball, clean, tiles = problem.constraint, problem.clean[ids], model.tiles
        length = per_row(2 * ball.eps * reach, x)
        nearest, aim = x, self._aim(ids)
        for number in range(WALK):
            weights = slope(problem.judge, z + model.rise(nearest - x), ids, aim)
            part = length * ((1 - number / WALK) * 3 / WALK)
            nearest = ball.project(nearest - part * ball.steepest(model.pull(weights)), clean, problem.box)
        signs = problem.rng.signs("jitter", step, ids, (tiles.number,)).to(x.dtype).mul(2).sub(1)
        return ball.project(nearest + 0.1 * length * ball.steepest(tiles.image(signs)), clean, problem.box)

    def _aim(self, ids: Tensor) -> Tensor | None:
        return None if self.square.aim is None else torch.full(ids.shape, self.square.aim, device=ids.device)


def slope(judge: Judge, logits: Tensor, ids: Tensor, aim: Tensor | None) -> Tensor:
    """(m, K) d loss / d logits of answers that nobody gave; zeros where the goal's loss has no slope."""
    with torch.inference_mode(False), torch.enable_grad():
        supposed = logits.clone().requires_grad_(True)
        loss = judge(Outputs(supposed, OutputKind.LOGITS), ids.clone(), None if aim is None else aim.clone())
        if not loss.requires_grad:
            return torch.zeros_like(logits)
        (found,) = torch.autograd.grad(loss.sum(), supposed)
    return found.nan_to_num(0.0, 0.0, 0.0)
