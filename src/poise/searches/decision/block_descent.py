"""BlockDescent, the second stage of RamBo: patches of a wrong image move towards the clean one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from poise.constraints.l2 import per_row
from poise.errors import InputError
from poise.searches.decision.decisions import Decided
from poise.searches.decision.norms import Norm
from poise.searches.decision.slow import Slow

CIFAR = Slow(1e-2, 500)
"""The published patience for CIFAR-10."""

IDLE = 3
"""Passes without a query after which a sample ends."""


@dataclass(frozen=True, slots=True)
class BlockDescent:
    """Patches of the wrong image move towards the clean one while it stays wrong (RamBo's second stage).

    Vo, Abbasnejad & Ranasinghe, "RamBoAttack", NDSS 2022, BlockDescent, as in the released code.

    Passes over all coordinates in random order, `blocks` at a time: the (2 half_width + 1)^2 patches around them, each
    in its own channel, move by step * sign(x - x_adv) towards the clean image. A query is made only where the Euclidean
    distance falls, and the move kept where the point is still wrong. After a pass the step is divided by `shrink`.

    Args:
        percentile: of |x_adv - x|, the first step, in [0, 100].
        blocks: coordinates m moved at once.
        shrink: lambda, above 1.
        half_width: w.
        slow: the mean distance of so many queries against that of as many before.

    A sample also ends after three passes without a query.

    >>> from poise.searches import RamBo
    >>> search = RamBo(blocks=BlockDescent(percentile=50.0, blocks=16, shrink=2.0))
    >>> search.blocks.half_width
    1
    """

    percentile: float = 100.0
    blocks: int = 1
    shrink: float = 1.2
    half_width: int = 1
    slow: Slow = CIFAR

    def __post_init__(self) -> None:
        if not 0 <= self.percentile <= 100:
            raise InputError(f"BlockDescent: percentile must be in [0, 100], got {self.percentile}")
        if self.blocks < 1:
            raise InputError(f"BlockDescent: blocks must be at least 1, got {self.blocks}")
        if not 1 < self.shrink < float("inf"):
            raise InputError(f"BlockDescent: shrink must be a number above 1, got {self.shrink}")
        if self.half_width < 0:
            raise InputError(f"BlockDescent: half_width must be at least 0, got {self.half_width}")

    def descend(self, norm: Norm, ids: Tensor, x: Tensor) -> Decided:
        """The passes, from wrong points x (m, C, H, W) of samples ids (m,); returns the last ones."""
        decisions, problem = norm.decisions, norm.problem
        clean, x = problem.clean[ids], x.clone()
        change = (x - clean).flatten(1).abs().double()
        step = torch.quantile(change, self.percentile / 100, dim=1) if len(ids) else change.new_zeros(0)
        distance, pace = norm.distance(x, ids), _Pace(self.slow, step, norm.span)
        idle, turn = torch.zeros_like(ids), 0
        while bool((decisions.active[ids] & ~pace.slow & (idle < IDLE)).any()):
            asked = pace.queries.clone()
            for patches in self._patches(norm, ids, turn):
                rows = (decisions.active[ids] & ~pace.slow & (idle < IDLE)).nonzero()[:, 0]
                if not len(rows):
                    break
                towards = per_row(step[rows], x) * (clean[rows] - x[rows]).sign()
                points = problem.box.project(torch.where(patches[rows], x[rows] + towards, x[rows]))
                length = norm.distance(points, ids[rows])
                nearer = length < distance[rows]
                rows, points, length = rows[nearer], points[nearer], length[nearer]
                if not len(rows):
                    continue
                wrong = yield from decisions.ask(points, ids[rows])
                x[rows] = torch.where(wrong.view(-1, 1, 1, 1), points, x[rows])
                distance[rows] = torch.where(wrong, length, distance[rows])
                pace.count(rows, distance[rows])
            idle = torch.where(pace.queries == asked, idle + 1, 0)
            step, turn = step / self.shrink, turn + 1
        return x

    def _patches(self, norm: Norm, ids: Tensor, turn: int) -> Iterator[Tensor]:
        """(m, C, H, W) bool: the next patches, until every coordinate of every image was the middle of one."""
        channels, height, width = norm.problem.clean.shape[1:]
        w, rows = self.half_width, height + 2 * self.half_width
        columns = width + 2 * w
        order = norm.problem.rng.bits("block-order", turn, ids, (norm.d,)).argsort(dim=1)
        channel, place = order // (height * width), order % (height * width)
        corner = (channel * rows + place // width) * columns + place % width  # in an image with a margin of w
        side = torch.arange(2 * w + 1, device=ids.device)
        window = (side[:, None] * columns + side).flatten()
        for first in range(0, norm.d, self.blocks):
            index = (corner[:, first : first + self.blocks, None] + window).flatten(1)
            canvas = torch.zeros(len(ids), channels * rows * columns, dtype=torch.bool, device=ids.device)
            canvas.scatter_(1, index, True)
            yield canvas.view(-1, channels, rows, columns)[:, :, w : w + height, w : w + width]


class _Pace:
    """Which samples (m,) have become slow: the mean distance of a window of queries against the window before."""

    def __init__(self, limit: Slow, like: Tensor, span: float) -> None:
        self.limit, self.span = limit, span
        self.total, self.before = torch.zeros_like(like), torch.full_like(like, torch.inf)
        self.queries = torch.zeros_like(like, dtype=torch.int64)
        self.slow = torch.zeros_like(like, dtype=torch.bool)

    def count(self, rows: Tensor, distance: Tensor) -> None:
        """One query of each of these samples, after which they are that far."""
        self.queries[rows] += 1
        self.total[rows] += distance
        full = (self.queries[rows] % self.limit.queries) == 0
        mean = self.total[rows] / self.limit.queries
        self.slow[rows] |= full & (self.before[rows] - mean < self.limit.gain * self.span)
        self.before[rows] = torch.where(full, mean, self.before[rows])
        self.total[rows] = self.total[rows].masked_fill(full, 0)
