"""The ledger: every pass is counted for its sample, and none beyond the budget reaches the target."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poise.errors import PoiseError
from poise.targets.meter import Meter
from poise.types import Outputs
from toys import RecordingTarget, linear_case

CASE = linear_case(4)


def meter(budget: int) -> tuple[Meter, RecordingTarget]:
    target = CASE.target()
    return Meter(target, CASE.ids, budget), target


def loss(answer: Outputs) -> torch.Tensor:
    return answer.logits[:, 0]


def test_counts_per_sample_and_passes_names_on() -> None:
    ledger, target = meter(10)
    ledger.query(CASE.images[[2, 0]], torch.tensor([2, 0]))
    ledger.gradient(CASE.images[[0]], torch.tensor([0]), loss)
    ledger.query(CASE.images[[3, 3, 3]], torch.tensor([3, 3, 3]), repeats=3)
    assert ledger.queries.tolist() == [2, 0, 1, 3] == target.counted(CASE.ids, gradients=False)
    assert ledger.gradients.tolist() == [1, 0, 0, 0] == target.counted(CASE.ids, gradients=True)
    assert ledger.spent >= 3


def test_the_earlier_points_of_a_sample_come_first() -> None:
    ledger, _ = meter(3)
    ledger.query(CASE.images[[0, 1]], torch.tensor([0, 1]))
    ids = torch.tensor([1, 0, 1, 2, 1, 2, 2, 2])
    affordable = ledger.affordable(ids, 4)
    assert affordable.tolist() == [True, True, True, True, False, True, True, False]


@given(
    budget=st.integers(1, 6),
    asks=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), max_size=6),
)
def test_what_is_affordable_never_exceeds_the_budget(budget: int, asks: list[list[int]]) -> None:
    """Any sequence of asks, cut to what is affordable: no sample beyond its budget, and nothing refused in vain."""
    ledger, target = meter(budget)
    wanted = torch.zeros(4, dtype=torch.long)
    for ask in asks:
        ids = torch.tensor(ask)
        repeats = int(torch.bincount(ids).max())
        affordable = ledger.affordable(ids, repeats)
        part = ids if affordable is None else ids[affordable]
        if len(part):
            ledger.query(CASE.images[part], part, repeats)
        wanted += torch.bincount(ids, minlength=4)
    assert ledger.queries.tolist() == wanted.clamp_max(budget).tolist() == target.counted(CASE.ids, gradients=False)


def test_beyond_the_budget_nothing_is_asked() -> None:
    ledger, target = meter(2)
    one = torch.tensor([1])
    for _ in range(2):
        ledger.query(CASE.images[one], one)
    for ask in (ledger.query, lambda x, ids: ledger.gradient(x, ids, loss)):
        with pytest.raises(PoiseError, match="budget of 2 queries") as caught:
            ask(CASE.images[one], one)
        assert "\n" not in str(caught.value)
    assert target.counted(CASE.ids, gradients=False) == [0, 2, 0, 0]
