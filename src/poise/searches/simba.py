"""SimBA: one coordinate of an orthonormal basis at a time (Guo et al., ICML 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import ClassVar, Literal

import torch
from torch import Tensor

from poise.constraints.l2 import per_row
from poise.errors import InputError
from poise.rng import Rng
from poise.searches.base import Ask, Problem, Steps, running
from poise.searches.bases import BASES
from poise.types import Access

_KEYS = 1 << 22  # sort keys held at a time


def block(row: Tensor, column: Tensor, side: int, stride: int) -> Tensor:
    """One turn for the block of `side` rows and columns at the corner, none (-1) outside it."""
    return torch.where(torch.maximum(row, column) < side, 0, -1)


def rings(row: Tensor, column: Tensor, side: int, stride: int) -> Tensor:
    """The block first, then the rings by which it grows, `stride` rows and columns each."""
    return (torch.maximum(row, column) - side).clamp_min(-1) // stride + 1


def diagonals(row: Tensor, column: Tensor, side: int, stride: int) -> Tensor:
    """By row + column."""
    return row + column


ORDERS = {"random": block, "strided": rings, "diagonal": diagonals}
"""Which turn the coordinates (row, column) of a pass belong to, by the name of the order; random within a turn."""

FIRST_BLOCK = {"random": 32, "strided": 28, "diagonal": 1}
"""Published sides of the (first) block of frequencies."""


@dataclass(frozen=True, slots=True)
class SimBA:
    """A step of fixed length along -e, or else +e, for one coordinate e of an orthonormal basis after the other.

    Guo et al. 2019, Algorithm 1, with the released code's bound: the sum of the steps is kept as it is, and every point
    is that sum projected into ball and box (a clamp of the spatial perturbation for linf). Without a ball the change
    after k steps is at most sqrt(k) * step long. -e costs one query; +e costs another, for the samples where -e failed.
    A step that clipping undoes costs its query as well.

    Args:
        step: length of a step in pixel units, above 0. 0.2 as published; 0.05 in the linf runs of the released code.
        basis: "dct" (the cosines of the whole image, per channel) or "pixel".
        freq_dims: side of the block of lowest frequencies that "random" draws from and "strided" begins with, cut to
            the image; None is 32 for "random" and 28 for "strided". For the DCT alone: pixels are drawn from all over.
        order: "random"; "strided" lets the block grow by `stride` rows and columns once it is used up; "diagonal"
            takes row + column in ascending order. Each sample draws its own order within a block, ring or diagonal.
        stride: see order.

    A step is kept where it is accepted and its loss is strictly lower than that of the current point. Once all
    coordinates are used, a pass begins with a new order, from where the last one ended.

    Deviations: the loss is the goal's; the paper's is the probability of the label (`CrossEntropy` orders points as it
    does). The released code shares one order in a batch, stops after one pass, and its "diagonal" is not random.

    >>> import poise
    >>> target = poise.ModuleTarget(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)), num_classes=3)
    >>> goal, ball = poise.objectives.Margin(stop=False), poise.constraints.Linf(0.1)
    >>> result = poise.attack(target, goal, SimBA(), ball, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), budget=10)
    >>> bool((result.table["loss_after"] < result.table["loss_before"]).all())
    True
    """

    access: ClassVar[Access] = Access.LABELS
    step: float = 0.2
    basis: Literal["dct", "pixel"] = "dct"
    freq_dims: int | None = None
    order: Literal["random", "strided", "diagonal"] = "random"
    stride: int = 7

    def __post_init__(self) -> None:
        if not 0 < self.step < float("inf"):
            raise InputError(f"SimBA: step must be a positive number, got {self.step}")
        if self.basis not in BASES:
            raise InputError(f"SimBA: basis must be 'dct' or 'pixel', got '{self.basis}'")
        if self.order not in ORDERS:
            raise InputError(f"SimBA: order must be 'random', 'strided' or 'diagonal', got '{self.order}'")
        if self.freq_dims is not None and (self.freq_dims < 1 or self.basis != "dct"):
            raise InputError(
                f"SimBA: freq_dims must be at least 1 and needs basis 'dct', got {self.freq_dims} with '{self.basis}'"
            )
        if self.stride < 1:
            raise InputError(f"SimBA: stride must be at least 1, got {self.stride}")

    def run(self, problem: Problem) -> Steps:
        clean, box, constraint = problem.clean, problem.box, problem.constraint
        steps = _Steps(self, problem)
        reply = yield Ask(clean, problem.everyone)
        ids = reply.active.nonzero()[:, 0]
        change, loss = torch.zeros_like(clean[ids]), reply.loss[ids]
        for i in count():
            if not len(ids):
                return
            e = steps.at(i, ids)
            reply = yield Ask(constraint.project(clean[ids] + (change - e), clean[ids], box), ids)
            better = (reply.loss < loss) & reply.accept
            change, loss = change - per_row(better, e) * e, torch.where(better, reply.loss, loss)
            failed = (~better & reply.active[ids]).nonzero()[:, 0]
            if len(failed):
                rows, plus = ids[failed], change[failed] + e[failed]
                reply = yield Ask(constraint.project(clean[rows] + plus, clean[rows], box), rows)
                better = (reply.loss < loss[failed]) & reply.accept
                change[failed] = torch.where(better.view(-1, 1, 1, 1), plus, change[failed])
                loss[failed] = torch.where(better, reply.loss, loss[failed])
            ids, change, loss = running(reply.active, ids, change, loss)


class _Steps:
    """The steps of all samples, pass by pass."""

    def __init__(self, search: SimBA, problem: Problem) -> None:
        self.problem, self.step = problem, search.step
        _, self.channels, height, width = problem.clean.shape
        clean = problem.clean
        self.width, self.area = width, height * width
        self.basis = BASES[search.basis](height, width, clean.dtype, clean.device)
        whole = max(height, width) if search.basis == "pixel" else FIRST_BLOCK[search.order]
        side = whole if search.freq_dims is None else search.freq_dims
        cell = torch.arange(self.channels * self.area, device=clean.device)
        place = cell % self.area
        turn = ORDERS[search.order](place // width, place % width, side, search.stride)
        self.coordinates, self.turns = cell[turn >= 0], turn[turn >= 0]
        self.order = clean.new_zeros(0, 0, dtype=torch.int64)

    def at(self, i: int, ids: Tensor) -> Tensor:
        """(m, C, H, W) the basis image of iteration i, at the step's length, for the samples ids (m,)."""
        pass_, k = divmod(i, len(self.coordinates))
        if k == 0:
            first = min(len(self.coordinates), self.problem.budget)  # every iteration costs a query
            self.order = shuffled(self.problem.rng, self.problem.everyone, pass_, self.turns, first)
        cell = self.coordinates[self.order[ids, k]]
        place = cell % self.area
        member = self.basis.members(place // self.width, place % self.width).mul_(self.step)
        e = member.new_zeros(len(ids), self.channels, *member.shape[1:])
        return e.scatter_(1, (cell // self.area).view(-1, 1, 1, 1).expand(-1, 1, *member.shape[1:]), member[:, None])


def shuffled(rng: Rng, ids: Tensor, pass_: int, turns: Tensor, first: int) -> Tensor:
    """(n, first) positions in turns (d,), lowest turn first, in an order of each sample's own within a turn.

    >>> order = shuffled(Rng(0, torch.arange(2)), torch.arange(2), 0, torch.tensor([1, 0, 1, 0]), 4)
    >>> order.sort().values.tolist(), torch.tensor([1, 0, 1, 0])[order].tolist()
    ([[0, 1, 2, 3], [0, 1, 2, 3]], [[0, 0, 1, 1], [0, 0, 1, 1]])
    """
    parts = []
    for part in torch.split(ids, max(_KEYS // max(len(turns), 1), 1)):
        keys = rng.bits("simba", pass_, part, (len(turns),)).bitwise_and_((1 << 47) - 1).add_(turns << 47)
        parts.append(keys.argsort(dim=1, stable=True)[:, :first].clone())
    return torch.cat(parts)
