"""The ledger: every pass is counted for its sample, and none beyond the budget reaches the target."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poise.errors import PoiseError
from poise.targets.meter import Meter, PartLoss
from poise.types import Outputs
from toys import RecordingTarget, generator, linear_case

CASE = linear_case(4)


def meter(budget: int) -> tuple[Meter, RecordingTarget]:
    target = CASE.target()
    return Meter(target, CASE.ids, budget), target


def loss(answer: Outputs, rows: slice) -> torch.Tensor:
    return answer.logits[:, 0]


def test_counts_per_sample_and_passes_names_on() -> None:
    ledger, target = meter(10)
    ledger.query(CASE.images[[2, 0]], torch.tensor([2, 0]))
    ledger.gradient(CASE.images[[0]], torch.tensor([0]), loss)
    ledger.query(CASE.images[[3, 3, 3]], torch.tensor([3, 3, 3]), repeats=3)
    assert ledger.queries.tolist() == [2, 0, 1, 3] == target.counted(CASE.ids, gradients=False)
    assert ledger.gradients.tolist() == [1, 0, 0, 0] == target.counted(CASE.ids, gradients=True)
    assert ledger.spent >= 3


def test_counts_of_the_same_samples_in_a_row() -> None:
    """Counted when somebody looks; a search that writes into its ids changes no count of the past."""
    ledger, target = meter(20)
    ids = torch.tensor([2, 0])
    for _ in range(3):
        ledger.query(CASE.images[ids], ids)
    ids[0] = 1
    ledger.gradient(CASE.images[ids], ids, loss)
    ledger.query(CASE.images[ids], ids)
    assert ledger.queries.tolist() == [5, 2, 3, 0] == target.counted(CASE.ids, gradients=False)
    assert ledger.gradients.tolist() == [1, 1, 0, 0] == target.counted(CASE.ids, gradients=True)
    assert ledger.queries.tolist() == [5, 2, 3, 0]  # looking counts nothing twice


def test_counts_in_inference_mode() -> None:
    """There torch does not say whether a tensor was written into."""
    with torch.inference_mode():
        ledger, target = meter(20)
        ids = torch.tensor([2, 0])
        ledger.query(CASE.images[ids], ids)
        ids[0] = 1
        ledger.query(CASE.images[ids], ids)
        assert ledger.queries.tolist() == [2, 1, 1, 0] == target.counted(CASE.ids, gradients=False)


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


# --- gradients in parts of the target's batch size ---


class Counting(RecordingTarget):
    """Remembers how many points each call for gradients held."""

    def __init__(self, *arguments, **declared) -> None:
        super().__init__(*arguments, **declared)
        self.sizes: list[int] = []

    def gradient(self, x, ids, loss):
        self.sizes.append(len(x))
        return super().gradient(x, ids, loss)


POINTS = torch.rand(7, 1, 4, 4, generator=generator(3), dtype=torch.float64)
ROWS = torch.tensor([3, 0, 0, 2, 3, 1, 0])
PULLS = torch.tensor([1.0, -2.0, 3.0, 0.5, 0.0, 7.0, -1.0], dtype=torch.float64)


def pulled(answer: Outputs, rows: slice) -> torch.Tensor:
    """A loss that depends on the position in the whole ask."""
    return answer.logits[:, 0] * PULLS[rows]


def gradients_in_parts(batch_size: int, part_loss: PartLoss = pulled) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    target = Counting(CASE.module(), num_classes=3, batch_size=batch_size)
    ledger = Meter(target, CASE.ids, 100)
    answer, slope = ledger.gradient(POINTS, ROWS, part_loss, repeats=3)
    assert ledger.queries.tolist() == ledger.gradients.tolist() == [3, 1, 1, 2]
    assert ledger.spent == 3
    assert [name for ids, *_ in target.log for name in ids.tolist()] == CASE.ids[ROWS].tolist()
    return target.sizes, answer.scores, slope


def parts_give_the_whole(part_loss: PartLoss) -> None:
    expected = PULLS.view(-1, 1, 1, 1) * CASE.weight[0]
    for batch_size, sizes in ((256, [7]), (7, [7]), (6, [6, 1]), (3, [3, 3, 1]), (1, [1] * 7)):
        seen, scores, slope = gradients_in_parts(batch_size, part_loss)
        assert seen == sizes
        torch.testing.assert_close(slope, expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(scores, gradients_in_parts(256)[1])


def test_gradients_come_in_parts_of_the_batch_size() -> None:
    parts_give_the_whole(pulled)


def test_a_loss_that_ignores_which_part_it_judges_is_noticed() -> None:
    with pytest.raises(AssertionError):
        parts_give_the_whole(lambda answer, rows: answer.logits[:, 0] * PULLS[: len(answer.scores)])


def test_no_points_cost_nothing() -> None:
    ledger, target = meter(5)
    answer, slope = ledger.gradient(POINTS[:0], ROWS[:0], loss)
    assert answer.scores.shape == (0, 3)
    assert slope.shape == (0, 1, 4, 4)
    assert ledger.queries.tolist() == ledger.gradients.tolist() == [0] * 4
    assert target.counted(CASE.ids, gradients=False) == [0] * 4
