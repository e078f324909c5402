"""A surrogate in LearnedSquares: its regression solved at once, what it is worth, and that a poor one is found out."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

import poise
import toys
from poise.constraints import L2, Linf
from poise.constraints.base import Constraint
from poise.errors import InputError
from poise.objectives import KeepLabel, MinConfidence
from poise.searches import LearnedSquares
from poise.searches.transfers import BELIEVED, DOUBT, LEARNED, NOISE, Transfer, transfer
from poise.targets import ModuleTarget
from poise.types import Access

GOAL = KeepLabel(MinConfidence())


def twisted(case: toys.Case, scale: float = 0.3, noise: float = 0.0) -> ModuleTarget:
    """A surrogate: the victim's logits mixed, scaled, and with slopes that are partly its own."""
    module = copy.deepcopy(case.module())
    generator = toys.generator(5)
    with torch.no_grad():
        for weight in (part for part in module.parameters() if part.ndim == 2):
            own = torch.randn(weight.shape, generator=generator, dtype=weight.dtype) * weight.std()
            weight.copy_((weight + noise * own) / scale)
    return ModuleTarget(module, num_classes=case.target().num_classes)


def moves(case: toys.Case, count: int) -> list[Tensor]:
    generator = toys.generator(2)
    shape = case.images.shape
    return [case.images + 0.1 * torch.randn(shape, generator=generator).to(case.images) for _ in range(count)]


def learned(known: Transfer, case: toys.Case, points: list[Tensor]) -> list[np.ndarray]:
    """The surrogate's centred movements, after learning the victim's at every point."""
    ids, everyone = torch.arange(len(case.images)), torch.ones(len(case.images), dtype=torch.bool)
    clean, first = case.target().query(case.images, ids).logits, known.told
    seen = []
    for point in points:
        rise = case.target().query(point, ids).logits - clean
        known.learn(point, ids, rise, everyone, ~everyone)
        change = known.surrogate.query(point, ids).logits - first
        seen.append((change - change.mean(dim=1, keepdim=True)).numpy())
    return seen


def is_the_regression(noise: float) -> None:
    """BELIEVED + shares against one solve of Bayesian linear regression, for every sample."""
    case = toys.linear_case(3, classes=4, scale=5.0)
    known = transfer(twisted(case, noise=0.5), case.images, torch.arange(3))
    points = moves(case, 7)
    seen = learned(known, case, points)
    clean = case.target().query(case.images, torch.arange(3)).logits
    rises = [(case.target().query(point, torch.arange(3)).logits - clean).numpy() for point in points]
    for row in range(3):
        x = np.stack([one[row] for one in seen]).astype(np.float64)
        y = np.stack([one[row] - one[row].mean() for one in rises]) - BELIEVED * x
        weights = 1 / (noise * np.square(x).mean(axis=1))
        precision = np.eye(4) / DOUBT + (x * weights[:, None]).T @ x
        expected = np.linalg.solve(precision, (x * weights[:, None]).T @ y).T
        shares = torch.zeros(4, 4, dtype=known.shares.dtype).scatter(
            1, known.columns[row].expand(4, -1), known.shares[row]
        )
        np.testing.assert_allclose(shares.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_what_is_learned_is_the_regression_solved_at_once() -> None:
    is_the_regression(NOISE)


def test_another_noise_is_noticed() -> None:
    with pytest.raises(AssertionError):
        is_the_regression(3 * NOISE)


def test_after_a_few_queries_it_tells_how_far_the_victim_follows() -> None:
    case = toys.linear_case(3, classes=4, scale=5.0)
    known, ids = transfer(twisted(case, scale=0.2), case.images, torch.arange(3)), torch.arange(3)
    *points, last = moves(case, 9)
    rise = case.target().query(last, ids).logits - case.target().query(case.images, ids).logits
    rise = rise - rise.mean(dim=1, keepdim=True)
    wrong = [(known.rise(known.surrogate.query(last, ids).logits) - rise).norm() / rise.norm()]
    learned(known, case, points)
    wrong.append((known.rise(known.surrogate.query(last, ids).logits) - rise).norm() / rise.norm())
    assert wrong[0] > 1.4  # believed .5, true .2: 2.5 times too far
    assert wrong[1] < 0.2


def test_rows_without_an_answer_teach_nothing_and_stay_where_they_were() -> None:
    case = toys.linear_case(3, classes=4, scale=5.0)
    known, ids = transfer(twisted(case), case.images, torch.arange(3)), torch.arange(3)
    told = known.told.clone()
    (point,) = moves(case, 1)
    rise = case.target().query(point, ids).logits - case.target().query(case.images, ids).logits
    left = known.learn(point, ids, rise, torch.tensor([True, False, True]), torch.tensor([True, False, False]))
    assert bool(left[1].isnan().all())
    assert bool(left[[0, 2]].isfinite().all())
    assert not bool(known.shares[1].any())
    assert bool(known.shares[0].any())
    assert (known.told != told).any(dim=1).tolist() == [True, False, False]


def test_of_many_classes_the_highest_are_learned() -> None:
    case = toys.linear_case(2, classes=LEARNED + 36, scale=5.0)
    known = transfer(twisted(case), case.images, torch.arange(2))
    assert known.shares.shape == (2, LEARNED + 36, LEARNED)
    lowest = known.told.gather(1, known.columns).min(dim=1).values
    assert int((known.told[0] > lowest[0]).sum()) == LEARNED - 1


# --- in an attack ---


def left(case: toys.Case, search: LearnedSquares, budget: int, ball: Constraint | None = None) -> float:
    """Mean confidence above 1/K that the attack leaves."""
    table = poise.attack(
        case.target(), GOAL, search, ball or Linf(0.2), case.images, case.labels, case.ids, budget
    ).table
    assert (table["prediction_after"] == table["prediction_before"]).all()
    assert table["queries"].max() <= budget
    return float(table["loss_after"].mean())


def jagged() -> toys.Case:
    """More pixels than tiles could learn in ten queries."""
    return toys.linear_case(16, shape=(3, 8, 8), classes=10, scale=6.0, seed=1)


@pytest.mark.parametrize("ball", [Linf(0.05), L2(0.5)])
def test_it_saves_most_of_the_queries(ball: Constraint) -> None:
    case = jagged()
    helped = LearnedSquares(surrogate=twisted(case, noise=0.5))
    assert left(case, helped, 10, ball) < left(case, LearnedSquares(), 100, ball)


def test_a_surrogate_that_tells_nothing_is_found_out() -> None:
    """Weights of its own alone: the squares take over, and little is lost."""
    case = jagged()
    poor = LearnedSquares(surrogate=twisted(case, noise=1e3, scale=1e3))
    begun, ended = (left(case, poor, budget, Linf(0.05)) for budget in (8, 200))
    assert ended < 0.8 * begun
    assert ended < left(case, LearnedSquares(), 100, Linf(0.05))


def test_the_surrogate_costs_no_query_and_each_sample_is_searched_by_itself() -> None:
    case = jagged()
    search = LearnedSquares(surrogate=twisted(case, noise=0.5))
    whole = poise.attack(case.target(), GOAL, search, Linf(0.05), case.images, case.labels, case.ids, 20)
    rows = torch.tensor([7, 2, 15])
    part = poise.attack(
        case.target(batch_size=2), GOAL, search, Linf(0.05), case.images[rows], case.labels[rows], case.ids[rows], 20
    )
    torch.testing.assert_close(part.images, whole.images[rows], rtol=0, atol=1e-6)
    assert whole.table["queries"].max() == 20
    assert whole.table["gradients"].max() == 0


def test_a_confidence_that_is_to_rise_rises_faster() -> None:
    case = jagged()
    goal = poise.recipes()["standard-over"].objective
    given = Linf(0.05), case.images, case.labels, case.ids, 12
    alone, helped = (
        poise.attack(case.target(), goal, search, *given).table["confidence_after"].mean()
        for search in (LearnedSquares(), LearnedSquares(surrogate=twisted(case, noise=0.5)))
    )
    assert helped > alone


def test_without_score_vectors_it_is_not_asked() -> None:
    """A wrapper that hands no answers on leaves the squares alone."""
    case = jagged()
    aimed = poise.searches.Aimed(LearnedSquares(surrogate=twisted(case)), 0.0)
    table = poise.attack(case.target(), GOAL, aimed, Linf(0.05), case.images, case.labels, case.ids, 20).table
    assert (table["loss_after"] <= table["loss_before"]).all()


# --- what cannot be one ---


def test_what_cannot_stand_in_for_the_victim() -> None:
    case, other = jagged(), toys.linear_case(4, shape=(3, 8, 8), classes=3)
    scores = ModuleTarget(case.module(), num_classes=10, access=Access.SCORES)
    shifted = ModuleTarget(case.module(), num_classes=10, bounds=(-1.0, 1.0))
    cases = (
        (other.target(), "must know the 10 classes of the model, got 3"),
        (scores, "must be a target with gradients, got ModuleTarget without"),
        (shifted, r"bounds must be the model's, \(0.0, 1.0\), got \(-1.0, 1.0\)"),
    )
    for surrogate, message in cases:
        with pytest.raises(InputError, match=f"surrogate: {message}"):
            left(case, LearnedSquares(surrogate=surrogate), 10)


def test_a_recipe_without_use_for_it_says_which_have() -> None:
    case = jagged()
    given = case.target(), case.images, case.labels
    with pytest.raises(InputError, match=r"surrogate: needs a recipe that can use one \(learned-squares, standard-li"):
        poise.run_recipe("sa-mma", *given, eps=0.1, surrogate=twisted(case))
    for name in ("learned-squares", "standard-light"):
        alone, helped = (
            poise.run_recipe(name, *given, eps=0.05, budget=10, surrogate=one).table["loss_after"].mean()
            for one in (None, twisted(case))
        )
        assert helped < alone
