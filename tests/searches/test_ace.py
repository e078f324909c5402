"""ACE: one gradient, a step that halves per refusal, the closed form on two classes, and a loop from the text."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import poise
from poise.checks.searches import check_search
from poise.constraints import L2, Constraint, Linf
from poise.errors import InputError
from poise.objectives import MMA, OCA, UCA, KeepLabel
from poise.searches import Ask, Reply
from poise.searches.ace import ACE
from toys import Constant, RecordingTarget, binary_case, by_hand, drive, generator, linear_case, problem


def refusals(script: list[int], search: ACE, constraint: Constraint) -> list[list[Tensor]]:
    """Changes asked for each sample, where sample i is refused script[i] times; the gradient is 1 everywhere."""
    n, clean = len(script), torch.full((len(script), 1, 2, 2), 0.5, dtype=torch.float64)
    asked: list[list[Tensor]] = [[] for _ in script]

    def answer(ask: Ask, number: int) -> Reply:
        if number:
            for row, point in zip(ask.ids.tolist(), ask.x, strict=True):
                asked[row].append(point - clean[row])
        accept = torch.tensor([number == 0 or len(asked[row]) > script[row] for row in ask.ids.tolist()])
        return Reply(torch.zeros(len(ask.ids)), accept, torch.ones(n, dtype=torch.bool), torch.ones_like(ask.x))

    by_hand(search.run(problem(clean, constraint)), answer)
    return asked


def halves_until_accepted(search: ACE) -> None:
    script = [0, 3, 1, 99]
    changes = refusals(script, search, Linf(0.2))
    assert [len(points) for points in changes] == [1, 4, 2, 15]
    for points in changes:
        for m, change in enumerate(points):
            torch.testing.assert_close(change, torch.full_like(change, -0.2 / 2**m), rtol=1e-9, atol=1e-15)


def test_the_step_halves_until_it_is_accepted() -> None:
    """P2: eps / 2^m * (+-1), one m per sample; 15 tries; nobody is asked again after the first accepted candidate."""
    halves_until_accepted(ACE())


@pytest.mark.parametrize("twin", [ACE(decay=0.4), ACE(tries=14)])
def test_another_schedule_is_noticed(twin: ACE) -> None:
    with pytest.raises(AssertionError):
        halves_until_accepted(twin)


def test_in_the_euclidean_ball_the_step_has_length_eps() -> None:
    ((change,),) = refusals([0], ACE(), L2(0.3))
    assert float(change.norm()) == pytest.approx(0.3, rel=1e-9)


@pytest.mark.parametrize("constraint", [Linf(0.2), L2(0.6)])
def test_two_classes_in_closed_form(constraint: Constraint) -> None:
    """Underconfidence: the margin m loses e * dual norm, for the largest e = eps / 2^j that leaves it positive."""
    case = binary_case(4, margin=0.5)
    difference = (case.weight[1] - case.weight[0]).flatten()
    dual = float(difference.abs().sum() if isinstance(constraint, Linf) else difference.norm())
    j = next(j for j in range(15) if 0.5 - constraint.eps / 2**j * dual > 0)
    assert j > 0, "the first try must flip the label, or nothing is shown"
    run = drive(case, KeepLabel(UCA(tol=0), 0.0), ACE(), constraint)
    expected = math.tanh((0.5 - constraint.eps / 2**j * dual) / 2)
    np.testing.assert_allclose(run.best.merit.numpy(), expected, rtol=1e-9)
    assert run.meter.queries.tolist() == [2 + j] * 4
    assert run.meter.gradients.tolist() == [1] * 4


def test_overconfidence_needs_one_try() -> None:
    case = binary_case(4, margin=0.5)
    run = drive(case, KeepLabel(OCA(tol=0)), ACE(), Linf(0.05))
    margin = 0.5 + 0.05 * float((case.weight[1] - case.weight[0]).abs().sum())
    np.testing.assert_allclose(run.best.merit.numpy(), 1 / (1 + math.exp(margin)), rtol=1e-9)
    assert run.meter.queries.tolist() == [2] * 4


def by_the_text(case: object, row: int, eps: float, *, once: bool = True) -> Tensor:
    """The released code's loop for one sample: numpy, linf, softmax of the initial prediction; `once` as published."""
    weight, bias = case.weight.flatten(1).numpy(), case.bias.numpy()
    x0 = case.images[row].flatten().numpy()

    def softmax(x: np.ndarray) -> np.ndarray:
        z = weight @ x + bias
        return np.exp(z - z.max()) / np.exp(z - z.max()).sum()

    def slope(x: np.ndarray) -> np.ndarray:
        p = softmax(x)
        return p[k] * (weight[k] - p @ weight)

    k = int(softmax(x0).argmax())
    direction = -1 if k == int(case.labels[row]) else 1
    g = slope(x0)
    for _ in range(15):
        candidate = np.clip(x0 + eps * direction * np.sign(g), 0, 1)
        if softmax(candidate).argmax() == k:
            return torch.from_numpy(candidate).view_as(case.images[row])
        eps /= 2
        g = g if once else slope(candidate)
    return case.images[row]


CONFIDENCE = KeepLabel(MMA(under=UCA(follow="cross-entropy", tol=0), over=OCA(tol=0)), 0.0)
"""Lowers log p_k where the prediction is right and raises p_k where it is wrong: the gradient signs of ACE."""


@pytest.mark.parametrize("eps", [0.01, 0.3])
def test_points_are_those_of_a_loop_written_from_the_text(eps: float) -> None:
    case = linear_case(9, classes=4, shape=(1, 5, 4), scale=6.0)
    target = case.target()
    run = drive(case, CONFIDENCE, ACE(), Linf(eps), target=target)
    assert run.bound.over.tolist() == (run.clean.labels != case.labels).tolist()
    for row in range(9):
        last = [x[ids == case.ids[row]] for ids, x, _, _ in target.log if bool((ids == case.ids[row]).any())][-1]
        torch.testing.assert_close(last[0], by_the_text(case, row, eps), rtol=0, atol=1e-12)


def test_a_gradient_taken_anew_is_another_attack() -> None:
    """The comparison above tells ACE from a loop that takes its gradient at every refused candidate."""
    case = linear_case(40, classes=4, shape=(1, 5, 4), scale=6.0)
    pairs = [(by_the_text(case, row, 0.3), by_the_text(case, row, 0.3, once=False)) for row in range(40)]
    assert any(not torch.allclose(one, other) for one, other in pairs)


def test_keeps_accuracy() -> None:
    """P1."""
    case = linear_case(30, classes=4)
    result = poise.attack(case.target(), KeepLabel(MMA()), ACE(), Linf(0.3), case.images, case.labels, case.ids)
    assert result.table["prediction_before"].to_list() == result.table["prediction_after"].to_list()
    assert bool((result.table["loss_after"] <= result.table["loss_before"]).all())
    assert bool((result.table["linf"] > 0).any())


@pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.4)], ids=repr)
def test_contract(constraint: Constraint) -> None:
    check_search(ACE(), constraint=constraint)


@pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.4)], ids=repr)
@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_constant_model_moves_nothing(n: int, classes: int, constraint: Constraint) -> None:
    images = torch.rand(n, 1, 4, 4, generator=generator(0))
    target = RecordingTarget(Constant(classes), num_classes=classes)
    labels = torch.zeros(n, dtype=torch.long)
    result = poise.attack(target, KeepLabel(MMA()), ACE(), constraint, images, labels)
    assert torch.equal(result.images, images)
    assert all(torch.equal(x, images) for _, x, _, _ in target.log)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ACE(tries=0), "ACE: tries must be at least 1, got 0"),
        (lambda: ACE(decay=1.0), r"ACE: decay must be in \(0, 1\), got 1.0"),
        (lambda: ACE(decay=float("nan")), r"ACE: decay must be in \(0, 1\), got nan"),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
