"""Random squares that begin with strong patterns, and steps along a response of all logits learned from the queries."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import ClassVar

import torch
from torch import Tensor

from poise.constraints.l2 import per_row
from poise.errors import InputError
from poise.searches.base import Ask, Judge, Problem, Steps, running
from poise.searches.responses import Responses, Slopes, Tiles, full, mixed, patterns
from poise.searches.square import Square, fraction
from poise.searches.transfers import Transfer, check_surrogate, transfer
from poise.targets.base import DifferentiableTarget
from poise.types import Access, OutputKind, Outputs

WALK, TWIN_WALK = 15, 6
"""Steps on the learned model inside one proposal, and on a surrogate, where each costs two passes; they ask nothing."""

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

    With a `surrogate`, a network of the attacker's own for the same classes, there are no patterns, and the model is
    the surrogate: how far the victim's logits follow those of the surrogate is learned per sample (`Transfer`), what
    is left over is learned as above, and the walk goes along the surrogate's gradients. The first `warm_up` proposals
    are all its own. The surrogate is never right or wrong: a poor one is found out, and the squares take over.

    Args:
        square: p, horizon, strict, start and aim of the random search. `start` is "clean" or "best"; from "best" there
            are no patterns.
        squares: windows per query.
        starts: random patterns at first.
        side: tiles per row and column of the model.
        noise: variance of what the model cannot explain, as a share of the mean squared change.
        warm_up: queries without the model; with a surrogate, queries of the model alone.
        surrogate: a target with gradients and the victim's classes and bounds, which answers the same point always
            alike; asking it costs no query, but two passes through it per step of a walk.

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
    surrogate: DifferentiableTarget | None = None

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
        if self.surrogate is not None:
            check_surrogate(self.surrogate, problem.classes, (problem.box.low, problem.box.high))
        windows = how.squares(problem)
        reply = yield Ask(clean, problem.everyone)
        ids = reply.active.nonzero()[:, 0]
        x, loss, answers = clean[ids], reply.loss[ids], reply.outputs
        starts = self.starts if how.start == "clean" and self.surrogate is None else 0
        if (how.start == "best" or how.aim is not None) and len(ids):
            before = loss if how.aim is None else torch.full_like(loss, torch.inf)  # the clean answer has another scale
            if how.start == "best":
                x = problem.best[ids].clone()
            reply = yield Ask(x, ids, aim=self._aim(ids))
            loss = torch.where(reply.loss.isfinite(), reply.loss, before)
            answers, kept = None if answers is None else reply.outputs, reply.active[ids]
            z = None if answers is None else answers.logits.to(clean.dtype)[kept]
            ids, x, loss = ids[kept], x[kept], loss[kept]
        else:
            z = None if answers is None else answers.logits.to(clean.dtype)[ids]
        known = None if z is None or problem.judge is None else self._begin(problem, x, ids, z.shape[1])
        own = known is not None and known.twin is not None
        z = loss.new_zeros(len(ids), 1) if known is None or z is None else z
        horizon = max(problem.budget - 1, 1) if how.horizon is None else how.horizon
        reach = clean.new_full((len(ids),), 0.5)
        turns = Turns(loss.new_zeros(len(ids), 2), loss.new_zeros(len(ids), 2))
        for i in count():
            if not len(ids):
                return
            candidate, by_model = x, torch.zeros_like(ids, dtype=torch.bool)
            for window in range(self.squares):
                candidate = windows.propose(candidate, ids, fraction(how.p or windows.p, i, horizon), i * 64 + window)
            if i < starts:
                bits = rng.signs("start", i, ids, (clean.shape[1], 16, 16))
                pattern = patterns(i, bits, (clean.shape[2], clean.shape[3]))
                candidate = mixed(problem.over[ids], candidate, full(problem, ids, pattern))
            if known is not None and (own or i >= self.warm_up):
                if i == self.warm_up:
                    turns.share(tried=int(own))
                by_model = rng.uniform("kind", i, ids) < turns.likely() if i >= self.warm_up else ~by_model
                rows = by_model.nonzero()[:, 0]
                walked = known.of(rows).walk(problem, x[rows], z[rows], ids[rows], reach[rows], i, self._aim(ids[rows]))
                candidate = candidate.index_copy(0, rows, walked)
            reply = yield Ask(candidate, ids, aim=self._aim(ids))
            better = (reply.loss < loss) & (reply.accept if how.strict else True)
            if known is not None and reply.outputs is not None:
                answer = reply.outputs.logits.to(clean.dtype)
                known.learn(candidate, x, ids, answer - z, reply.loss.isfinite(), better)
                z = torch.where(better[:, None], answer, z)
            turns.count(by_model, torch.where(better & loss.isfinite(), loss - reply.loss, 0))
            factor = torch.where(better, LONGER, SHORTER).to(reach.dtype)
            reach = torch.where(by_model, (reach * factor).clamp(SHORTEST, 1), reach)
            x, loss = mixed(better, candidate, x), torch.where(better, reply.loss, loss)
            if not bool(reply.active[ids].all()):
                if known is not None:
                    known.keep(reply.active[ids])
                turns = turns.of(reply.active[ids])
                ids, x, loss, z, reach = running(reply.active, ids, x, loss, z, reach)

    def _begin(self, problem: Problem, x: Tensor, ids: Tensor, classes: int) -> Known:
        """What is known of the samples ids, which are at x, before the first query."""
        tiles = Tiles(problem.clean, self.side, problem.constraint.eps)
        twin = None if self.surrogate is None else transfer(self.surrogate, x, ids)
        return Known(Responses(tiles, len(ids), classes, self.noise), twin)

    def _aim(self, ids: Tensor) -> Tensor | None:
        return None if self.square.aim is None else torch.full(ids.shape, self.square.aim, device=ids.device)


@dataclass
class Expected:
    """How the victim's logits are expected to move: by a learned response, or by a surrogate and what it leaves."""

    model: Slopes
    twin: Transfer | None

    def walk(
        self, problem: Problem, x: Tensor, z: Tensor, ids: Tensor, reach: Tensor, step: int, aim: Tensor | None
    ) -> Tensor:
        """(m, C, H, W) where the goal's loss is expected lowest within reach of x, and a random pattern on top."""
        assert problem.judge is not None
        ball, clean, tiles = problem.constraint, problem.clean[ids], self.model.tiles
        length = per_row(2 * ball.eps * reach, x)
        loss = partial(_loss, problem.judge, ids, aim)
        nearest, steps = x, WALK if self.twin is None else TWIN_WALK
        for number in range(steps):
            expected = z + self.model.rise(nearest - x)
            if self.twin is None:
                pull = self.model.pull(slope(problem.judge, expected, ids, aim))
            else:
                rise, pull = self.twin.slope(nearest, ids, expected, loss)
                pull = pull + self.model.pull(slope(problem.judge, expected + rise, ids, aim))
            part = length * ((1 - number / steps) * 3 / steps)
            nearest = ball.project(nearest - part * ball.steepest(pull), clean, problem.box)
        signs = problem.rng.signs("jitter", step, ids, (tiles.number,)).to(x.dtype).mul(2).sub(1)
        return ball.project(nearest + 0.1 * length * ball.steepest(tiles.image(signs)), clean, problem.box)


@dataclass
class Known(Expected):
    """What is expected, and how sure that is: it learns from every query."""

    model: Responses

    def learn(self, there: Tensor, here: Tensor, ids: Tensor, rise: Tensor, told: Tensor, moved: Tensor) -> None:
        """On the way from here to there (m, C, H, W) the logits moved by rise (m, K).

        Rows where told (m,) is False teach nothing; those marked in moved (m,) are there from now on.
        """
        if self.twin is not None:
            rise = self.twin.learn(there, ids, rise, told, moved)
        self.model.learn(there - here, rise, told)

    def of(self, rows: Tensor) -> Expected:
        """What is expected of these samples."""
        return Expected(self.model.of(rows), None if self.twin is None else self.twin.of(rows))

    def keep(self, rows: Tensor) -> None:
        """Forgets all samples but those marked in a mask."""
        self.model.keep(rows)
        self.twin = None if self.twin is None else self.twin.of(rows)


@dataclass
class Turns:
    """Which kind proposes for m samples: the squares (column 0) or the model (column 1).

    Args:
        gain: (m, 2) loss that each kind has saved of late.
        use: (m, 2) in how many queries.
    """

    gain: Tensor
    use: Tensor

    def share(self, tried: int) -> None:
        """From now on both kinds propose; the one that was not tried yet is trusted with a part of the other's rate."""
        rate = self.gain[:, tried] / self.use[:, tried].clamp_min(1)
        self.gain, self.use = (TRUST * rate)[:, None].repeat(1, 2), torch.ones_like(self.use)
        self.gain[:, tried] = rate

    def likely(self) -> Tensor:
        """(m,) how likely the model is to propose."""
        squared = (self.gain / self.use).square()
        return (squared[:, 1] / squared.sum(dim=1).clamp_min(1e-30)).clamp(LEAST, 1 - LEAST)

    def count(self, by_model: Tensor, won: Tensor) -> None:
        """A proposal of the model's (m,) or of the squares' has saved so much loss (m,)."""
        kind = torch.stack([~by_model, by_model], dim=1)
        self.gain = torch.where(kind, self.gain * MEMORY + won[:, None], self.gain)
        self.use = torch.where(kind, self.use * MEMORY + 1, self.use)

    def of(self, rows: Tensor) -> Turns:
        """Those of these samples."""
        return Turns(self.gain[rows], self.use[rows])


def slope(judge: Judge, logits: Tensor, ids: Tensor, aim: Tensor | None) -> Tensor:
    """(m, K) d loss / d logits of answers that nobody gave; zeros where the goal's loss has no slope."""
    with torch.inference_mode(False), torch.enable_grad():
        supposed = logits.clone().requires_grad_(True)
        loss = _loss(judge, ids, aim, supposed)
        if not loss.requires_grad:
            return torch.zeros_like(logits)
        (found,) = torch.autograd.grad(loss.sum(), supposed)
    return found.nan_to_num(0.0, 0.0, 0.0)


def _loss(judge: Judge, ids: Tensor, aim: Tensor | None, logits: Tensor) -> Tensor:
    """The goal's loss (m,) of logits (m, K)."""
    return judge(Outputs(logits, OutputKind.LOGITS), ids.clone(), None if aim is None else aim.clone())
