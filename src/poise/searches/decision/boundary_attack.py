"""Boundary attack: a random walk along the boundary that closes in (Brendel, Rauber & Bethge, ICLR 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import ClassVar

import torch
from torch import Tensor

from poise.constraints.l2 import per_row, unit
from poise.errors import InputError
from poise.searches.base import Problem, Steps
from poise.searches.decision.decisions import Decisions
from poise.types import Access

CONVERGED = 1e-7
"""A sample ends where its step towards the clean image is a smaller share of the distance than this."""


@dataclass
class _Step:
    """A step size of each sample (m,), and how its last trials went."""

    size: Tensor
    trials: Tensor
    hits: Tensor

    def count(self, rows: Tensor, hit: Tensor) -> None:
        self.trials[rows] += 1
        self.hits[rows] += hit.long()

    def adapt(self, window: int, factor: float) -> None:
        """Grows where more than half of a full window of trials hit, shrinks where less than a fifth did."""
        full, share = self.trials >= window, self.hits / window
        grown = torch.where(share > 0.5, self.size * factor, torch.where(share < 0.2, self.size / factor, self.size))
        self.size = torch.where(full, grown.clamp_max(0.5), self.size)
        self.trials, self.hits = self.trials.masked_fill(full, 0), self.hits.masked_fill(full, 0)

    def only(self, keep: Tensor) -> _Step:
        return _Step(self.size[keep], self.trials[keep], self.hits[keep])


@dataclass(frozen=True, slots=True)
class Boundary:
    """Labels alone: a random walk along the boundary that closes in on the clean image (Boundary attack).

    Brendel, Rauber & Bethge, "Decision-Based Adversarial Attacks", ICLR 2018, Alg. 1; for `Misclassify()`.

    From a wrong point, found and blended as in `HopSkipJump`, each iteration draws a random step orthogonal to the
    direction of the clean image, projected onto the sphere around it, of length `orthogonal` times the distance. If
    that point is wrong, a step towards the clean image by `towards` times the distance is tried from there; if that
    is wrong too, it is taken. One query, or two. Both sizes adapt per sample to the share of the last `window` trials
    that were wrong: above 1/2 they grow by `factor`, below 1/5 they shrink. A sample ends when `towards` falls to
    1e-7.

    Args:
        orthogonal, towards: first step sizes, as shares of the distance, in (0, 0.5].
        factor: by which step sizes change, above 1.
        window: trials between two changes.
        tries: random images to begin with; a sample that finds none wrong gives up.

    Distances are Euclidean in every ball: the ball only says which wrong point is a result, as in `HopSkipJump`. The
    distance never grows along the walk. The paper leaves the thresholds of the adaptation open; windows and thresholds
    here are those of the Adversarial Robustness Toolbox, counted over iterations and not over a batch of candidates.

    >>> import torch, poise
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> target = poise.ModuleTarget(model, num_classes=3)
    >>> images = torch.rand(2, 1, 2, 2)
    >>> labels = model(images).argmax(dim=1)
    >>> result = poise.attack(target, poise.objectives.Misclassify(), Boundary(), poise.constraints.L2(0.5),
    ...                       images, labels, budget=200)
    >>> (result.table["l2"] <= 0.50001).all()
    True
    """

    access: ClassVar[Access] = Access.LABELS
    orthogonal: float = 0.01
    towards: float = 0.01
    factor: float = 1.5
    window: int = 20
    tries: int = 10_000

    def __post_init__(self) -> None:
        for name, share in (("orthogonal", self.orthogonal), ("towards", self.towards)):
            if not 0 < share <= 0.5:
                raise InputError(f"Boundary: {name} must be in (0, 0.5], got {share}")
        if not 1 < self.factor < float("inf"):
            raise InputError(f"Boundary: factor must be a number above 1, got {self.factor}")
        for label, number in (("window", self.window), ("tries", self.tries)):
            if number < 1:
                raise InputError(f"Boundary: {label} must be at least 1, got {number}")

    def run(self, problem: Problem) -> Steps:
        decisions = Decisions(problem, "Boundary")
        ids = yield from decisions.begin()
        ids, x = yield from decisions.start(ids, self.tries)
        nothing = torch.zeros_like(ids)
        size = torch.full(ids.shape, self.orthogonal, dtype=torch.float64, device=ids.device)
        around = _Step(size, nothing, nothing.clone())
        inwards = _Step(torch.full_like(around.size, self.towards), nothing.clone(), nothing.clone())
        for step in count():
            keep = decisions.active[ids] & (inwards.size > CONVERGED)
            if not bool(keep.all()):
                ids, x, around, inwards = ids[keep], x[keep], around.only(keep), inwards.only(keep)
            if not len(ids):
                return
            sphere = _around(problem, x, ids, around.size, step)
            wrong = yield from decisions.ask(sphere, ids)
            around.count(torch.arange(len(ids), device=ids.device), wrong)
            rows = (wrong & decisions.active[ids]).nonzero()[:, 0]
            if len(rows):
                nearer = _inwards(problem, sphere[rows], x[rows], ids[rows], inwards.size[rows])
                wrong = yield from decisions.ask(nearer, ids[rows])
                x[rows] = torch.where(wrong.view(-1, 1, 1, 1), nearer, x[rows])
                inwards.count(rows, wrong)
            around.adapt(self.window, self.factor)
            inwards.adapt(self.window, self.factor)


def _around(problem: Problem, x: Tensor, ids: Tensor, size: Tensor, step: int) -> Tensor:
    """A random point of the sphere through x (m, C, H, W) around the clean image, `size` (m,) times its radius away."""
    change = x - problem.clean[ids]
    outwards = unit(change)
    draw = problem.rng.normal("boundary-step", step, ids, tuple(x.shape[1:])).to(x.dtype)
    draw = draw - per_row((draw * outwards).flatten(1).sum(dim=1), x) * outwards
    length = change.flatten(1).norm(dim=1)
    turned = change + per_row(size * length, x) * unit(draw)
    return problem.box.project(problem.clean[ids] + turned / per_row((1 + size.square()).sqrt(), x))


def _inwards(problem: Problem, sphere: Tensor, x: Tensor, ids: Tensor, size: Tensor) -> Tensor:
    """The point between sphere (m, C, H, W) and the clean image whose distance is (1 - size) times that of x.

    Where clipping has brought `sphere` nearer than that, itself.
    """
    clean = problem.clean[ids]
    radius, length = (x - clean).flatten(1).norm(dim=1), (sphere - clean).flatten(1).norm(dim=1)
    share = ((1 - size) * radius / torch.where(length > 0, length, 1)).clamp_max(1)
    return problem.box.project(clean + per_row(share, x) * (sphere - clean))
