"""The purse: what a run may spend is counted before the call, to the last query and the last cent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from poise import Access
from poise.checks.targets import check_target
from poise.errors import BudgetError, InputError, PoiseError
from poise.targets import DifferentiableTarget, Purse
from poise.types import Outputs
from toys import RecordingTarget, linear_case

CASE = linear_case(6)


class Streaming(RecordingTarget):
    """Answers one point at a time, the last one first."""

    def stream(self, x: Tensor, ids: Tensor) -> Iterator[tuple[Tensor, Outputs]]:
        for at in reversed(range(len(x))):
            yield torch.tensor([at]), self.query(x[at : at + 1], ids[at : at + 1])


def asked(target: RecordingTarget) -> int:
    return sum(len(ids) for ids, *_ in target.log)


@given(limit=st.integers(1, 12), calls=st.lists(st.integers(0, 6), max_size=6), spent=st.integers(0, 5))
def test_never_more_than_the_limit_and_nothing_refused_in_vain(limit: int, calls: list[int], spent: int) -> None:
    target = CASE.target()
    purse = Purse(target, max_queries=limit, spent=spent)
    expected = spent
    for points in calls:
        if expected + points > limit:
            with pytest.raises(BudgetError):
                purse.query(CASE.images[:points], CASE.ids[:points])
        else:
            purse.query(CASE.images[:points], CASE.ids[:points])
            expected += points
        assert purse.spent == expected == asked(target) + spent


@given(cents=st.integers(1, 1000), points=st.integers(0, 6))
def test_money_is_counted_as_it_is_written(cents: int, points: int) -> None:
    """A budget of exactly so many points pays for them, whatever their price: no cent is lost to binary fractions."""
    price = cents / 100
    purse = Purse(CASE.target(), cost_per_query=price, max_cost=points * cents / 100)
    purse.query(CASE.images[:points], CASE.ids[:points])
    assert purse.cost == points * cents / 100
    with pytest.raises(BudgetError):
        purse.query(CASE.images[:1], CASE.ids[:1])


def test_floats_alone_would_refuse_what_is_paid_for() -> None:
    """The broken twin of the exact count."""
    assert 3 * 0.1 > 0.3


def test_the_line_says_what_is_spent_what_is_needed_and_how_to_go_on() -> None:
    purse = Purse(CASE.target(), max_queries=9, cost_per_query=0.25, max_cost=2.0)
    purse.query(CASE.images, CASE.ids)
    with pytest.raises(BudgetError) as caught:
        purse.query(CASE.images[:4], CASE.ids[:4])
    assert str(caught.value) == (
        "Purse: 6 queries (1.5) are spent and the next call needs 4 more (1), beyond max-queries 9; "
        "raise --max-queries and give --resume"
    )
    with pytest.raises(BudgetError, match=r"beyond max-cost 2; raise --max-cost and give --resume$"):
        purse.query(CASE.images[:3], CASE.ids[:3])


def test_without_a_price_there_is_no_cost() -> None:
    purse = Purse(CASE.target(), max_queries=6)
    purse.query(CASE.images, CASE.ids)
    assert (purse.spent, purse.cost) == (6, None)
    with pytest.raises(BudgetError, match="Purse: 6 queries are spent and the next call needs 1 more, beyond"):
        purse.query(CASE.images[:1], CASE.ids[:1])


def test_calls_without_a_stream_are_counted_one_by_one() -> None:
    """Two calls of two fit, the third is refused before it is made."""
    target = CASE.target(batch_size=2)
    stream = Purse(target, max_queries=5).stream(CASE.images, CASE.ids)
    assert [next(stream)[0].tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(BudgetError):
        next(stream)
    assert asked(target) == 4


def test_a_stream_is_counted_before_it_begins() -> None:
    target = Streaming(CASE.module(), num_classes=3, batch_size=2)
    purse = Purse(target, max_queries=6)
    order = [row for rows, _ in purse.stream(CASE.images, CASE.ids) for row in rows.tolist()]
    assert order == [5, 4, 3, 2, 1, 0]
    with pytest.raises(BudgetError):
        next(purse.stream(CASE.images[:1], CASE.ids[:1]))
    assert asked(target) == 6


def test_it_is_a_target_that_serves_answers_alone() -> None:
    inner = CASE.target()
    purse = Purse(inner)
    check_target(purse, CASE.images)
    assert purse.access is Access.SCORES
    assert not isinstance(purse, DifferentiableTarget)
    assert Purse(CASE.target(access=Access.LABELS)).access is Access.LABELS
    assert torch.equal(purse.query(CASE.images, CASE.ids).scores, inner.query(CASE.images, CASE.ids).scores)
    with purse.session(0):
        assert inner._open
    assert not inner._open


@pytest.mark.parametrize(
    ("given_value", "told"),
    [
        ({"max_queries": 0}, "max-queries: must be at least 1, got 0"),
        ({"cost_per_query": -1.0}, "cost-per-query: must be a finite number, at least 0, got -1.0"),
        ({"cost_per_query": float("nan")}, "cost-per-query: must be a finite number, at least 0, got nan"),
        ({"cost_per_query": 1.0, "max_cost": float("inf")}, "max-cost: must be a finite number, at least 0, got inf"),
        ({"max_cost": 5.0}, "max-cost: needs cost-per-query, the price of one query, got 5 without it"),
        ({"spent": -1}, "Purse: spent must be a number of queries, at least 0, got -1"),
    ],
)
def test_what_is_refused(given_value, told: str) -> None:
    with pytest.raises(InputError) as caught:
        Purse(CASE.target(), **given_value)
    assert str(caught.value) == told


def test_a_price_of_nothing_never_ends() -> None:
    purse = Purse(CASE.target(), cost_per_query=0.0, max_cost=0.0)
    purse.query(CASE.images, CASE.ids)
    assert purse.cost == 0
    assert issubclass(BudgetError, PoiseError)
