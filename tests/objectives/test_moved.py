"""Moved: any goal, done as soon as the confidence has moved so far; nothing else of it changes."""

from __future__ import annotations

import polars as pl
import pytest
import torch

from poise import attack
from poise.constraints import Linf
from poise.errors import InputError
from poise.objectives import OCA, UCA, KeepLabel, Moved
from poise.rng import Rng
from poise.searches import Square
from poise.types import Outputs
from toys import binary_case, bind, outputs


@pytest.mark.parametrize("goal", [UCA(), OCA()], ids=["uca", "oca"])
def test_all_but_the_end_is_the_goal(goal: UCA | OCA) -> None:
    torch.manual_seed(0)
    clean, rows = Outputs(torch.randn(6, 4)), torch.arange(6)
    after, labels, rng = Outputs(torch.randn(6, 4)), torch.zeros(6, dtype=torch.long), Rng(0, torch.arange(6))
    plain, moved = goal.bind(clean, labels, rows, rng), Moved(goal, 0.1).bind(clean, labels, rows, rng)
    for name in ("loss", "merit", "accept"):
        assert torch.equal(getattr(plain, name)(after, rows), getattr(moved, name)(after, rows))
    assert torch.equal(plain.over, moved.over)
    own = after.probabilities.gather(1, clean.labels[:, None])[:, 0]
    expected = ((own - clean.confidence).abs() >= 0.1) | plain.done(after, rows)
    assert torch.equal(moved.done(after, rows), expected)
    assert expected.any()
    assert not moved.done(clean, rows)[~plain.done(clean, rows)].any()


def test_a_move_of_just_so_much_is_enough() -> None:
    clean, after = outputs([0.75, 0.25]), outputs([0.5, 0.5])
    moved, rows = float(clean.confidence[0] - after.confidence[0]), torch.arange(1)
    assert moved == pytest.approx(0.25)
    assert bind(Moved(OCA(), moved), clean, [0]).done(after, rows).tolist() == [True]
    assert bind(Moved(OCA(), moved + 1e-9), clean, [0]).done(after, rows).tolist() == [False]


def test_an_attack_stops_there() -> None:
    case = binary_case(6)

    def run(goal: UCA | Moved) -> pl.DataFrame:
        return attack(case.target(), KeepLabel(goal), Square(), Linf(0.3), case.images, case.labels, budget=60).table

    far, near = run(UCA()), run(Moved(UCA(), 0.02))
    change = (near["confidence_after"] - near["confidence_before"]).abs()
    assert near["queries"].sum() < far["queries"].sum()
    assert (near["stop"] == "success").all()
    assert (change >= 0.02).all()


@pytest.mark.parametrize("by", [0.0, 1.0, -0.1, float("nan")])
def test_by_must_be_a_share(by: float) -> None:
    with pytest.raises(InputError, match="Moved: by must be in"):
        Moved(UCA(), by)
