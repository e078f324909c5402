"""The same result, however the data are cut into batches and calls; another one for another seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import poise
import toys
from poise.objectives import OCA, KeepLabel, Margin
from poise.recipebook import ball
from poise.rng import Rng
from poise.searches import Ask, Problem, Square
from poise.searches.base import Steps
from poise.types import Access, AttackResult, Outputs
from recipe_cases import KEYED, RECIPES, SHAPES, Setup, every_recipe, with_recipe


def assert_same(first: AttackResult, second: AttackResult, order: Tensor) -> None:
    """`second` was run on the data in `order`; bit for bit the same images, scores and table rows."""
    assert torch.equal(first.images[order], second.images)
    assert torch.equal(first.scores[order], second.scores)
    expected = first.table.select(KEYED)[order.tolist()]
    assert expected.equals(second.table.select(KEYED))


def cut_differently(attack_: Callable[[toys.Case, int], AttackResult], setup: Setup) -> None:
    """Whole, again, permuted in batches of 2, and split into calls of one: always the same."""
    case = setup.case()
    whole = attack_(case, 256)
    everyone = torch.arange(setup.n)
    assert_same(whole, attack_(case, 256), everyone)
    order = torch.randperm(setup.n, generator=toys.generator(1))
    moved = dataclasses.replace(case, images=case.images[order], labels=case.labels[order], ids=case.ids[order])
    assert_same(whole, attack_(moved, 2), order)
    last = slice(setup.n - 1, None)
    alone = dataclasses.replace(case, images=case.images[last], labels=case.labels[last], ids=case.ids[last])
    assert_same(whole, attack_(alone, 1), everyone[last])


CUTS = st.builds(
    Setup,
    shape=st.sampled_from(SHAPES),
    classes=st.sampled_from([2, 10]),
    n=st.just(5),
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.just(0.15),
    budget=st.sampled_from([6, 18, 30]),
    seed=st.integers(0, 2**31),
    steps=st.sampled_from([None, 2]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)


@every_recipe
@settings(max_examples=4)
@given(setup=CUTS)
def test_permuting_splitting_and_batching_change_nothing(name: str, setup: Setup) -> None:
    """A recipe whose samples inform each other promises less: the same again, for equal cuts."""
    attack_ = with_recipe(name, setup)
    if not RECIPES[name].shares:
        cut_differently(attack_, setup)
        return
    for batch_size in (256, 3):
        assert_same(*(attack_(setup.case(), batch_size) for _ in range(2)), torch.arange(setup.n))


@dataclass(frozen=True)
class OneDrawPerBatch:
    """Random search whose draws go by the row in the batch, as in the released codes."""

    access: ClassVar[Access] = Access.LABELS

    def run(self, problem: Problem) -> Steps:
        rng = Rng(problem.rng.seed, problem.everyone)
        yield Ask(problem.clean, problem.everyone)
        for step in range(problem.budget - 1):
            yield Ask(
                problem.constraint.sample(problem.clean, problem.box, problem.everyone, rng, step), problem.everyone
            )


class CentredTarget(toys.RecordingTarget):
    """Subtracts the batch's mean score, as batch norm in train mode does."""

    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        answer = super().query(x, ids)
        return Outputs(answer.scores - answer.scores.mean(dim=0) * 0.5, answer.kind)


def test_draws_per_batch_are_noticed() -> None:
    def attack_(case: toys.Case, batch_size: int) -> AttackResult:
        target, linf = case.target(batch_size=batch_size), ball("linf", 0.15)
        search = OneDrawPerBatch()
        return poise.attack(target, Margin(stop=False), search, linf, case.images, case.labels, case.ids, budget=6)

    with pytest.raises(AssertionError):
        cut_differently(attack_, Setup(n=5))


def test_a_target_that_mixes_rows_is_noticed() -> None:
    def attack_(case: toys.Case, batch_size: int) -> AttackResult:
        target = CentredTarget(case.module(), num_classes=3, batch_size=batch_size)
        search, linf = Square(), ball("linf", 0.15)
        return poise.attack(target, KeepLabel(OCA()), search, linf, case.images, case.labels, case.ids, budget=6)

    with pytest.raises(AssertionError):
        cut_differently(attack_, Setup(n=5))


LABELS_ALONE = {name for name, found in RECIPES.items() if found.access == Access.LABELS} - {"negative"}
"""Recipes that walk from far away: within a few queries they find nothing."""

DETERMINISTIC = {
    "standard", "standard-under", "standard-over", "adaptive", "confsmooth", "apgd-mma", "ace", "newtonfool", "fgsm",
    "bim", "momentum", "fab", "negative", "signhunter",
}  # fmt: skip
"""Recipes that draw nothing as long as their gradients last; the others do at once."""

GRATINGS_FIRST = {"standard-light-under"}
"""Recipes that draw nothing before gratings have had their turn with every sample."""


@every_recipe
def test_another_seed_gives_other_points_where_points_are_drawn(name: str) -> None:
    few = 24 if name in GRATINGS_FIRST else 4
    setup = Setup(n=4, budget=80, eps=0.3) if name in LABELS_ALONE else Setup(n=4, budget=few, eps=0.05)
    case = setup.case()
    first, second = (with_recipe(name, dataclasses.replace(setup, seed=seed))(case, 256).images for seed in (1, 2))
    assert torch.equal(first, second) == (name in DETERMINISTIC)


@pytest.mark.parametrize("name", ["standard", "standard-under"])
def test_the_black_box_member_of_the_standard_attack_draws(name: str) -> None:
    """Goals out of reach leave samples for the member that draws its points."""
    setup = Setup(n=4, budget=60, eps=0.05, steps=2, classes=10)
    case = setup.case()
    first, second = (with_recipe(name, dataclasses.replace(setup, seed=seed))(case, 256) for seed in (1, 2))
    assert not torch.equal(first.images, second.images)
    assert set(first.table["queries"]) == {60}
