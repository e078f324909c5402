"""Runs of recipes on linear toys, and what every one of them promises; shared by tests/recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import polars as pl
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import poise
import toys
from poise.constraints import Box, Constraint
from poise.objectives import MaxConfidence, Objective
from poise.objectives.base import Bound
from poise.recipebook import ball
from poise.rng import Rng
from poise.searches import Ask, Reply, Search
from poise.searches.driver import Driver, Run
from poise.types import AttackResult, Outputs

RECIPES = poise.recipes()
every_recipe = pytest.mark.parametrize("name", RECIPES)
SHAPES = [(1, 4, 4), (3, 5, 4), (1, 3, 7), (3, 4, 6)]
KEYED = ["id", "label", "prediction_before", "prediction_after", "confidence_before", "confidence_after", "loss_before"]
KEYED += ["loss_after", "accepted", "queries", "queries_to_success", "gradients", "zero_gradients", "improved_at"]
KEYED += ["wrong_confidence", "linf", "l2", "stop"]


WITHOUT_RADIUS = {"negative"}
"""Recipes with a constraint of their own: the radius that is asked for means nothing to them."""


@dataclass(frozen=True)
class Setup:
    """How a recipe is run."""

    shape: tuple[int, int, int] = (1, 4, 4)
    classes: int = 3
    n: int = 3
    norm: str = "linf"
    eps: float = 0.1
    budget: int = 12
    seed: int = 0
    batch_size: int = 256
    dtype: torch.dtype = torch.float64
    scale: float = 3.0
    steps: int | None = None

    def case(self) -> toys.Case:
        return toys.linear_case(
            self.n, shape=self.shape, classes=self.classes, seed=self.seed, dtype=self.dtype, scale=self.scale
        )


setups = st.builds(
    Setup,
    shape=st.sampled_from(SHAPES),
    classes=st.sampled_from([2, 3, 10, 100]),
    n=st.integers(0, 4),
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.sampled_from([0.0, 0.02, 0.1, 0.4]),
    budget=st.sampled_from([1, 2, 3, 8, 20]),
    seed=st.integers(0, 2**31),
    batch_size=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    scale=st.sampled_from([0.01, 3.0, 100.0]),
    steps=st.sampled_from([None, 1, 3]),
)


@dataclass(frozen=True)
class Attacked:
    """One run of a recipe and all that is needed to judge it.

    `passes` are the rows that the module itself saw, `probes` the calls in the target's log that no result may be.
    """

    recipe: poise.Recipe
    setup: Setup
    case: toys.Case
    target: toys.RecordingTarget
    result: AttackResult
    passes: dict[str, int]
    probes: frozenset[int]

    @property
    def constraint(self) -> Constraint:
        """The recipe's own where it knows no radius, else the ball that was asked for."""
        return self.recipe.constraint or ball(self.setup.norm, self.setup.eps)


@contextmanager
def probes_of(target: toys.RecordingTarget) -> Iterator[set[int]]:
    """The calls in the target's log that the driver makes for probes, while it runs."""
    found: set[int] = set()
    evaluate = Driver._evaluate

    def noted(driver: Driver, ask: Ask, driven: Run) -> Reply:
        before = len(target.log)
        reply = evaluate(driver, ask, driven)
        if ask.probe:
            found.update(range(before, len(target.log)))
        return reply

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Driver, "_evaluate", noted)
        yield found


def run(name: str, setup: Setup) -> Attacked:
    case = setup.case()
    target = case.target(batch_size=setup.batch_size)
    with probes_of(target) as probes:
        result = poise.run_recipe(
            name,
            target,
            case.images,
            case.labels,
            eps=setup.eps,
            norm=setup.norm,
            steps=setup.steps,
            budget=setup.budget,
            seed=setup.seed,
            ids=case.ids,
        )
    return Attacked(RECIPES[name], setup, case, target, result, dict(target.module.passes), frozenset(probes))


def run_own(objective: Objective, search: Search, setup: Setup, target: toys.RecordingTarget | None = None) -> Attacked:
    """The same with parts of the test's own, as a nameless recipe."""
    case = setup.case()
    target = target or case.target(batch_size=setup.batch_size)
    constraint = ball(setup.norm, setup.eps)
    given_ = target, objective, search, constraint, case.images, case.labels, case.ids, setup.budget, setup.seed
    with probes_of(target) as probes:
        result = poise.attack(*given_)
    recipe = poise.Recipe("own", "of a test", "none", objective, lambda setting: search)
    return Attacked(recipe, setup, case, target, result, dict(target.module.passes), frozenset(probes))


def bound_to(attacked: Attacked) -> Bound:
    """The goal, bound anew from the clean scores, batch by batch as attack() does (the streams know ids, not rows)."""
    case = attacked.case
    clean = Outputs(attacked.target.module(case.images).detach())
    rng = Rng(attacked.setup.seed, case.ids)
    return attacked.recipe.objective.bind(clean, case.labels, torch.arange(len(case.ids)), rng)


def stays_inside(attacked: Attacked) -> None:
    images, clean, eps = attacked.result.images.double(), attacked.case.images.double(), attacked.setup.eps
    assert images.shape == clean.shape
    assert attacked.result.images.dtype == attacked.case.images.dtype
    assert attacked.result.images.device == attacked.case.images.device
    assert bool(((images >= 0) & (images <= 1)).all())
    change = (images - clean).flatten(1)
    if attacked.recipe.constraint is not None:
        assert attacked.recipe.name in WITHOUT_RADIUS
        return
    if attacked.setup.norm == "linf":
        assert bool((change.abs() <= eps + 1e-6).all())
    else:
        assert bool((change.square().sum(dim=1).sqrt() <= eps * (1 + 1e-6) + 1e-6).all())


def keeps_labels_one_by_one(attacked: Attacked) -> None:
    if not attacked.recipe.keeps_label:
        return
    for image, before in zip(attacked.result.images, attacked.case.images, strict=True):
        alone, clean = (attacked.target.module(x[None]).detach()[0] for x in (image, before))
        assert alone.argmax() == clean.argmax()


def is_no_worse(attacked: Attacked) -> None:
    table, ids = attacked.result.table, torch.arange(len(attacked.case.ids))
    assert bool((table["loss_after"] <= table["loss_before"]).all())
    if not len(ids):
        return
    merit = bound_to(attacked).merit(Outputs(attacked.target.module(attacked.result.images).detach()), ids)
    torch.testing.assert_close(merit, torch.tensor(table["loss_after"].to_list(), dtype=merit.dtype), rtol=0, atol=0)


def counts_what_the_model_saw(attacked: Attacked) -> None:
    table, target = attacked.result.table, attacked.target
    assert table["queries"].to_list() == target.counted(attacked.case.ids, gradients=False)
    assert table["gradients"].to_list() == target.counted(attacked.case.ids, gradients=True)
    assert attacked.passes == {"forward": table["queries"].sum(), "backward": table["gradients"].sum()}


def respects_the_budget(attacked: Attacked) -> None:
    table = attacked.result.table
    assert bool(table["queries"].is_between(1, attacked.setup.budget).all())
    assert bool((table["gradients"] <= table["queries"]).all())


def points_of(attacked: Attacked, row: int) -> tuple[Tensor, Outputs]:
    """All points asked for one sample, in order, and their answers."""
    name = int(attacked.case.ids[row])
    calls = [(x[ids == name], scores[ids == name]) for ids, x, scores, _ in attacked.target.log]
    return torch.cat([x for x, _ in calls]), Outputs(torch.cat([scores for _, scores in calls]))


def points_per_call(attacked: Attacked, row: int) -> list[int]:
    """How many points of one sample each call held, in order, calls without any left out."""
    name = int(attacked.case.ids[row])
    counts = [int((ids == name).sum()) for ids, *_ in attacked.target.log]
    return [count for count in counts if count]


def probed(attacked: Attacked, row: int) -> list[bool]:
    """Which of these points are probes."""
    name, log = int(attacked.case.ids[row]), enumerate(attacked.target.log)
    return [at in attacked.probes for at, (ids, *_) in log for _ in range(int((ids == name).sum()))]


def replayed(attacked: Attacked, row: int) -> tuple[int, int | None]:
    """Positions of a sample's best acceptable point and of the first that reached the goal, from the log alone."""
    x, answers = points_of(attacked, row)
    probes = probed(attacked, row)
    bound, ids = bound_to(attacked), torch.full((len(x),), row)
    merit, accept, done = bound.merit(answers, ids), bound.accept(answers, ids), bound.done(answers, ids)
    clean = attacked.case.images[row].expand_as(x)
    inside = attacked.constraint.contains(x, clean) & Box().contains(x)
    best, reached = 0, 0 if accept[0] and done[0] else None
    for position in range(1, len(x)):
        if not probes[position] and accept[position] and inside[position] and merit[position] < merit[best]:
            best = position
            if done[position] and reached is None:
                reached = position
    return best, reached


def returns_the_best_point(attacked: Attacked) -> None:
    for row, image in enumerate(attacked.result.images):
        x, answers = points_of(attacked, row)
        best, _ = replayed(attacked, row)
        assert torch.equal(image, x[best])
        assert torch.equal(attacked.result.scores[row], answers.scores[best])


def never_asks_the_finished(attacked: Attacked) -> None:
    for row, told in enumerate(attacked.result.table.iter_rows(named=True)):
        x, _ = points_of(attacked, row)
        _, reached = replayed(attacked, row)
        assert (told["stop"] == "success") == (reached is not None)
        assert told["queries_to_success"] == (None if reached is None else len(x))
        assert reached is None or reached >= len(x) - points_per_call(attacked, row)[-1]
        assert told["stop"] != "budget" or told["queries"] == attacked.setup.budget


def tells_the_truth(attacked: Attacked) -> None:
    """The table's columns, computed anew in float64 from the images and the model."""
    table, case, module = attacked.result.table, attacked.case, attacked.target.module
    assert table.schema == poise.table.SCHEMA
    assert table["id"].to_list() == case.ids.tolist()
    assert table["label"].to_list() == case.labels.tolist()
    change = (attacked.result.images - case.images).flatten(1)
    for when, images in (("before", case.images), ("after", attacked.result.images)):
        probabilities = module(images).detach().double().softmax(dim=1)
        assert table[f"prediction_{when}"].to_list() == probabilities.argmax(dim=1).tolist()
        expected = probabilities.max(dim=1).values.numpy() if len(images) else []
        assert table[f"confidence_{when}"].to_list() == pytest.approx(list(expected), abs=1e-12)
    assert table["linf"].to_list() == pytest.approx(change.abs().amax(dim=1).tolist(), abs=1e-12)
    assert table["l2"].to_list() == pytest.approx(change.norm(dim=1).tolist(), abs=1e-12)
    for row, told in enumerate(table.iter_rows(named=True)):
        best, _ = replayed(attacked, row)
        assert best < told["improved_at"] <= told["queries"]
        assert told["wrong_confidence"] == wrong_confidence(attacked, row)


def wrong_confidence(attacked: Attacked, row: int) -> float | None:
    """Highest probability of a wrong class at any point of the ball that was asked, for the goals that report it."""
    if not isinstance(attacked.recipe.objective, MaxConfidence):
        return None
    x, answers = points_of(attacked, row)
    clean, wrong = attacked.case.images[row].expand_as(x), answers.probabilities.clone()
    wrong[:, attacked.case.labels[row]] = 0
    inside = attacked.constraint.contains(x, clean) & Box().contains(x)
    return float(wrong[inside].max())


PROPERTIES: dict[str, Callable[[Attacked], None]] = {
    check.__name__: check
    for check in (
        stays_inside,
        keeps_labels_one_by_one,
        is_no_worse,
        counts_what_the_model_saw,
        respects_the_budget,
        returns_the_best_point,
        never_asks_the_finished,
        tells_the_truth,
    )
}


def with_recipe(name: str, setup: Setup) -> Callable[[toys.Case, int], AttackResult]:
    def attack_(case: toys.Case, batch_size: int) -> AttackResult:
        target = case.target(batch_size=batch_size)
        rest = {"eps": setup.eps, "norm": setup.norm, "budget": setup.budget, "seed": setup.seed}
        return poise.run_recipe(name, target, case.images, case.labels, ids=case.ids, steps=setup.steps, **rest)

    return attack_


def table_of(name: str, case: toys.Case, **settings_: object) -> pl.DataFrame:
    arguments = {"eps": 0.1, "budget": 60, "ids": case.ids} | settings_
    return poise.run_recipe(name, case.target(), case.images, case.labels, **arguments).table
