"""The ledger: forward and backward passes per sample, and the budget that is never exceeded."""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from poise.errors import BudgetError
from poise.targets.base import DifferentiableTarget, SettledTarget, Target
from poise.types import Outputs, Seen


class PartLoss(Protocol):
    """Per-sample loss of the answers to the points in the slice `rows`."""

    def __call__(self, answer: Outputs, rows: slice) -> Tensor:
        """(m,) for as many answers as the slice has points."""
        ...


class Meter:
    """Counts what is asked of a target for each of n samples, before it is asked.

    Args:
        target: the target that answers.
        sample_ids: (n,) the caller's names of the samples, passed on with every query.
        budget: most forward passes per sample.

    Attributes:
        spent: an upper bound of `queries.max()` known without asking the device.
    """

    def __init__(self, target: Target, sample_ids: Tensor, budget: int) -> None:
        self._target = target
        self._sample_ids = sample_ids
        self._budget = budget
        self._queries = torch.zeros(len(sample_ids), dtype=torch.int64, device=sample_ids.device)
        self._gradients = torch.zeros_like(self._queries)
        self._asked = Asked(self._queries[:0], sample_ids)
        self._slopes = target if isinstance(target, DifferentiableTarget) else None  # slow to ask of a protocol
        self._settled = target if isinstance(target, SettledTarget) else None
        self.spent = 0

    @property
    def settles(self) -> bool:
        """The target's answers only show the way (`SettledTarget`)."""
        return self._settled is not None

    @property
    def queries(self) -> Tensor:
        """(n,) forward passes so far."""
        self._write()
        return self._queries

    @property
    def gradients(self) -> Tensor:
        """(n,) backward passes so far."""
        self._write()
        return self._gradients

    def affordable(self, ids: Tensor, repeats: int) -> Tensor | None:
        """(m,) bool: which of the points fit the budget, the earlier ones of a sample first; None for all of them."""
        if self.spent + repeats <= self._budget:
            return None
        left = self._budget - self.queries[ids]
        if repeats == 1:
            return left > 0
        order = torch.sort(ids, stable=True).indices
        first = torch.searchsorted(ids[order], ids[order])
        rank = torch.empty_like(ids)
        rank[order] = torch.arange(len(ids), device=ids.device) - first
        return left > rank

    def query(self, x: Tensor, ids: Tensor, repeats: int = 1) -> Outputs:
        """Answers of the target; charges one query per point."""
        self._charge(ids, repeats)
        return self._target.query(x, self._asked.names)

    def settled(self, x: Tensor, ids: Tensor) -> Outputs:
        """The answers that count, at points that were charged already."""
        assert self._settled is not None
        return self._settled.settled(x, self._sample_ids[ids])

    def gradient(self, x: Tensor, ids: Tensor, loss: PartLoss, repeats: int = 1) -> tuple[Outputs, Tensor]:
        """Answers and gradients; charges one query and one gradient per point.

        Asked in parts of the target's batch size, so that no graph of more points is held; `loss` is told which.
        """
        target = self._slopes
        assert target is not None, "attack() checks the access before the first query"
        self._charge(ids, repeats)
        self._asked.gradients += 1
        names = self._asked.names
        if len(ids) <= target.batch_size:
            return target.gradient(x, names, partial(loss, rows=slice(0, len(ids))))
        parts = []
        for at in range(0, len(ids), target.batch_size):
            rows = slice(at, at + target.batch_size)
            parts.append(target.gradient(x[rows], names[rows], partial(loss, rows=rows)))
        kind = parts[0][0].kind
        return Outputs(torch.cat([part.scores for part, _ in parts]), kind), torch.cat([slope for _, slope in parts])

    def _charge(self, ids: Tensor, repeats: int) -> None:
        if not self._asked.seen.again(ids):
            self._write()
            self._asked = Asked(ids, self._sample_ids)
        self._asked.queries += 1
        self.spent = min(self.spent + repeats, self._budget)
        if self.spent == self._budget and len(ids) and int(self.queries.max()) > self._budget:
            raise BudgetError(
                f"Meter: a sample has a budget of {self._budget} queries, {int(self.queries.max())} were asked"
            )

    def _write(self) -> None:
        """Adds to the counts what was asked since the last time."""
        self._asked.add_to(self._queries, self._gradients)


class Asked:
    """What was asked for the very same samples in a row: counted once, not at every ask.

    Args:
        ids: (m,) the rows of the samples, in a tensor of the search's own.
        sample_ids: (n,) the caller's names of all samples.

    Attributes:
        seen: recognises the tensor.
        names: (m,) the caller's names of these samples.
        queries, gradients: how often each of them was asked since the counts were written.
    """

    def __init__(self, ids: Tensor, sample_ids: Tensor) -> None:
        self.seen, self._ids, self.names = Seen(ids), ids.clone(), sample_ids[ids]
        self.queries = self.gradients = 0

    def add_to(self, queries: Tensor, gradients: Tensor) -> None:
        """Adds to the counts (n,) what is not in them yet."""
        if self.queries:
            queries.index_add_(0, self._ids, torch.ones_like(self._ids), alpha=self.queries)
        if self.gradients:
            gradients.index_add_(0, self._ids, torch.ones_like(self._ids), alpha=self.gradients)
        self.queries = self.gradients = 0
