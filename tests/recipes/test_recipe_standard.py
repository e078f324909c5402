"""The standard attack and attack bundling: budgets, floors, targets without gradients, never below a member."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

import poise
import toys
from poise.objectives import MinConfidence
from poise.recipebook import Setting, ball
from poise.recipebook.standard import RESTARTS, STEPS, UNFINISHED
from poise.rng import Rng
from poise.searches import Cascade, ConfidencePGD, Noise, Problem, Search, Stage
from poise.searches.base import Steps
from poise.types import AttackResult
from recipe_cases import RECIPES

STANDARD = [name for name in RECIPES if name.startswith("standard")]
WHITE = [name for name in STANDARD if "light" not in name]


def run(
    name: str, case: toys.Case, eps: float, target: poise.ModuleTarget | None = None, **settings: object
) -> AttackResult:
    target = target or case.target()
    return poise.run_recipe(name, target, case.images, case.labels, eps=eps, ids=case.ids, **settings)


def run_search(name: str, search: Search, case: toys.Case, eps: float, budget: int, **parts: object) -> AttackResult:
    """The recipe's goal with another search, on the same samples."""
    goal, target = RECIPES[name].objective, parts.pop("target", None) or case.target()
    return poise.attack(target, goal, search, ball("linf", eps), case.images, case.labels, case.ids, budget)


# --- what it costs ---


@pytest.mark.parametrize("name", WHITE)
@pytest.mark.parametrize("steps", [1, 7, 49, 50, 83, 100])
def test_with_steps_and_one_query_every_query_but_the_last_few_has_a_gradient(name: str, steps: int) -> None:
    """A budget of steps + 1 pays for exactly `steps` gradients; a larger one for no more."""
    case = toys.linear_case(4, classes=10, scale=20.0)
    for budget in (steps + 1, steps + 60):
        table = run(name, case, 1e-4, steps=steps, budget=budget).table
        assert table["gradients"].to_list() == [steps] * 4
        assert table["queries"].to_list() == [budget] * 4


@pytest.mark.parametrize("name", WHITE)
def test_without_steps_what_is_unfinished_is_attacked_again(name: str) -> None:
    case = toys.linear_case(4, classes=10, scale=20.0)
    first = run(name, case, 1e-4, budget=STEPS + 1).table
    assert first["gradients"].to_list() == [STEPS] * 4
    whole = run(name, case, 1e-4, budget=1000).table
    assert (whole["gradients"] >= STEPS + RESTARTS * STEPS // 2).all()
    assert whole["queries"].to_list() == [1000] * 4
    assert (whole["loss_after"] <= first["loss_after"]).all()


@cache
def on_digits(name: str) -> pl.DataFrame:
    data = poise.data.load("builtin:digits", samples=60)
    target = poise.models.load("builtin:digits")
    return poise.run_recipe(name, target, data.images, data.labels, eps=0.08, budget=1000).table


@pytest.mark.parametrize("other", ["apgd-mma", "newtonfool", "adaptive", "ace"])
def test_no_white_box_recipe_ends_lower_on_any_sample(other: str) -> None:
    """Each of them is a member, along its own loss; without its member the test fails (seen for all four)."""
    ours, theirs = on_digits("standard"), on_digits(other)
    right = ours["prediction_before"] == ours["label"]
    gap = (ours["confidence_after"] - theirs["confidence_after"]).filter(right).to_numpy()
    assert gap.max() <= UNFINISHED
    assert gap.mean() < -0.02


@pytest.mark.parametrize("name", [name for name in STANDARD if name not in WHITE])
def test_the_light_attack_asks_for_no_gradient(name: str) -> None:
    table = run(name, toys.linear_case(3, classes=10, scale=20.0), 1e-4, budget=60).table
    assert table["gradients"].to_list() == [0] * 3
    assert table["queries"].to_list() == [60] * 3


def test_the_black_box_member_joins_in_only_where_it_is_needed() -> None:
    """Below the level after the gradients: exactly what they cost. Above it: the whole budget."""
    case = toys.linear_case(30, classes=3, scale=6.0)
    table = run("standard-under", case, 0.07, budget=200).table
    walked = run("standard-under", case, 0.07, budget=STEPS + 2).table
    near = (walked["loss_after"] <= UNFINISHED) & (walked["stop"] != "success")
    far = walked["loss_after"] > UNFINISHED
    assert 0 < far.sum() < 30
    assert (table["queries"].filter(far & (table["stop"] != "success")) > STEPS + 2).all()
    assert (table["queries"].filter(near) == STEPS + 2).all()


# --- where it gets ---


@pytest.mark.parametrize("classes", [2, 100])
@pytest.mark.parametrize("name", ["standard", "standard-under", "standard-light-under"])
def test_two_and_a_hundred_classes(name: str, classes: int) -> None:
    case = toys.linear_case(6, classes=classes, scale=6.0)
    result = run(name, case, 0.3, budget=300)
    table = result.table
    assert (table["loss_after"] < table["loss_before"]).all()
    assert (table["prediction_after"] == table["prediction_before"]).all()
    under = table.filter(table["prediction_before"] == table["label"]) if name == "standard" else table
    floor, level = 1 / classes, {2: 0.52, 100: 0.1}[classes]
    assert (under["confidence_after"] >= floor).all()
    assert (under["confidence_after"] < level).all()


def closed_form(case: toys.Case, eps: float, side: int) -> np.ndarray:
    """The confidence of K = 2 at the end of the ball, down to a tie at 1/2 or up: sigmoid(|m| -+ eps * ||w||_1)."""
    length = (case.weight[1] - case.weight[0]).abs().sum().item()
    z = case.module()(case.images).detach().numpy()
    return 1 / (1 + np.exp(-np.maximum(np.abs(z[:, 1] - z[:, 0]) + side * eps * length, 0)))


@pytest.mark.parametrize("name", ["standard-under", "standard-light-under"])
@pytest.mark.parametrize("share", [0.5, 0.9, 1.5])
def test_underconfidence_equals_the_closed_form(name: str, share: float) -> None:
    case = toys.binary_case(4, margin=3.0, shape=(1, 12, 12) if name in WHITE else (1, 4, 4))
    eps = share * 3.0 / float((case.weight[1] - case.weight[0]).abs().sum())
    after = run(name, case, eps, budget=500).table["confidence_after"].to_numpy()
    near = 6e-4 if name in WHITE or share < 1 else 0.06  # squares at the ball's surface do not land softly inside it
    np.testing.assert_allclose(after, closed_form(case, eps, -1), rtol=0, atol=near)
    assert (after >= closed_form(case, eps, -1) - 1e-9).all()


def reachable_goals_are_reached(name: str, allowed: int = 0) -> None:
    """p_k covers [floor, ceiling] of the ball; the goals in it are met within .005, the others as nearly as can be."""
    case = toys.binary_case(60, margin=1.5)
    eps = 1.0 / float((case.weight[1] - case.weight[0]).abs().sum())
    table = run(name, case, eps, budget=400).table
    low, high = closed_form(case, eps, -1), closed_form(case, eps, 1)
    goal = 0.5 + 0.5 * Rng(0, case.ids).uniform("rca-goal", 0, torch.arange(60)).double().numpy()
    assert 20 < ((goal > low) & (goal < high)).sum() < 50
    nearest = np.clip(goal, low, high)
    distance = np.abs(table["confidence_after"].to_numpy() - goal)
    reachable = (goal > low) & (goal < high)
    missed = distance > np.abs(nearest - goal) + 0.005
    assert missed.sum() <= allowed
    assert (table["stop"].to_numpy()[reachable & ~missed] == "success").all()
    assert np.allclose(distance, table["loss_after"].to_numpy(), atol=1e-12)


@pytest.mark.parametrize("name", ["standard-random", "standard-light-random"])
def test_random_goals_within_reach_are_met(name: str) -> None:
    """By random search nearly always: 16 pixels leave it few confidences to choose from."""
    reachable_goals_are_reached(name, allowed=0 if name in WHITE else 3)


@pytest.mark.parametrize("twin", ["sa-rca", "pgd-rca", "standard-under"])
def test_goals_that_are_crossed_or_missed_are_noticed(twin: str) -> None:
    """RCA stops where the goal is crossed, however far beyond."""
    with pytest.raises(AssertionError):
        reachable_goals_are_reached(twin, allowed=3)


def stops_at(name: str, tol: float) -> None:
    """Success exactly where 1 - p_k is below tol, and everywhere where the ball holds such a point."""
    case = toys.binary_case(12, margin=3.0)
    length = float((case.weight[1] - case.weight[0]).abs().sum())
    for rise, reachable in ((math.log(1 / tol - 1) - 3.0 + 0.3, True), (math.log(1 / tol - 1) - 3.0 - 0.3, False)):
        table = run(name, case, rise / length, budget=400).table
        assert (table["stop"] == "success").to_list() == [reachable] * 12
        assert (table["loss_after"] < tol).to_list() == [reachable] * 12


@pytest.mark.parametrize("name", ["standard-over", "standard-light-over"])
def test_overconfidence_ends_a_thousandth_from_certainty(name: str) -> None:
    stops_at(name, 1e-3)
    stops_at("sa-oca", 1e-2)
    for twin in ("sa-oca", "pgd-oca"):
        with pytest.raises(AssertionError):
            stops_at(twin, 1e-3)


# --- gradients that mislead ---


def rounded(case: toys.Case) -> poise.ModuleTarget:
    """Grey levels: the gradient is zero everywhere."""
    steps = nn.Sequential(toys.Fixed(lambda x: (x * 16).round() / 16), case.module())
    return poise.ModuleTarget(steps, num_classes=len(case.weight))


def moves_without_gradients(search: Search) -> None:
    case = toys.linear_case(6, classes=3, scale=6.0)
    table = run_search("standard-under", search, case, 0.2, 300, target=rounded(case)).table
    assert (table["gradients"] > 0).all()
    assert table["zero_gradients"].to_list() == table["gradients"].to_list()
    assert (table["loss_after"] < table["loss_before"] - 0.05).all()
    assert (table["improved_at"] > STEPS).all()


def test_a_target_without_gradients_is_moved_by_the_black_box_member() -> None:
    whole = RECIPES["standard-under"].search(Setting(ball("linf", 0.2), budget=300))
    moves_without_gradients(whole)
    white = Cascade(tuple(stage for stage in whole.stages if isinstance(stage, ConfidencePGD)))
    with pytest.raises(AssertionError):
        moves_without_gradients(white)


# --- never below a member ---


def is_never_below_its_members(name: str, strongest: Search, members: list[Search], budget: int) -> None:
    case = toys.linear_case(12, classes=4, scale=5.0)
    best = run_search(name, strongest, case, 0.08, budget).table["loss_after"]
    for member in members:
        assert (best <= run_search(name, member, case, 0.08, budget).table["loss_after"]).all()


@pytest.mark.parametrize("name", STANDARD)
def test_the_standard_attack_is_never_below_its_members(name: str) -> None:
    """Per sample and exactly: its beginnings, and what it begins with run alone."""
    search = RECIPES[name].search(Setting(ball("linf", 0.08), budget=300))
    parts = [Cascade(search.stages[:count]) for count in range(1, len(search.stages))]
    alone = [ConfidencePGD(steps=search.stages[0].steps)] if name in WHITE else []
    is_never_below_its_members(name, search, parts + alone, 300)


def test_a_member_that_is_missing_is_noticed() -> None:
    search = RECIPES["standard-under"].search(Setting(ball("linf", 0.08), budget=300))
    with pytest.raises(AssertionError):
        is_never_below_its_members("standard-under", Noise(points=20), [search.stages[0]], 300)


def cnn_case() -> tuple[poise.ModuleTarget, toys.Case]:
    """In float64: what a sample is told then hardly depends on the others in its batch."""
    target = poise.ModuleTarget(toys.SmallCNN().double(), num_classes=4)
    images = torch.rand(24, 1, 8, 8, generator=toys.generator(4), dtype=torch.float64)
    labels = target.query(images, torch.arange(24)).labels
    labels = torch.where(torch.arange(24) % 6 == 5, (labels + 1) % 4, labels)
    return target, toys.Case(images, labels, torch.arange(24), torch.zeros(4, 1, 8, 8), torch.zeros(4))


@pytest.mark.parametrize("eps", [0.02, 0.06])
def test_on_a_network_it_is_ahead_of_the_papers_attacks(eps: float) -> None:
    target, case = cnn_case()
    standard = run("standard-under", case, eps, target, budget=300).table["confidence_after"]
    assert standard.mean() < target.query(case.images, case.ids).confidence.mean() - 0.02
    for name in ("pgd-uca", "adaptive", "confsmooth", "sa-uca", "newtonfool"):
        assert standard.mean() < run(name, case, eps, target, budget=300).table["confidence_after"].mean()


# --- bundling ---


@dataclass(frozen=True)
class Branch:
    """A member of a cascade, run alone with the draws that it has there."""

    search: Search
    number: int

    @property
    def access(self) -> poise.types.Access:
        return self.search.access

    def run(self, problem: Problem) -> Steps:
        return self.search.run(dataclasses.replace(problem, rng=problem.rng.fork(self.number)))


THRESHOLDS = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]


def failures(table: pl.DataFrame) -> list[float]:
    """Share of samples that are wrong with more confidence than each threshold (spec 25)."""
    wrong = table["prediction_after"] != table["label"]
    return [float((wrong & (table["confidence_after"] > t)).mean()) for t in THRESHOLDS]


def fails_at_least_as_often_as_its_members(whole: Search, members: list[Search]) -> None:
    target, case = cnn_case()
    table = run_search("bundle", whole, case, 0.05, 500, target=target).table
    bundled = failures(table)
    assert 0 < bundled[-1] < bundled[0]
    for member in members:
        alone = run_search("bundle", member, case, 0.05, 500, target=target).table
        assert all(rate <= bound for rate, bound in zip(failures(alone), bundled, strict=True))
        unfinished = table["loss_after"] > -1.99
        assert ((table["loss_after"] <= alone["loss_after"] + 1e-9) | ~unfinished).all()
        assert (table["wrong_confidence"] >= alone["wrong_confidence"] - 1e-9).filter(unfinished).all()


def bundle() -> tuple[Cascade, list[Search]]:
    """The bundle with short runs, and its members with the draws that they have in it.

    Not its last one, random search from the best point so far: alone it would begin elsewhere.
    """
    whole = RECIPES["bundle"].search(Setting(ball("linf", 0.05), budget=500, steps=6))
    rounds = [stage for stage in whole.members for _ in range(stage.repeats)]
    assert rounds[-1].search.start == "best"
    return whole, [Branch(stage.search, number) for number, stage in enumerate(rounds[:-1])]


def test_a_bundle_fails_at_least_as_often_as_its_members_at_every_threshold() -> None:
    """Spec 23, P4."""
    fails_at_least_as_often_as_its_members(*bundle())


def test_a_bundle_without_its_strongest_member_is_noticed() -> None:
    whole, members = bundle()
    with pytest.raises(AssertionError):
        fails_at_least_as_often_as_its_members(Cascade(whole.stages[:1]), members)


@pytest.mark.parametrize("make", [lambda: MinConfidence(), lambda: Stage(Noise())])
def test_parts_of_recipes_are_values(make: Callable[[], object]) -> None:
    """Equal settings make equal recipes, so that a fingerprint of the spec means something."""
    assert make() == make()
    for name in RECIPES:
        setting = Setting(ball("linf", 0.1), budget=100, steps=5)
        assert RECIPES[name].search(setting) == RECIPES[name].search(setting)
