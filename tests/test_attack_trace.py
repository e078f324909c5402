"""The trace of an attack, and the table's columns on gradients, on when the result was found, on wrong classes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import polars as pl
import pytest
import torch

import poise
from poise.constraints import Linf
from poise.objectives import UCA, KeepLabel, Margin
from poise.searches import EOT, PGD, AdaptivePGD, Problem, Square
from poise.searches.base import Steps
from poise.types import Outputs
from toys import Fixed, Linear, Scripted, linear_case

PIXEL = torch.tensor([1.0, 0.0], dtype=torch.float64).view(2, 1, 1, 1)
"""A model of one pixel: logits (x, 0) - (0.5, 0), so that the margin of class 0 is x - 0.5."""


def pixel_target() -> poise.ModuleTarget:
    return poise.ModuleTarget(Linear(PIXEL, torch.tensor([-0.5, 0.0]).double()), num_classes=2)


def traced(
    search: object, *pixels: float, eps: float = 0.4, objective: object = None, **settings: object
) -> pl.DataFrame:
    images = torch.tensor(pixels, dtype=torch.float64).view(-1, 1, 1, 1)
    ids = torch.arange(len(pixels)) * 10 + 7
    return poise.attack(
        pixel_target(), objective or Margin(stop=False), search, Linf(eps), images, torch.zeros_like(ids), ids,
        watch=poise.Watch(trace=True), **settings,
    ).trace  # fmt: skip


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_trace_by_hand() -> None:
    """PGD with step .1 on the margin: .9, .8, .7, .6 stay in class 0; .55, .45, .35, .25 cross the boundary at once."""
    trace = traced(PGD(steps=3, step=0.1, undo=False), 0.9, 0.55)
    assert trace.schema == poise.table.TRACE
    assert trace["id"].to_list() == [7, 17] * 4
    assert trace["iteration"].to_list() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert trace["queries"].to_list() == [1, 1, 2, 2, 3, 3, 4, 4]
    margins = [0.4, 0.05, 0.3, -0.05, 0.2, -0.15, 0.1, -0.25]
    assert trace["margin"].to_list() == pytest.approx(margins, abs=1e-12)
    assert trace["loss"].to_list() == pytest.approx(margins, abs=1e-12)
    assert trace["confidence"].to_list() == pytest.approx([sigmoid(m) for m in margins], abs=1e-12)
    assert trace["step"].to_list() == [None] * 2 + [0.1] * 6


def test_the_trace_is_of_the_clean_prediction_whatever_the_label() -> None:
    """0.2 is class 1: its margin is .3 and the search, which follows the margin of the true class 0, widens it."""
    trace = traced(PGD(steps=1, step=0.1, undo=False), 0.2)
    assert trace["margin"].to_list() == pytest.approx([0.3, 0.4], abs=1e-12)
    assert trace["loss"].to_list() == pytest.approx([-0.3, -0.4], abs=1e-12)
    assert trace["confidence"].to_list() == pytest.approx([sigmoid(0.3), sigmoid(0.4)], abs=1e-12)


def halves_exactly_on_flips(search: AdaptivePGD) -> None:
    """Eq. 4 to 6 as seen in the trace: half the step after a flip, 1.1 times the step after a fall."""
    trace = traced(search, 0.93, 0.57, eps=0.5, objective=KeepLabel(UCA(tol=0.0), 0.0))
    flips = falls = 0
    for _, path in trace.group_by("id", maintain_order=True):
        margins, steps = path["margin"].to_list(), path["step"].to_list()
        assert steps[1] == pytest.approx(search.step)
        for t in range(1, len(steps) - 1):
            factor = 0.5 if margins[t] < 0 else search.growth
            assert steps[t + 1] == pytest.approx(steps[t] * factor, rel=1e-9)
            flips, falls = flips + (margins[t] < 0), falls + (margins[t] >= 0)
    assert flips > 5
    assert falls > 5


def test_adaptive_steps_halve_exactly_on_flips() -> None:
    halves_exactly_on_flips(AdaptivePGD(steps=20, step=0.05))


@dataclass(frozen=True, slots=True)
class Stubborn(AdaptivePGD):
    """Broken twin: the step is told as if it never changed."""

    def _run(self, problem: Problem) -> Steps:
        steps = AdaptivePGD._run(self, problem)
        ask = next(steps)
        while True:
            reply = yield dataclasses.replace(ask, step=None if ask.step is None else self.step)
            try:
                ask = steps.send(reply)
            except StopIteration:
                return


def test_a_step_that_is_told_wrongly_is_noticed() -> None:
    with pytest.raises(AssertionError):
        halves_exactly_on_flips(Stubborn(steps=20, step=0.05))


def rows_are_the_points_that_were_answered(result: poise.AttackResult) -> None:
    """As many rows as queries for every sample; queries never fall and end at what the table says was spent."""
    spent = dict(zip(result.table["id"], result.table["queries"], strict=True))
    for (name,), path in result.trace.group_by("id", maintain_order=True):
        assert path.height == spent.pop(name)
        assert path["queries"].is_sorted()
        assert path["queries"][-1] == path.height
        assert path["iteration"].is_sorted()
    assert not spent


ROWS = [
    ("sa-mma", 9), ("standard", 150), ("max-confidence", 30), ("max-confidence", 31), ("bundle", 57), ("adaptive", 6),
    ("noise", 5),
]  # fmt: skip


@pytest.mark.parametrize(("recipe", "budget"), ROWS)
def test_rows_are_the_points_that_were_answered(recipe: str, budget: int) -> None:
    """Also where a budget ends in the middle of an ask, in batches, and where samples finish at different times."""
    case = linear_case(5, classes=4)
    arguments = {"eps": 0.1, "budget": budget, "ids": case.ids, "steps": 5, "watch": poise.Watch(trace=True)}
    target = case.target(batch_size=2)
    result = poise.run_recipe(recipe, target, case.images, case.labels, **arguments)
    rows_are_the_points_that_were_answered(result)
    assert result.trace.height == sum(target.counted(case.ids, gradients=False))
    for lost in (result.trace[1:], result.trace[:-1], pl.concat([result.trace, result.trace[-1:]])):
        with pytest.raises(AssertionError):
            rows_are_the_points_that_were_answered(dataclasses.replace(result, trace=lost))


@pytest.mark.parametrize("budget", range(6, 14))
def test_steps_of_each_point_are_kept_where_a_budget_ends_among_copies(budget: int) -> None:
    """Every copy's row has the step of its own sample."""
    case = linear_case(3, scale=6.0)
    result = poise.attack(
        case.target(), KeepLabel(UCA(tol=0.0)), AdaptivePGD(steps=9, step=0.05, source=EOT(3)), Linf(0.3),
        case.images, case.labels, case.ids, budget, watch=poise.Watch(trace=True),
    )  # fmt: skip
    rows_are_the_points_that_were_answered(result)
    assert result.trace.filter(pl.col("iteration") < 2)["step"].is_null().all()
    assert result.trace.group_by("id", "iteration").agg(pl.col("step").n_unique())["step"].max() == 1


def test_a_trace_is_kept_only_where_it_is_wanted_and_changes_nothing() -> None:
    case = linear_case(3)
    plain, watched = (
        poise.attack(
            case.target(),
            UCA(),
            Square(),
            Linf(0.1),
            case.images,
            case.labels,
            budget=20,
            watch=poise.Watch(trace=wanted),
        )
        for wanted in (False, True)
    )
    assert plain.trace.equals(poise.table.joined([], poise.table.TRACE))
    assert plain.trace.schema == poise.table.TRACE
    assert watched.trace.height == watched.table["queries"].sum()
    assert torch.equal(plain.images, watched.images)
    assert plain.table.drop("seconds").equals(watched.table.drop("seconds"))


def test_no_image_has_no_trace() -> None:
    case = linear_case(1)
    empty = poise.attack(
        case.target(), UCA(), Square(), Linf(0.1), case.images[:0], case.labels[:0], watch=poise.Watch(trace=True)
    )
    assert empty.trace.equals(poise.table.joined([], poise.table.TRACE))


# --- zero gradients, when the result was found, wrong confidence ---


def test_zero_gradients_are_counted() -> None:
    """Rounded pixels have none anywhere; a rectified margin has none where it is negative; Noise asks for none."""
    case = linear_case(3)
    flat = poise.ModuleTarget(
        torch.nn.Sequential(Fixed(lambda x: (x * 255).round() / 255), case.module()), num_classes=3
    )
    for target, search, expected in (
        (flat, PGD(steps=4, undo=False), 4),
        (flat, PGD(steps=4, undo=False, random_start=True), 4),
        (case.target(), PGD(steps=4, undo=False), 0),
        (flat, Square(), 0),
    ):
        table = poise.attack(target, Margin(stop=False), search, Linf(0.1), case.images, case.labels, budget=30).table
        assert table["zero_gradients"].to_list() == [expected] * 3
        assert (table["zero_gradients"] <= table["gradients"]).all()
    images = torch.tensor([0.9, 0.55]).double().view(-1, 1, 1, 1)
    half = Fixed(lambda x: torch.cat([(x[:, :, 0, 0] - 0.5).relu(), 0 * x[:, :, 0, 0]], dim=1))
    table = poise.attack(
        poise.ModuleTarget(half, num_classes=2), Margin(stop=False), PGD(steps=4, step=0.1, undo=False), Linf(0.4),
        images, torch.tensor([0, 0]),
    ).table  # fmt: skip
    assert table["gradients"].to_list() == [4, 4]
    assert table["zero_gradients"].to_list() == [0, 3]  # .55 is across after one step, .9 never
    left = Fixed(lambda x: torch.stack([x[:, 0, :, 0].sum(dim=1), x[:, 0, 0, 0] * 0], dim=1))
    table = poise.attack(
        poise.ModuleTarget(left, num_classes=2), Margin(stop=False), PGD(steps=3, undo=False), Linf(0.1),
        case.images, torch.zeros(3).long(),
    ).table  # fmt: skip
    assert table["zero_gradients"].to_list() == [0] * 3  # zero in most pixels is not zero everywhere


def test_improved_at_is_the_query_that_found_the_result() -> None:
    """Merit x after changes of +.1, -.1, -.2, -.1, -.2: the third change, fourth query; a tie later does not count."""
    images = torch.tensor([0.9]).double().view(-1, 1, 1, 1)
    for changes, expected in (((0.05, -0.1, -0.2, -0.1, -0.2), 4), ((0.05, 0.01), 1), ((0.05, -0.1), 3), ((-0.1,), 2)):
        table = poise.attack(
            pixel_target(), Margin(stop=False), Scripted(changes), Linf(0.3), images, torch.tensor([0]), budget=20
        ).table
        assert table["improved_at"].to_list() == [expected]


def test_wrong_confidence_is_at_least_that_of_the_result() -> None:
    """Null for goals that do not ask for it; in [0, 1]; the result's own where that is an error above 1/2."""
    case = linear_case(12, classes=4)
    for recipe in ("sa-mma", "pgd"):
        table = poise.run_recipe(recipe, case.target(), case.images, case.labels, eps=0.1, budget=9).table
        assert table["wrong_confidence"].to_list() == [None] * 12
    for recipe in ("noise", "max-confidence", "bundle"):
        result = poise.run_recipe(recipe, case.target(), case.images, case.labels, eps=0.1, budget=60, steps=4)
        table = result.table
        wrong = Outputs(result.scores).probabilities.scatter(1, case.labels[:, None], 0).amax(dim=1).tolist()
        assert all(aside >= seen for aside, seen in zip(table["wrong_confidence"], wrong, strict=True))
        assert table["wrong_confidence"].is_between(0, 1).all()
        sure = table.filter((pl.col("prediction_after") != pl.col("label")) & (pl.col("confidence_after") >= 0.5))
        assert sure.height > 3
        assert sure["wrong_confidence"].to_list() == pytest.approx(sure["confidence_after"].to_list(), abs=1e-12)
