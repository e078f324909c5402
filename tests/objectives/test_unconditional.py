"""Unconditional: the first point that the target answers differently is the result."""

from __future__ import annotations

import pytest
import torch

import poise
from poise.checks.objectives import check_objective
from poise.constraints import Linf
from poise.objectives import Unconditional
from poise.searches import Noise
from poise.types import Access, OutputKind, Outputs
from toys import Fixed, Scripted, bind, linear_case, outputs


def test_contract() -> None:
    check_objective(Unconditional())
    assert Unconditional().access is Access.LABELS


def test_loss_by_hand() -> None:
    """1 where every score is the clean one, 0 where any differs; a sample is compared with itself alone."""
    clean = outputs([0.5, 0.3, 0.2], [0.1, 0.1, 0.8])
    bound = bind(Unconditional(), clean, [0, 1])
    later = outputs([0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.5, 0.30001, 0.19999], [0.1, 0.1, 0.8])
    ids = torch.tensor([0, 1, 0, 1])
    assert bound.loss(later, ids).tolist() == [1, 0, 0, 1]
    assert bound.merit(later, ids).tolist() == [1, 0, 0, 1]
    assert bound.accept(later, ids).all()
    assert not bound.done(later, ids).any()
    assert bound.aside(later, ids) is None


def test_labels_are_enough() -> None:
    clean = Outputs(torch.eye(3)[:2], OutputKind.LABELS)
    bound = bind(Unconditional(), clean, [0, 1])
    assert bound.loss(Outputs(torch.eye(3)[[0, 2]], OutputKind.LABELS), torch.arange(2)).tolist() == [1, 0]


@pytest.mark.parametrize(("changes", "expected"), [((0.1, 0.2, 0.3), 0.1), ((0.0, 0.2, 0.1), 0.2), ((0.0,), 0.0)])
def test_the_first_change_stays(changes: tuple[float, ...], expected: float) -> None:
    """Whatever comes later, better or worse for anybody; where nothing changes, the clean image."""
    case = linear_case(2, scale=5.0)
    images = case.images * 0.5
    result = poise.attack(case.target(), Unconditional(), Scripted(changes), Linf(0.5), images, case.labels, budget=20)
    torch.testing.assert_close(result.images, images + expected)
    assert result.table["loss_after"].to_list() == [float(expected == 0)] * 2
    assert (
        result.table["improved_at"].to_list() == [1 + changes.index(expected) + (expected != 0) if expected else 1] * 2
    )


def test_a_model_that_never_answers_differently_moves_nothing() -> None:
    target = poise.ModuleTarget(Fixed(lambda x: x.new_zeros(len(x), 3)), num_classes=3)
    images = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    result = poise.attack(target, Unconditional(), Noise(), Linf(0.5), images, torch.tensor([0, 1]), budget=6)
    assert torch.equal(result.images, images)
    assert result.table["queries"].to_list() == [6, 6]
