"""Noise and Negative: what they ask, what they cost, what is left of it in a ball."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from scipy import stats

import poise
from poise.checks.searches import check_search
from poise.constraints import L2, Anywhere, Box, Constraint, Linf
from poise.errors import InputError
from poise.objectives import CrossEntropy, Margin, Unconditional
from poise.searches import Ask, Negative, Noise, Problem, Reply, Search
from poise.searches.base import Steps
from poise.types import Access
from toys import Case, RecordingTarget, Rescaled, by_hand, drive, linear_case
from toys import problem as make_problem


@pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.4), Anywhere()], ids=repr)
@pytest.mark.parametrize("search", [Noise(), Noise(points=5), Negative()], ids=repr)
def test_contract(search: Search, constraint: Constraint) -> None:
    check_search(search, constraint=constraint)
    assert search.access is Access.LABELS


# --- noise ---


def asked_of(
    case: Case, search: Search, constraint: Constraint, budget: int
) -> tuple[poise.AttackResult, torch.Tensor]:
    """The result, and the points that were asked for after the clean ones: (points, n, C, H, W)."""
    target = case.target()
    arguments = case.images, case.labels, case.ids, budget
    result = poise.attack(target, Margin(stop=False), search, constraint, *arguments)
    return result, torch.stack([x for _, x, *_ in target.log[1:]])


@pytest.mark.parametrize(
    ("points", "budget", "expected", "stop"),
    [
        (None, 20, 20, "budget"),
        (7, 100, 8, "finished"),
        (7, 5, 5, "budget"),
        (1, 2, 2, "budget"),
        (None, 1, 1, "budget"),
    ],
)
def test_noise_costs_one_query_per_point(points: int | None, budget: int, expected: int, stop: str) -> None:
    case = linear_case(3)
    table = drive_table(case, Noise(points=points), budget)
    assert table["queries"].to_list() == [expected] * 3
    assert table["gradients"].to_list() == [0] * 3
    assert table["stop"].to_list() == [stop] * 3


def drive_table(case: Case, search: Search, budget: int) -> pl.DataFrame:
    return poise.attack(
        case.target(), Margin(stop=False), search, Linf(0.1), case.images, case.labels, case.ids, budget
    ).table


def points_are_uniform_and_independent(search: Search) -> None:
    """In the middle of the box: every coordinate uniform in the ball, no two points, steps or samples alike."""
    case = linear_case(3)
    middle = Case(torch.full_like(case.images, 0.5), case.labels, case.ids, case.weight, case.bias)
    _, points = asked_of(middle, search, Linf(0.2), budget=200)
    share = ((points - 0.5) / 0.4 + 0.5).numpy()
    assert stats.kstest(share.ravel(), "uniform").pvalue > 1e-3
    flat = share.reshape(len(share), 3, -1)
    for first, second in ((flat[1:, 0], flat[:-1, 0]), (flat[:, 0], flat[:, 1]), (flat[..., 1:], flat[..., :-1])):
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05
    assert len({point.numpy().tobytes() for step in points for point in step}) == 3 * len(points)


def test_noise_is_uniform_and_independent() -> None:
    points_are_uniform_and_independent(Noise())


class Walk(Noise):
    """Broken twin: one direction, ever longer."""

    def run(self, problem: Problem) -> Steps:
        yield Ask(problem.clean, problem.everyone)
        first = problem.constraint.sample(problem.clean, problem.box, problem.everyone, problem.rng, 0)
        for step in range(problem.budget - 1):
            share = (step + 1) / problem.budget
            yield Ask(problem.clean + share * (first - problem.clean), problem.everyone)


def test_points_that_depend_on_each_other_are_noticed() -> None:
    with pytest.raises(AssertionError):
        points_are_uniform_and_independent(Walk())


def test_the_best_point_is_kept() -> None:
    case = linear_case(5)
    result, points = asked_of(case, Noise(), Linf(0.2), budget=30)
    margins = []
    for x in points:
        z = case.module()(x).detach()
        own = z.gather(1, case.labels[:, None])[:, 0]
        margins.append(own - z.scatter(1, case.labels[:, None], -torch.inf).amax(dim=1))
    best = torch.stack(margins).argmin(dim=0)
    assert len(set(best.tolist())) > 1
    for row in range(5):
        if result.table["improved_at"][row] > 1:
            assert torch.equal(result.images[row], points[best[row], row])
    assert (result.table["improved_at"] > 1).any()


def test_points_of_a_shorter_run_are_the_first_of_a_longer_one() -> None:
    case = linear_case(2)
    _, few = asked_of(case, Noise(points=5), Linf(0.2), budget=30)
    _, many = asked_of(case, Noise(), Linf(0.2), budget=30)
    assert torch.equal(many[:5], few)


@pytest.mark.parametrize("points", [0, -3])
def test_refusals(points: int) -> None:
    with pytest.raises(InputError, match=f"Noise: points must be at least 1, got {points}"):
        Noise(points=points)


# --- negatives ---


def negative_of(images: torch.Tensor, bounds: tuple[float, float]) -> poise.AttackResult:
    low, high = bounds
    case = linear_case(len(images), shape=tuple(images.shape[1:]), dtype=torch.float64)
    module = Rescaled(case.module(), 1 / (high - low), -low / (high - low))
    target = poise.ModuleTarget(module, num_classes=3, bounds=bounds)
    labels = torch.zeros(len(images), dtype=torch.long)
    return poise.attack(target, Unconditional(), Negative(), Anywhere(), images, labels)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_negatives_are_reflections_and_reflect_back(bounds: tuple[float, float]) -> None:
    """Spec 24: 1 - x on [0, 1], -x where zero is the middle, 255 - x; an involution; the mean goes to high - mean."""
    low, high = bounds
    images = low + (high - low) * linear_case(4).images
    once = negative_of(images, bounds)
    torch.testing.assert_close(once.images, low + high - images, rtol=0, atol=1e-13 * high)
    torch.testing.assert_close(negative_of(once.images, bounds).images, images, rtol=0, atol=1e-12 * high)
    assert once.images.mean().item() == pytest.approx(low + high - images.mean().item())
    assert once.table["queries"].to_list() == [2] * 4
    assert once.table["gradients"].to_list() == [0] * 4
    assert once.table["stop"].to_list() == ["finished"] * 4
    assert once.table["linf"].to_list() == pytest.approx((low + high - 2 * images).flatten(1).abs().amax(1).tolist())


def test_middle_grey_is_its_own_negative() -> None:
    images = torch.full((2, 1, 4, 4), 0.5, dtype=torch.float64)
    result = negative_of(images, (0.0, 1.0))
    assert torch.equal(result.images, images)
    assert result.table["loss_after"].to_list() == [1.0, 1.0]


def test_a_goal_decides_and_a_ball_holds_it_back() -> None:
    """With a goal of its own the negative is kept only where it helps; in a ball it is the nearest legal point."""
    case = linear_case(12)
    run = drive(case, CrossEntropy(), Negative(), Anywhere())
    moved = (run.best.x != case.images).flatten(1).any(dim=1)
    assert 0 < int(moved.sum()) < 12
    assert torch.equal(run.best.merit < run.clean_merit, moved)
    near = drive(case, Unconditional(), Negative(), Linf(0.1))
    expected = (1 - case.images).clamp(case.images - 0.1, case.images + 0.1)
    assert torch.equal(near.best.x, expected)


def test_finished_samples_are_not_reflected() -> None:
    case = linear_case(5)
    asked = []

    def answer(ask: Ask, number: int) -> Reply:
        asked.append(ask.ids.tolist())
        loss = torch.zeros(len(ask.ids)).double()
        return Reply(loss, loss == 0, torch.tensor([True, False, True, False, False]))

    told = by_hand(Negative().run(make_problem(case.images, Anywhere(), box=Box(-2.0, 1.0))), answer)
    assert asked == [[0, 1, 2, 3, 4], [0, 2]]
    torch.testing.assert_close(told.asks[1].x, -1 - case.images[[0, 2]])
    nobody = by_hand(
        Negative().run(make_problem(case.images)),
        lambda ask, number: _nobody(ask),
    )
    assert len(nobody.asks) == 1


def _nobody(ask: Ask) -> Reply:
    loss = torch.zeros(len(ask.ids)).double()
    return Reply(loss, loss == 0, torch.zeros(len(ask.ids)).bool())


def test_the_recipe_needs_labels_alone_and_no_radius() -> None:
    recipe = poise.recipes()["negative"]
    assert recipe.access is Access.LABELS
    assert recipe.constraint == Anywhere()
    case = linear_case(3)
    target = RecordingTarget(case.module(), num_classes=3, access=Access.SCORES)
    for norm in ("linf", "l2"):
        result = poise.run_recipe("negative", target, case.images, case.labels, eps=0.01, norm=norm)
        assert torch.equal(result.images, 1 - case.images)
        assert result.table["accepted"].all()
