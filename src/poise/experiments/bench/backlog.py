"""Which shard is next: cell by cell to each worker, tiny ones many at a time, those that took a worker down again."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from poise.experiments.bench.plan import Shard

BATCH_SECONDS, BATCH_MOST = 0.1, 50
"""Shards of a cell go out together for about this long, and no more than so many: what one dead worker can cost."""


@dataclass(eq=False)
class Cell:
    """Shards that share their settings, so a worker that has done one has the model of the others.

    Args:
        waiting: to be done. seconds: that one takes, by those done so far; None before the first.
    """

    waiting: deque[Shard] = field(default_factory=deque)
    seconds: float | None = None

    def learn(self, seconds: float) -> None:
        """One more shard is done; the last ones count most."""
        self.seconds = seconds if self.seconds is None else 0.7 * self.seconds + 0.3 * seconds


@dataclass(eq=False)
class Batch:
    """Shards of one cell that one worker does in one go."""

    cell: Cell
    shards: list[Shard]


class Backlog:
    """Every shard until it has ended.

    Args:
        shards: all of them, in their order.
        tries: workers that a shard may take down before it is given up.
    """

    def __init__(self, shards: Iterable[Shard], tries: int) -> None:
        self.tries = tries
        self.open = 0
        self._deaths: dict[int, int] = {}
        cells: dict[int, Cell] = {}
        for shard in shards:
            cells.setdefault(id(shard.settings), Cell()).waiting.append(shard)
            self.open += 1
        self._fresh, self._begun = deque(cells.values()), dict[Cell, None]()

    def take(self, last: Cell | None, workers: int) -> Batch | None:
        """The next work for a worker, None where nothing waits.

        Args:
            last: the cell of its last batch, which it keeps as long as there is work in it.
            workers: that share the rest.
        """
        cell = self._choose(last)
        if cell is None:
            return None
        shards = [cell.waiting.popleft()]
        if not self.deaths(shards[0]):  # one that took a worker down goes out alone
            room = min(BATCH_MOST, math.ceil(len(cell.waiting) / (2 * workers)))
            if cell.seconds is None or room * cell.seconds > BATCH_SECONDS:
                room = 1 if cell.seconds is None else int(BATCH_SECONDS / cell.seconds)
            while len(shards) < room and cell.waiting and not self.deaths(cell.waiting[0]):
                shards.append(cell.waiting.popleft())
        if not cell.waiting:
            self._begun.pop(cell, None)
        return Batch(cell, shards)

    def _choose(self, last: Cell | None) -> Cell | None:
        """Its own cell, else one that nobody has begun, else the one with most left."""
        if last is not None and last.waiting:
            return last
        if self._fresh:
            cell = self._fresh.popleft()
            self._begun[cell] = None
            return cell
        return max(self._begun, key=lambda cell: len(cell.waiting), default=None)

    def deaths(self, shard: Shard) -> int:
        """Workers that died at this shard."""
        return self._deaths.get(id(shard), 0)

    def ended(self) -> None:
        """One shard less to do."""
        self.open -= 1

    def put_back(self, batch: Batch) -> None:
        """Nobody has begun it: it is next again."""
        batch.cell.waiting.extendleft(reversed(batch.shards))
        if batch.shards:
            self._begun[batch.cell] = None

    def died(self, batch: Batch) -> list[Shard]:
        """A worker died at it; those that are given up have ended and are returned, the rest is next again."""
        for shard in batch.shards:
            self._deaths[id(shard)] = self.deaths(shard) + 1
        lost = [shard for shard in batch.shards if self.deaths(shard) >= self.tries]
        self.put_back(Batch(batch.cell, [shard for shard in batch.shards if self.deaths(shard) < self.tries]))
        self.open -= len(lost)
        return lost
