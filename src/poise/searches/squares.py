"""The squares of Square Attack, drawn for every image by itself: constant +-eps for linf, paired bumps for l2."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from poise.constraints.l2 import per_row, unit
from poise.searches.base import Problem
from poise.types import Seen

DRAWS = 4
"""Sign patterns drawn per linf square; the first that changes the image is used, so no query is spent on a copy."""

STEPS_AHEAD, WORDS_AHEAD = 32, 2**18
"""For how many steps random bits and windows are made at once at most, and how many numbers."""


class Move(Protocol):
    """One iteration's change of m images."""

    @property
    def x(self) -> Tensor:
        """(m, C, H, W) the candidates, to be asked for."""
        ...

    @property
    def inside(self) -> bool:
        """They lie in ball and box by their making, if what they were made from does."""
        ...

    def settle(self, better: Tensor) -> Tensor:
        """(m, C, H, W) the candidates where better (m,), else what they were made from; ends this move."""
        ...


@dataclass(frozen=True, slots=True)
class Replaced:
    """Candidates in a tensor of their own."""

    inside: ClassVar[bool] = False
    before: Tensor
    x: Tensor

    def settle(self, better: Tensor) -> Tensor:
        return torch.where(better.view(-1, 1, 1, 1), self.x, self.before)


@dataclass(frozen=True, slots=True)
class Windows:
    """Candidates written into the images themselves: only the windows at index (m, C, s * s) are ever touched."""

    inside: ClassVar[bool] = True
    x: Tensor
    flat: Tensor
    index: Tensor
    before: Tensor
    after: Tensor

    def settle(self, better: Tensor) -> Tensor:
        self.flat.scatter_(2, self.index, torch.where(better.view(-1, 1, 1), self.after, self.before))
        return self.x


class Proposals:
    """What the random search asks for."""

    @property
    def p(self) -> float:
        """Share of the image in the first squares."""
        raise TypeError(f"{type(self).__name__} must define p")

    def first(self, ids: Tensor) -> Tensor:
        """(m, C, H, W) a starting pattern."""
        raise TypeError(f"{type(self).__name__} must define first(ids)")

    def propose(self, x: Tensor, ids: Tensor, share: float, step: int) -> Tensor:
        """(m, C, H, W) the candidates of one iteration, from the best points x, which stay as they are."""
        raise TypeError(f"{type(self).__name__} must define propose(x, ids, share, step)")

    def move(self, x: Tensor, ids: Tensor, share: float, step: int) -> Move:
        """The same candidates; may write into x, which belongs to the move until it is settled."""
        return Replaced(x, self.propose(x, ids, share, step))


class Squares(Proposals):
    """What both norms share: positions and flat indices of windows, and the images they are cut into."""

    def __init__(self, problem: Problem, *, inclusive: bool) -> None:
        self.problem, self.inclusive = problem, inclusive
        self.channels, self.height, self.width = problem.clean.shape[1:]
        self.eps = problem.constraint.eps
        device = problem.clean.device
        self.row_numbers = torch.arange(self.height, device=device)
        self.column_numbers = torch.arange(self.width, device=device)
        self.offsets: dict[int, Tensor] = {}
        self.spans: dict[int, Tensor] = {}

    def corner(self, bits: Tensor, s: int) -> tuple[Tensor, Tensor]:
        """(m,) uniform top row and left column of windows of side s, from bits (m, 2)."""
        if s not in self.spans:
            ends = (max(side - s + int(self.inclusive), 1) for side in (self.height, self.width))
            self.spans[s] = torch.tensor([*ends], device=bits.device)
        top, left = ((bits & ((1 << 63) - 1)) % self.spans[s]).unbind(dim=1)
        return top, left

    def index(self, top: Tensor, left: Tensor, s: int) -> Tensor:
        """(m, C, s * s) positions of each window in an image flattened over rows and columns."""
        if s not in self.offsets:
            self.offsets[s] = (self.row_numbers[:s, None] * self.width + self.column_numbers[:s]).flatten()
        flat = (top * self.width + left)[:, None] + self.offsets[s]
        return flat[:, None].expand(-1, self.channels, -1)

    def mask(self, top: Tensor, left: Tensor, s: int) -> Tensor:
        """(m, 1, H, W) bool, True inside each window."""
        rows = (self.row_numbers >= top[:, None]) & (self.row_numbers < top[:, None] + s)
        columns = (self.column_numbers >= left[:, None]) & (self.column_numbers < left[:, None] + s)
        return (rows[:, :, None] & columns[:, None, :])[:, None]


class Draws:
    """The random bits of consecutive steps, made for many steps at a time where the steps are asked for in turn.

    Args:
        problem: its random streams, and its samples.
        number: of 64-bit words per sample and step.
    """

    def __init__(self, problem: Problem, number: int) -> None:
        self.rng, self.everyone, self.number = problem.rng, problem.everyone, number
        self.most = max(min(STEPS_AHEAD, WORDS_AHEAD // max(len(self.everyone) * number, 1)), 1)
        self.steps, self.bits = range(0), self.everyone

    def ahead(self, step: int, ids: Tensor, most: int) -> Tensor:
        """(b, m, number) int64, every bit a fair coin, for this step and up to `most` - 1 that follow.

        Row j is `rng.bits("square", step + j, ids, (number,))`.
        """
        if step not in self.steps:
            ahead = min(2 * len(self.steps), self.most) if step == self.steps.stop and self.steps else 1
            self.steps = range(step, step + ahead)
            self.bits = self.rng.bits_of("square", self.steps, self.everyone, (self.number,))
        first = step - self.steps.start
        return self.bits[first : first + most].index_select(1, ids)


@dataclass(frozen=True, slots=True)
class Cut:
    """The linf windows of consecutive steps for the same m samples, made at once.

    Args:
        ids: recognises the samples.
        side: s of the windows.
        steps: which steps; each of the following has one tensor per step.
        index: (m, C, s * s) positions of each window in an image flattened over rows and columns.
        patterns: (m, DRAWS, C, s * s) what the window may become, in the order drawn.
        after: (m, C, s * s) the first pattern.
    """

    ids: Seen
    side: int
    steps: range
    index: tuple[Tensor, ...]
    patterns: tuple[Tensor, ...]
    after: tuple[Tensor, ...]

    def holds(self, ids: Tensor, side: int, step: int) -> bool:
        """These are the windows of this step."""
        return step in self.steps and side == self.side and self.ids.again(ids)


class LinfSquares(Squares):
    """Windows in which the change is replaced by a constant +-eps per channel."""

    p = 0.05

    def __init__(self, problem: Problem, *, inclusive: bool) -> None:
        super().__init__(problem, inclusive=inclusive)
        n, pixels = len(problem.clean), self.height * self.width
        self.flat_clean = problem.clean.reshape(-1)
        self.planes = torch.arange(n * self.channels, device=self.flat_clean.device).view(n, -1, 1) * pixels
        self.draws = Draws(problem, 2 + DRAWS * self.channels)
        self.cut: Cut | None = None

    def side(self, share: float) -> int:
        """round(sqrt(share * H * W)), at least 1 and short of the image's shorter side."""
        return min(
            max(round(math.sqrt(share * self.height * self.width)), 1),
            max(min(self.height, self.width) - 1, 1),
        )

    def first(self, ids: Tensor) -> Tensor:
        """Vertical stripes: +-eps per channel and column, the same in all rows."""
        problem = self.problem
        up = problem.rng.signs("stripes", 0, ids, (self.channels, 1, self.width))
        clean = problem.clean[ids]
        return problem.box.project(torch.where(up, clean + self.eps, clean - self.eps))

    def propose(self, x: Tensor, ids: Tensor, share: float, step: int) -> Tensor:
        """x with one window per image replaced; signs are redrawn (no query) while that would change nothing."""
        return self.move(x.clone(), ids, share, step).x

    def move(self, x: Tensor, ids: Tensor, share: float, step: int) -> Windows:
        cut = self._windows(ids, self.side(share), step)
        at = step - cut.steps.start
        flat = x.view(*x.shape[:2], -1)
        now = flat.gather(2, cut.index[at])
        after = self._changing(cut, at, now)
        flat.scatter_(2, cut.index[at], after)
        return Windows(x, flat, cut.index[at], now, after)

    def _windows(self, ids: Tensor, s: int, step: int) -> Cut:
        """The windows of this step; those of more and more steps at once while samples and side stay the same."""
        cut = self.cut
        if cut is None or not cut.holds(ids, s, step):
            following = cut is not None and step == cut.steps.stop and cut.ids.again(ids)
            most = min(2 * len(cut.steps), STEPS_AHEAD) if cut is not None and following else 1
            numbers = max(len(ids) * self.channels * s * s, 1)
            self.cut = cut = self._cut(ids, s, step, max(min(most, WORDS_AHEAD // numbers), 1))
        return cut

    def _cut(self, ids: Tensor, s: int, step: int, most: int) -> Cut:
        bits = self.draws.ahead(step, ids, most)
        number, m = bits.shape[:2]
        top, left = self.corner(bits[:, :, :2].reshape(-1, 2), s)
        index = self.index(top, left, s)[:, :1].view(number, m, 1, -1)
        places = index + self.planes.index_select(0, ids)
        clean = self.flat_clean.index_select(0, places.flatten()).view_as(places)
        up, down = self.problem.box.project(clean + self.eps), self.problem.box.project(clean - self.eps)
        signs = (bits[:, :, 2:] < 0).view(number, m, DRAWS, self.channels, 1)
        patterns = torch.where(signs, up[:, :, None], down[:, :, None])
        index = index.expand(-1, -1, self.channels, -1)
        parts = (part.unbind(0) for part in (index, patterns, patterns[:, :, 0]))
        return Cut(Seen(ids), s, range(step, step + number), *parts)

    def _changing(self, cut: Cut, at: int, now: Tensor) -> Tensor:
        """(m, C, s * s) the windows by the first drawn pattern that changes what is there now, else by the first."""
        after, patterns = cut.after[at], cut.patterns[at]
        if now.device.type != "cpu":  # to know whether any window stays as it is would cost a synchronisation
            return _redrawn(now, patterns)
        rows = (now.select(2, 0) == after.select(2, 0)).all(dim=1).nonzero().view(-1)
        if not len(rows):  # nowhere does even the first pixel stay as it is
            return after
        return after.index_copy(0, rows, _redrawn(now.index_select(0, rows), patterns.index_select(0, rows)))


def _redrawn(now: Tensor, patterns: Tensor) -> Tensor:
    """(m, C, s * s) the first of the patterns (m, DRAWS, C, s * s) that differs from now, else the very first."""
    idle = (now.unsqueeze(1) == patterns).flatten(2).all(dim=2)
    pick = idle.view(torch.uint8).argmin(dim=1).view(-1, 1, 1, 1)
    return patterns.gather(1, pick.expand(-1, 1, *now.shape[1:])).squeeze(1)


class L2Squares(Squares):
    """Two windows of one side: the length of both, and what the ball has left, is written into the first as a bump."""

    p = 0.1

    def side(self, share: float) -> int:
        """round(sqrt(share * H * W)), at least 3, odd, and no more than the image's shorter side."""
        s = max(round(math.sqrt(share * self.height * self.width)), 3)
        s += s % 2 == 0
        shorter = min(self.height, self.width)
        return min(s, shorter - (shorter % 2 == 0) if shorter > 1 else 1)

    def first(self, ids: Tensor) -> Tensor:
        """A grid of bumps of a fifth of the side, random signs, scaled to length eps."""
        problem, rng = self.problem, self.problem.rng
        clean = problem.clean[ids]
        s = max(min(self.height, self.width) // 5, 1)
        grid = (self.height // s, self.width // s)
        tile = bump(s, clean.device)
        sign = rng.signs("bump-signs", 0, ids, (self.channels, *grid)).to(clean.dtype).mul_(2).sub_(1)
        turn = rng.signs("bump-turns", 0, ids, (1, *grid))[..., None, None]
        tiles = torch.where(turn, tile, tile.T).to(clean.dtype) * sign[..., None, None]  # (m, C, rows, columns, s, s)
        inner = tiles.transpose(3, 4).reshape(len(ids), self.channels, grid[0] * s, grid[1] * s)
        top, left = (self.height - grid[0] * s) // 2, (self.width - grid[1] * s) // 2
        change = torch.zeros_like(clean)
        change[:, :, top : top + grid[0] * s, left : left + grid[1] * s] = inner
        return problem.constraint.project(clean + unit(change) * self.eps, clean, problem.box)

    def propose(self, x: Tensor, ids: Tensor, share: float, step: int) -> Tensor:
        """x with the second window erased, the first rewritten, and the change scaled to length eps before clipping."""
        s, problem = self.side(share), self.problem
        clean = problem.clean[ids]
        bits = problem.rng.bits("square", step, ids, (5 + self.channels,))
        first, second = self.corner(bits[:, :2], s), self.corner(bits[:, 2:4], s)
        change = x - clean
        writes, erases = self.mask(*first, s), self.mask(*second, s)
        squares = change.square()
        inside = (squares * (writes | erases)).flatten(2).sum(dim=2)  # (m, C)
        left = (self.eps**2 - squares.flatten(1).sum(dim=1)).clamp_min(0) / self.channels
        length = (left[:, None] + inside).sqrt()[:, :, None]
        tile = bump(s, x.device).to(x.dtype)
        shape = torch.where((bits[:, 4] < 0).view(-1, 1, 1), tile, tile.T).flatten(1)[:, None]
        sign = torch.where(bits[:, 5:] < 0, 1.0, -1.0).to(x.dtype)[:, :, None]
        index = self.index(*first, s)
        old = change.flatten(2).gather(2, index)
        new = shape * sign + old / _positive(old.norm(dim=2, keepdim=True))
        new = new * (length / _positive(new.norm(dim=2, keepdim=True)))
        change = (change * ~erases).flatten(2).scatter(2, index, new).view_as(x)
        norm = change.flatten(1).norm(dim=1)
        return problem.box.project(clean + change * per_row(self.eps / _positive(norm), x))


def _positive(length: Tensor) -> Tensor:
    """Lengths with zeros replaced by one, so that 0 / length stays 0."""
    return torch.where(length > 0, length, 1)


@lru_cache(maxsize=64)
def bump(s: int, device: torch.device) -> Tensor:
    """(s, s) float64 of length 1: a pyramid over the upper half of the rows, its negative over the lower half.

    Ring r around a half's centre adds 1/(r+1)^2 to itself and all that lies inside it.
    """

    def pyramid(rows: int, columns: int) -> Tensor:
        ring = torch.maximum(
            (torch.arange(rows) - rows // 2).abs()[:, None],
            (torch.arange(columns) - columns // 2).abs()[None, :],
        )
        rings = max(rows // 2, columns // 2) + 1
        weights = torch.arange(1, rings + 1, dtype=torch.float64).pow(-2)
        height = weights.flip(0).cumsum(0).flip(0)[ring] if rows else torch.zeros(0, columns, dtype=torch.float64)
        return height / _positive(height.norm())

    whole = torch.cat([pyramid(s // 2, s), -pyramid(s - s // 2, s)])
    unit_bump: Tensor = whole / whole.norm()
    return unit_bump.to(device)
