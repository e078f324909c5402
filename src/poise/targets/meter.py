"""The ledger: forward and backward passes per sample, and the budget that is never exceeded."""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from poise.errors import BudgetError
from poise.targets.base import DifferentiableTarget, SettledTarget, Target
from poise.types import Outputs


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
        queries: (n,) forward passes so far.
        gradients: (n,) backward passes so far.
        settles: the target's answers only show the way (`SettledTarget`).
        spent: an upper bound of `queries.max()` known without asking the device.
    """

    def __init__(self, target: Target, sample_ids: Tensor, budget: int) -> None:
        self._target = target
        self._sample_ids = sample_ids
        self._budget = budget
        self.queries = torch.zeros(len(sample_ids), dtype=torch.int64, device=sample_ids.device)
        self.gradients = torch.zeros_like(self.queries)
        self.settles = isinstance(target, SettledTarget)
        self.spent = 0

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
        return self._target.query(x, self._sample_ids[ids])

    def settled(self, x: Tensor, ids: Tensor) -> Outputs:
        """The answers that count, at points that were charged already."""
        assert isinstance(self._target, SettledTarget)
        return self._target.settled(x, self._sample_ids[ids])

    def gradient(self, x: Tensor, ids: Tensor, loss: PartLoss, repeats: int = 1) -> tuple[Outputs, Tensor]:
        """Answers and gradients; charges one query and one gradient per point.

        Asked in parts of the target's batch size, so that no graph of more points is held; `loss` is told which.
        """
        target = self._target
        assert isinstance(target, DifferentiableTarget), "attack() checks the access before the first query"
        self._charge(ids, repeats)
        self.gradients.index_add_(0, ids, torch.ones_like(ids))
        parts = []
        for at in range(0, max(len(ids), 1), target.batch_size):
            rows = slice(at, at + target.batch_size)
            parts.append(target.gradient(x[rows], self._sample_ids[ids[rows]], partial(loss, rows=rows)))
        if len(parts) == 1:
            return parts[0]
        kind = parts[0][0].kind
        return Outputs(torch.cat([part.scores for part, _ in parts]), kind), torch.cat([slope for _, slope in parts])

    def _charge(self, ids: Tensor, repeats: int) -> None:
        self.queries.index_add_(0, ids, torch.ones_like(ids))
        self.spent = min(self.spent + repeats, self._budget)
        if self.spent == self._budget and len(ids) and int(self.queries.max()) > self._budget:
            raise BudgetError(
                f"Meter: a sample has a budget of {self._budget} queries, {int(self.queries.max())} were asked"
            )
