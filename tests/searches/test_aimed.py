"""Aimed: another loss of the goal, asked for from the clean points on."""

from __future__ import annotations

import pytest
import torch

import poise
import toys
from poise.constraints import Linf
from poise.objectives import OCA, UCA, KeepLabel, MinConfidence
from poise.objectives.lowest import GAP, GOAL
from poise.searches import APGD, PGD, AdaptivePGD, Aimed, NewtonFool, Search, Square


@pytest.mark.parametrize("search", [APGD(steps=12), AdaptivePGD(steps=8, step=0.02)], ids=repr)
def test_along_the_gap_it_asks_what_uca_asks(search: Search) -> None:
    """The same points in the same order: one query more, results ranked by p_k instead of the gap."""
    case, ball = toys.linear_case(6, classes=4, scale=6.0), Linf(0.05)
    watch = poise.Watch(trace=True)
    given = case.images, case.labels, case.ids, 100, 0, watch
    theirs = poise.attack(case.target(), KeepLabel(UCA(tol=0)), search, ball, *given).trace
    ours = poise.attack(case.target(), KeepLabel(MinConfidence(tol=0)), Aimed(search, GAP), ball, *given).trace
    moved = ours["iteration"] >= 2
    assert ours.filter(moved)["confidence"].to_list() == pytest.approx(
        theirs.filter(theirs["iteration"] >= 1)["confidence"].to_list(), abs=1e-12
    )
    own = poise.attack(case.target(), KeepLabel(MinConfidence(tol=0)), search, ball, *given).trace
    assert own["confidence"].to_list()[-6:] != pytest.approx(theirs["confidence"].to_list()[-6:], abs=1e-3)


def test_along_the_goal_newtonfool_follows_the_probability() -> None:
    case, ball = toys.linear_case(6, classes=4, scale=6.0), Linf(0.05)
    given = ball, case.images, case.labels, case.ids, 100
    theirs = poise.attack(case.target(), KeepLabel(MinConfidence(follow="goal")), NewtonFool(20), *given)
    ours = poise.attack(case.target(), KeepLabel(MinConfidence()), Aimed(NewtonFool(20), GOAL), *given)
    torch.testing.assert_close(ours.images, theirs.images)


def test_without_gradients_and_with_goals_of_one_loss() -> None:
    case, ball = toys.linear_case(4, classes=3), Linf(0.05)
    given = ball, case.images, case.labels, case.ids, 20
    plain = poise.attack(case.target(), KeepLabel(OCA()), Square(), *given)
    aimed = poise.attack(case.target(), KeepLabel(OCA()), Aimed(Square(horizon=19), GAP), *given)
    assert Aimed(Square()).access < Aimed(PGD()).access
    assert (aimed.table["loss_after"] <= aimed.table["loss_before"]).all()
    assert aimed.table["queries"].max() == plain.table["queries"].max()
