"""The purse: what a run may ask of a target, in queries and in money, refused before it is asked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

from torch import Tensor

from poise.errors import BudgetError, InputError
from poise.targets.base import Target
from poise.targets.in_front import InFront
from poise.targets.stream import Part, StreamingTarget, calls
from poise.types import Outputs


class Purse(InFront):
    """A target that is asked no more than a run may spend; every point is counted before it is asked.

    Answers alone are served: gradients are hidden. The limits hold for all samples together; the budget of a single
    sample is `attack`'s.

    Args:
        target: answers.
        max_queries: most points, at least 1; None for any number.
        cost_per_query: price of one point in any currency, finite and not negative.
        max_cost: most that may be spent, in that currency; needs the price. Counted exactly, as decimal numbers: 0.3
            pays for three points at 0.1.
        spent: points that earlier runs have paid for.

    Attributes:
        spent: points asked so far, earlier runs included.

    Raises:
        InputError: limits that make no sense; BudgetError: from `query` and `stream`, before the call that would exceed
            a limit; nothing of that call is asked.

    >>> import torch
    >>> from poise import ModuleTarget
    >>> module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> purse = Purse(ModuleTarget(module, num_classes=3), cost_per_query=0.1, max_cost=0.3)
    >>> _ = purse.query(torch.rand(3, 1, 2, 2), torch.arange(3))
    >>> purse.spent, purse.cost
    (3, 0.3)
    >>> purse.query(torch.rand(1, 1, 2, 2), torch.arange(1))
    Traceback (most recent call last):
        ...
    poise.errors.BudgetError: Purse: 3 queries (0.3) are spent and the next call needs 1 more (0.1), beyond max-cost
    0.3; raise --max-cost and give --resume
    """

    def __init__(
        self,
        target: Target,
        max_queries: int | None = None,
        cost_per_query: float | None = None,
        max_cost: float | None = None,
        spent: int = 0,
    ) -> None:
        check_limits(max_queries, cost_per_query, max_cost)
        if spent < 0:
            raise InputError(f"Purse: spent must be a number of queries, at least 0, got {spent}")
        super().__init__(target)
        self._price = None if cost_per_query is None else _exact(cost_per_query)
        self._max_queries, self._max_cost = max_queries, max_cost
        self.spent = spent

    @property
    def cost(self) -> float | None:
        """What the points asked so far cost; None where no price is known."""
        return None if self._price is None else float(self.spent * self._price)

    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        """Answers for points x (m, C, H, W) in one call, counted before it."""
        self._charge(len(x))
        return self.target.query(x, ids)

    def stream(self, x: Tensor, ids: Tensor) -> Iterator[Part]:
        """Answers as they arrive; counted in one where the target streams, else call by call."""
        if isinstance(self.target, StreamingTarget):
            self._charge(len(x))
            yield from self.target.stream(x, ids)
            return
        for rows, points, names in calls(x, ids, self.batch_size):
            yield rows, self.query(points, names)

    def _charge(self, points: int) -> None:
        after = self.spent + points
        if self._max_queries is not None and after > self._max_queries:
            raise self._refusal(points, f"max-queries {self._max_queries}", "--max-queries")
        if self._price is not None and self._max_cost is not None and after * self._price > _exact(self._max_cost):
            raise self._refusal(points, f"max-cost {self._max_cost:g}", "--max-cost")
        self.spent = after

    def _refusal(self, points: int, limit: str, option: str) -> BudgetError:
        spent, needed = ("" if self._price is None else f" ({float(n * self._price):g})" for n in (self.spent, points))
        return BudgetError(
            f"Purse: {self.spent} queries{spent} are spent and the next call needs {points} more{needed}, "
            f"beyond {limit}; raise {option} and give --resume"
        )


def check_limits(max_queries: int | None, cost_per_query: float | None, max_cost: float | None) -> None:
    """Refuses limits that make no sense.

    Raises:
        InputError: one line that names the option.
    """
    if max_queries is not None and max_queries < 1:
        raise InputError(f"max-queries: must be at least 1, got {max_queries}")
    for name, value in (("cost-per-query", cost_per_query), ("max-cost", max_cost)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name}: must be a finite number, at least 0, got {value}")
    if max_cost is not None and cost_per_query is None:
        raise InputError(f"max-cost: needs cost-per-query, the price of one query, got {max_cost:g} without it")


def _exact(number: float) -> Fraction:
    """The decimal number as it was written."""
    return Fraction(repr(float(number)))
