"""What the spec says of single recipes, and their names."""

from __future__ import annotations

import dataclasses

import polars as pl
import pytest

import poise
import toys
from poise.errors import InputError
from poise.objectives import MMA, KeepLabel
from poise.recipebook import Setting, ball
from poise.searches import PGD, AdaptivePGD, DropoutPGD, Square
from poise.types import Access
from recipe_cases import RECIPES, WITHOUT_RADIUS, Setup, every_recipe, run, table_of

OVER = [name for name in RECIPES if name.endswith(("-oca", "-over"))]
UNDER = [name for name in RECIPES if name.endswith(("-uca", "-under"))]
UNDER += ["adaptive", "confsmooth", "sa-confsmooth", "newtonfool"]
MISCALIBRATION = [name for name, one in RECIPES.items() if one.keeps_label and isinstance(one.objective.objective, MMA)]


def test_no_goal_of_a_direction_is_left_out() -> None:
    others = {name for name, one in RECIPES.items() if one.keeps_label} - {*OVER, *UNDER, *MISCALIBRATION}
    assert others == {name for name in RECIPES if name.endswith(("-random", "-rca", "-rca-direction"))}


@pytest.mark.parametrize("name", OVER)
def test_overconfidence_never_lowers_the_confidence(name: str) -> None:
    """Spec 3, P3."""
    table = table_of(name, toys.linear_case(30, classes=5))
    assert (table["confidence_after"] >= table["confidence_before"]).all()
    assert (table["confidence_after"] > table["confidence_before"] + 0.05).any()


@pytest.mark.parametrize("name", UNDER)
def test_underconfidence_never_raises_it_for_two_classes(name: str) -> None:
    """Spec 3, P2: implied for K = 2 alone. ConfSmooth stops at .51, so samples that begin below it are left out."""
    table = table_of(name, toys.linear_case(30, classes=2)).filter(pl.col("confidence_before") > 0.52)
    assert table.height > 15
    assert (table["confidence_after"] <= table["confidence_before"]).all()
    assert (table["confidence_after"] < table["confidence_before"] - 0.05).any()


@pytest.mark.parametrize("name", MISCALIBRATION)
@pytest.mark.parametrize("classes", [2, 10])
def test_miscalibration_stays_under_the_bound_and_beats_underconfidence(name: str, classes: int) -> None:
    """Spec 3, P6 and P7: with accuracy q, |confidence - correct| averages to at most 1 - q / K; half does less."""
    case = toys.linear_case(60, classes=classes, scale=4.0)
    table = table_of(name, case)
    right = (table["prediction_before"] == table["label"]).cast(float)
    gap = (table["confidence_after"] - right).abs().mean()
    assert gap <= 1 - right.mean() / classes + 1e-12
    assert gap > (table["confidence_before"] - right).abs().mean() + 0.02
    half = dataclasses.replace(RECIPES[name], objective=KeepLabel(RECIPES[name].objective.objective.under))
    under = half.run(case.target(), case.images, case.labels, Setting(ball("linf", 0.1), budget=60), ids=case.ids).table
    assert gap > (under["confidence_after"] - right).abs().mean()


@every_recipe
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_larger_radius_is_no_worse_on_average(name: str, norm: str) -> None:
    """Spec 28.3, over 40 samples; a goal that stops when it is reached may stop early, never worse than it began."""
    case = toys.linear_case(40, classes=3, shape=(1, 5, 5))
    radii = (0.0, 0.02, 0.1) if norm == "linf" else (0.0, 0.1, 0.5)
    losses = [table_of(name, case, eps=eps, norm=norm)["loss_after"].mean() for eps in radii]
    assert losses[2] < losses[0] or (name in WITHOUT_RADIUS and losses == [0, 0, 0])
    assert losses[1] <= losses[0]
    assert losses[2] <= losses[1] + 0.01


# --- names ---


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"recipe: must be one of the known names, got 'sa_mma' \(did you mean sa-mma"):
        poise.recipe("sa_mma")


def test_unknown_norm() -> None:
    with pytest.raises(InputError, match="norm must be one of l2, linf, got 'l1'"):
        run("sa-uca", Setup(norm="l1"))


@every_recipe
def test_recipe_describes_itself(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe.name == name == name.lower()
    assert recipe.summary
    assert "\n" not in recipe.summary
    assert recipe.paper


STEPLESS = {name for name, one in RECIPES.items() if one.access < Access.GRADIENTS} | {"fgsm", "ace"}


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in STEPLESS])
def test_steps_replace_the_papers_number(name: str) -> None:
    """In gradients, and per wrong class where there are aims; `bundle` runs four times, once with twice the steps."""
    case = toys.linear_case(4, classes=3, scale=20.0)
    three, five = (table_of(name, case, eps=0.002, steps=steps, budget=200)["gradients"].max() for steps in (3, 5))
    runs = {"max-confidence": 2, "bundle": 2 * 5, "fab": 2}.get(name, 1)
    assert five - three == 2 * runs


def test_papers_hyper_parameters() -> None:
    """Spec 4 to 7 at the papers' own eps, elsewhere the same share of eps; spec 3: no start, 1000 iterations."""
    evaluation, calibration, madry = (Setting(ball("linf", eps)) for eps in (0.03, 0.05, 8 / 255))
    for name in ("adaptive", "confsmooth"):
        adaptive = RECIPES[name].search(evaluation)
        assert adaptive == AdaptivePGD(steps=20, step=adaptive.step)
        assert adaptive.step == pytest.approx(5 / 255)
    pgd = RECIPES["pgd"].search(madry)
    assert pgd == PGD(steps=40, step=pgd.step, random_start=True, undo=False)
    assert pgd.step == pytest.approx(2 / 255)
    assert RECIPES["fgsm"].search(madry) == PGD(steps=1, step=None, undo=False)
    dropout = RECIPES["pgd-uca"].search(calibration)
    assert isinstance(dropout, DropoutPGD)
    assert (dropout.steps, dropout.keep_under, dropout.keep_over) == (10, 0.05, 0.8)
    assert dropout.step == pytest.approx(5 / 255)
    assert RECIPES["sa-mma"].search(Setting(ball("linf", 0.05), budget=100)) == Square(start="clean", horizon=1000)
    assert RECIPES["square"].search(madry) == Square(start="stripes")
    for constraint in (ball("l2", 0.6), ball("linf", 0.6)):
        assert RECIPES["adaptive"].search(Setting(constraint)).step == pytest.approx(0.6 * (5 / 255) / 0.03)
