"""Every recipe keeps its promises: a table of recipes, a table of properties, a broken twin of each property."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import polars as pl
import pytest
from hypothesis import given
from torch import Tensor

import toys
from poise.objectives import OCA, UCA, KeepLabel, Margin
from poise.objectives.base import Bound
from poise.rng import Rng
from poise.searches import PGD, Ask, Problem, Square
from poise.searches.base import Steps
from poise.types import Access, Outputs
from recipe_cases import (
    PROPERTIES,
    Attacked,
    Setup,
    counts_what_the_model_saw,
    every_recipe,
    is_no_worse,
    keeps_labels_one_by_one,
    never_asks_the_finished,
    respects_the_budget,
    returns_the_best_point,
    run,
    run_own,
    setups,
    stays_inside,
    tells_the_truth,
)  # fmt: skip


@every_recipe
@given(setup=setups)
def test_recipe_keeps_every_promise(name: str, setup: Setup) -> None:
    attacked = run(name, setup)
    for check in PROPERTIES.values():
        check(attacked)


# --- broken twins: each breaks one promise, and the property that guards it must say so ---


class Forgetful(KeepLabel):
    """Says that it keeps the label, and follows the margin across the boundary."""

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        return Margin(stop=False).bind(clean, clean.labels, ids, rng)


class Chatty(toys.RecordingTarget):
    """Asks its module twice for every answer."""

    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        self.module(x)
        return super().query(x, ids)


@dataclass(frozen=True)
class Restless:
    """Asks for every sample until the budget is spent, finished or not."""

    access: ClassVar[Access] = Access.LABELS

    def run(self, problem: Problem) -> Steps:
        yield Ask(problem.clean, problem.everyone)
        for step in range(problem.budget - 1):
            points = problem.constraint.sample(problem.clean, problem.box, problem.everyone, problem.rng, step)
            yield Ask(points, problem.everyone)


def tampered(attacked: Attacked, **columns: pl.Expr) -> Attacked:
    table = attacked.result.table.with_columns(**columns)
    return dataclasses.replace(attacked, result=dataclasses.replace(attacked.result, table=table))


def with_images(attacked: Attacked, images: Tensor) -> Attacked:
    return dataclasses.replace(attacked, result=dataclasses.replace(attacked.result, images=images))


def _outside() -> Attacked:
    attacked = run("sa-uca", Setup())
    images = attacked.result.images.clone()
    images[0, 0, 0, 0] = attacked.case.images[0, 0, 0, 0] + 0.1 + 1e-4
    return with_images(attacked, images)


def _outside_the_box() -> Attacked:
    attacked = run("sa-uca", Setup(eps=0.0))
    images = attacked.result.images.clone()
    images[0, 0, 0, 0] = -1e-9
    return with_images(attacked, images)


def _returns_clean() -> Attacked:
    attacked = run("sa-oca", Setup(budget=20))
    return with_images(attacked, attacked.case.images)


def _chatty() -> Attacked:
    case = Setup().case()
    return run_own(KeepLabel(UCA()), Square(), Setup(), Chatty(case.module(), num_classes=3))


TWINS: list[tuple[Callable[[Attacked], None], Callable[[], Attacked]]] = [
    (stays_inside, _outside),
    (stays_inside, _outside_the_box),
    (keeps_labels_one_by_one, lambda: run_own(Forgetful(UCA()), PGD(), Setup(eps=0.4, budget=20))),
    (is_no_worse, lambda: tampered(run("sa-oca", Setup()), loss_after=pl.col("loss_before") + 1e-9)),
    (is_no_worse, lambda: tampered(run("sa-oca", Setup()), loss_after=pl.col("loss_after") - 1e-9)),
    (counts_what_the_model_saw, _chatty),
    (counts_what_the_model_saw, lambda: tampered(run("adaptive", Setup()), gradients=pl.col("gradients") - 1)),
    (respects_the_budget, lambda: dataclasses.replace(run("sa-oca", Setup()), setup=Setup(budget=11))),
    (returns_the_best_point, _returns_clean),
    (never_asks_the_finished, lambda: run_own(KeepLabel(OCA(tol=0.4)), Restless(), Setup(n=6))),
    (tells_the_truth, lambda: tampered(run("sa-oca", Setup()), confidence_after=pl.col("confidence_before"))),
    (tells_the_truth, lambda: tampered(run("sa-oca", Setup()), linf=pl.col("linf") / 2)),
    (tells_the_truth, lambda: tampered(run("sa-oca", Setup()), improved_at=pl.lit(1))),
    (tells_the_truth, lambda: tampered(run("noise", Setup()), wrong_confidence=pl.col("wrong_confidence") - 1e-9)),
    (tells_the_truth, lambda: tampered(run("sa-oca", Setup()), wrong_confidence=pl.lit(0.5))),
]


@pytest.mark.parametrize(("check", "twin"), TWINS, ids=lambda part: getattr(part, "__name__", "twin"))
def test_broken_twin_fails(check: Callable[[Attacked], None], twin: Callable[[], Attacked]) -> None:
    broken = twin()
    with pytest.raises(AssertionError):
        check(broken)


def test_every_property_has_a_twin() -> None:
    assert {check.__name__ for check, _ in TWINS} == set(PROPERTIES)
