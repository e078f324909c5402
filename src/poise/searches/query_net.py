"""QueryNet: Square Attack with surrogates that learn from its queries, make candidates and choose among them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from poise.errors import InputError
from poise.rng import Rng
from poise.searches.base import Ask, Problem, Reply, Steps
from poise.searches.square import Square
from poise.searches.squares import Proposals
from poise.searches.surrogates import ARCHITECTURES, Pairs, Surrogate
from poise.types import Access


@dataclass(frozen=True, slots=True)
class QueryNet:
    """Square, helped by small networks that are trained on its own questions (Chen et al. 2021, "QueryNet").

    In every iteration each surrogate makes one candidate from the best point x, Pi(x - 2 eps * steepest(grad f)), and
    Square makes one. All surrogates judge all candidates; the one with the lowest sum of judgements, weighted by the
    judges' authority, is asked for: one query per sample and iteration, whatever the number of surrogates. The
    authority of whoever makes candidates is the share of those chosen in the last round that were accepted, 0 if fewer
    than `enough` were chosen; surrogates begin with 1, Square with 0. While no surrogate's is above Square's, Square is
    alone and nothing is trained, but for every `again`-th of such rounds; it is alone, too, with fewer than `enough`
    samples left to attack. Without surrogates this is `square`, bit for bit.

    Surrogates see a batch as a whole: the samples of one batch inform each other, so a result depends on which samples
    are attacked together (`shares`), and on nothing else but the seed.

    Args:
        square: the random search, e.g. with its `p`, `start`, `horizon` and `strict`.
        surrogates: 0 to 3.
        steps: training steps of each surrogate per iteration, on 64 pairs each.
        warm_up: training steps before its first candidate.
        enough: chosen candidates below which an authority counts as 0, and samples below which nothing is learned.
        again: rounds of Square's own after which the surrogates are tried anew.
        memory: bytes for the points that are remembered, the latest ones; 256 MiB.

    Deviations. The networks are small and fixed; the paper's are found by architecture search, and trained up to 500
    batches of 128 at a time. They learn the goal's loss, one number per answer, where the paper's learn the
    logits: that works with every goal, and a gradient of it needs no labels. A network's common part is read by one
    linear head per sample. In the released code a Square that has once taken over stays alone for ever; here its
    authority is measured on, and the surrogates have their turn again. The paper's Square+ is left out.

    >>> import torch, poise
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> target = poise.ModuleTarget(model, num_classes=3)
    >>> goal, ball = poise.objectives.Margin(stop=False), poise.constraints.Linf(0.1)
    >>> result = poise.attack(target, goal, QueryNet(), ball, torch.rand(2, 1, 4, 4), torch.tensor([0, 1]), budget=8)
    >>> result.table["queries"].to_list()
    [8, 8]
    """

    access: ClassVar[Access] = Access.LABELS
    shares: ClassVar[bool] = True
    square: Square = field(default_factory=lambda: Square(start="stripes"))
    surrogates: int = 2
    steps: int = 5
    warm_up: int = 30
    enough: int = 10
    again: int = 10
    memory: int = 256 * 2**20

    def __post_init__(self) -> None:
        if not 0 <= self.surrogates <= len(ARCHITECTURES):
            raise InputError(f"QueryNet: surrogates must be in 0..{len(ARCHITECTURES)}, got {self.surrogates}")
        for name, value in (
            ("steps", self.steps),
            ("warm_up", self.warm_up),
            ("enough", self.enough),
            ("again", self.again),
        ):
            if value < 1:
                raise InputError(f"QueryNet: {name} must be at least 1, got {value}")
        if self.memory < 0:
            raise InputError(f"QueryNet: memory must be at least 0 bytes, got {self.memory}")

    def run(self, problem: Problem) -> Steps:
        crowd = _Crowd(self, problem)
        steps = self.square.walk(problem, crowd)
        ask = next(steps)
        while True:
            reply = yield ask
            crowd.hear(ask, reply)
            try:
                ask = steps.send(reply)
            except StopIteration:
                return


@contextmanager
def _learning() -> Iterator[None]:
    """Gradients, whatever the caller has switched off."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


class _Crowd(Proposals):
    """The surrogates and Square as one source of candidates (`Proposals`), and what they have learned.

    Attributes:
        authority: of each surrogate, and last of Square.
        chosen: (m,) who made the candidates of the round that is being asked, None before the first.
        alone: Square made all of them, as its authority is the highest.
        waiting: rounds in a row that begin with Square's authority the highest.
    """

    def __init__(self, how: QueryNet, problem: Problem) -> None:
        self.how, self.problem, self.squares = how, problem, how.square.squares(problem)
        self.authority = [1.0] * how.surrogates + [0.0]
        self.chosen: Tensor | None = None
        self.alone, self.waiting = not how.surrogates, 0
        self.loss = torch.full(problem.over.shape, torch.inf, dtype=torch.float64, device=problem.clean.device)
        with _learning():
            stream = _one_row(problem)
            self.surrogates = [Surrogate(problem, stream, number) for number in range(how.surrogates)]
            self.pairs = Pairs(problem, how.memory if how.surrogates else 0)

    @property
    def p(self) -> float:
        """Square's."""
        return self.squares.p

    def first(self, ids: Tensor) -> Tensor:
        """Square's starting pattern."""
        return self.squares.first(ids)

    def propose(self, x: Tensor, ids: Tensor, share: float, step: int) -> Tensor:
        """For every sample the candidate that the surrogates like best."""
        square = self.squares.propose(x, ids, share, step)
        others = self.authority[:-1]
        self.alone = self._square_alone(len(ids))
        if self.alone:
            self.chosen = torch.full_like(ids, len(others))
            return square
        with _learning():
            x, ids = x.clone(), ids.clone()
            for surrogate in self.surrogates:
                surrogate.fit(self.pairs, self.how.steps if surrogate.trained else self.how.warm_up)
            candidates = [self._candidate(surrogate, x, ids) for surrogate in self.surrogates] + [square.clone()]
        weights = others if any(others) else [1.0] * len(others)
        with _learning(), torch.no_grad():
            judged = torch.stack([self._judged(candidate, ids, weights) for candidate in candidates])
            self.chosen = judged.argmin(dim=0)
            return torch.stack(candidates)[self.chosen, torch.arange(len(ids), device=ids.device)]

    def hear(self, ask: Ask, reply: Reply) -> None:
        """Remembers the answers; measures the authority of whoever made the candidates."""
        ids, loss = ask.ids, reply.loss.double()
        if self.surrogates and (self.how.square.aim is None or ask.aim is not None):  # another aim is another loss
            with _learning(), torch.no_grad():
                self.pairs.add(ask.x, ids, loss)
        if self.chosen is None:  # the clean points, or where Square begins
            self.loss[ids] = torch.where(reply.accept, loss, self.loss[ids])
            return
        accepted = (loss < self.loss[ids]) & (reply.accept if self.how.square.strict else True)
        self.loss[ids] = torch.where(accepted, loss, self.loss[ids])
        self._measure(accepted)

    def _square_alone(self, running: int) -> bool:
        """Square's authority is the highest; in every `again`-th such round the surrogates take part all the same."""
        if not self.surrogates or running < self.how.enough:
            return True
        self.waiting = self.waiting + 1 if self.authority[-1] >= max(self.authority[:-1]) else 0
        return self.waiting % self.how.again > 0

    def _candidate(self, surrogate: Surrogate, x: Tensor, ids: Tensor) -> Tensor:
        """The longest step down a surrogate's gradient, back in the ball."""
        problem = self.problem
        step = 2 * problem.constraint.eps * problem.constraint.steepest(surrogate.slope(x, ids))
        return problem.constraint.project(x.detach() - step, problem.clean[ids], problem.box)

    def _judged(self, candidate: Tensor, ids: Tensor, weights: list[float]) -> Tensor:
        """(m,) the weighted sum of what the surrogates expect of a candidate."""
        return torch.stack(
            [weight * judge(candidate, ids) for weight, judge in zip(weights, self.surrogates, strict=True)]
        ).sum(dim=0)

    def _measure(self, accepted: Tensor) -> None:
        """Shares of chosen candidates that were accepted; after a round of Square alone, Square's only."""
        assert self.chosen is not None
        makers = torch.arange(len(self.authority), device=accepted.device)
        mine = self.chosen == makers[:, None]
        counts = torch.stack([mine.sum(dim=1), (mine & accepted).sum(dim=1)]).tolist()
        for maker, (count, good) in enumerate(zip(*counts, strict=True)):
            if not self.alone or maker == len(self.surrogates):
                self.authority[maker] = good / count if count >= self.how.enough else 0.0


def _one_row(problem: Problem) -> Rng:
    """A random stream for the batch as a whole."""
    return Rng(problem.rng.seed, torch.zeros(1, dtype=torch.int64, device=problem.clean.device))
