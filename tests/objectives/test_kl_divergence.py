"""KLDivergence: scipy's relative entropy, its slope, and twins that must fail."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import rel_entr
from torch import Tensor

from poise.checks.objectives import check_objective
from poise.constraints import Linf
from poise.objectives import KLDivergence, Objective
from poise.objectives.base import Bound
from poise.searches import PGD
from poise.types import OutputKind, Outputs
from toys import bind, drive, generator, linear_case, outputs

ROWS = torch.arange(30)


def answers(seed: int, classes: int = 5) -> Outputs:
    return Outputs(2 * torch.randn(30, classes, generator=generator(seed), dtype=torch.float64))


def bound_to(clean: Outputs) -> Bound:
    return bind(KLDivergence(), clean, torch.zeros(len(clean.scores), dtype=torch.long))


Loss = Callable[[Bound, Outputs, Tensor], Tensor]


def minus_scipys(loss: Loss) -> None:
    for classes in (2, 3, 10):
        clean, later = answers(1, classes), answers(2, classes)
        expected = rel_entr(clean.probabilities.numpy(), later.probabilities.numpy()).sum(axis=1)
        np.testing.assert_allclose(loss(bound_to(clean), later, ROWS).numpy(), -expected, rtol=1e-9, atol=1e-12)


def the_specifications_value(loss: Loss) -> None:
    """R2: the mean over its two rows is .219003493."""
    clean = outputs([2, 1, 0], [0, 1, 3], kind=OutputKind.LOGITS)
    later = outputs([1, 1, 0], [0, 2, 2], kind=OutputKind.LOGITS)
    assert loss(bound_to(clean), later, torch.arange(2)).mean().item() == pytest.approx(-0.219003493, abs=1e-9)


def rows_find_their_own_clean_answer(loss: Loss) -> None:
    clean, later = answers(1), answers(2)
    bound, some = bound_to(clean), torch.tensor([7, 2, 2, 29])
    expected = [
        -sum(p * math.log(p / q) for p, q in zip(clean.probabilities[i], later.probabilities[i], strict=True)).item()
        for i in some.tolist()
    ]
    assert loss(bound, Outputs(later.scores[some]), some).tolist() == pytest.approx(expected, abs=1e-12)


def flat_at_the_clean_answer_alone(loss: Loss) -> None:
    """Value and slope are 0 there; elsewhere the slope in the logits is p - q, of the loss -KL(p || q)."""
    clean, later = answers(1), answers(2)
    bound = bound_to(clean)
    for now in (clean, later):
        scores = now.scores.clone().requires_grad_()
        value = loss(bound, Outputs(scores), ROWS)
        (slope,) = torch.autograd.grad(value.sum(), scores)
        torch.testing.assert_close(slope, clean.probabilities - now.probabilities, rtol=0, atol=1e-12)
        assert bool((value.abs() < 1e-12).all()) == (now is clean)
        assert bool((value <= 1e-12).all())


CHECKS = [minus_scipys, the_specifications_value, rows_find_their_own_clean_answer, flat_at_the_clean_answer_alone]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_loss(check: Callable[[Loss], None]) -> None:
    check(lambda bound, later, ids: bound.loss(later, ids))


def turned_round(bound: Bound, later: Outputs, ids: Tensor) -> Tensor:
    log_p = bound.log_p[ids]
    return (later.probabilities * (log_p - later.log_probabilities)).sum(dim=1)


def first_rows(bound: Bound, later: Outputs, ids: Tensor) -> Tensor:
    return bound.loss(later, torch.arange(len(ids)))


@pytest.mark.parametrize(
    ("check", "twin"),
    [
        (minus_scipys, turned_round),
        (the_specifications_value, turned_round),
        (rows_find_their_own_clean_answer, first_rows),
        (flat_at_the_clean_answer_alone, turned_round),
        (minus_scipys, lambda bound, later, ids: -bound.loss(later, ids)),
    ],
)
def test_broken_losses_are_noticed(check: Callable[[Loss], None], twin: Loss) -> None:
    with pytest.raises(AssertionError):
        check(twin)


@pytest.mark.parametrize("goal", [KLDivergence()], ids=repr)
def test_contract(goal: Objective) -> None:
    check_objective(goal)


def test_labels_may_change_and_nothing_is_ever_done() -> None:
    clean, later = answers(1), answers(2)
    bound = bound_to(clean)
    assert bool((clean.labels != later.labels).any())
    assert bool(bound.accept(later, ROWS).all())
    assert not bool(bound.done(later, ROWS).any())
    assert torch.equal(bound.merit(later, ROWS), bound.loss(later, ROWS))
    assert torch.equal(bound.k, clean.labels)
    assert not bool(bound.over.any())


def test_saturated_answers_are_finite() -> None:
    clean = outputs([800.0, 0.0], [0.0, 0.0], kind=OutputKind.LOGITS)
    scores = torch.tensor([[0.0, 800.0], [1e4, 0.0]], dtype=torch.float64, requires_grad=True)
    value = bound_to(clean).loss(Outputs(scores), torch.arange(2))
    assert value.tolist() == pytest.approx([-800, -(math.log(0.5) + 5000)])
    (slope,) = torch.autograd.grad(value.sum(), scores)
    assert bool(torch.isfinite(slope).all())


def test_the_truth_is_not_asked() -> None:
    """The goal is the same for every label: TRADES attacks the answer, not the class."""
    case = linear_case(6)
    search = PGD(steps=4, step=0.03, undo=False, random_start=True)
    one = drive(case, KLDivergence(), search, Linf(0.1))
    other = drive(
        type(case)(case.images, (case.labels + 1) % 3, case.ids, case.weight, case.bias),
        KLDivergence(),
        search,
        Linf(0.1),
    )
    assert torch.equal(one.best.x, other.best.x)
    assert bool((one.best.merit < -0.01).all())
