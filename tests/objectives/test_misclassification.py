"""Margin, ProbabilityMargin, CrossEntropy, Misclassify, Targeted, TowardsClass: values and ends by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

import poise
from poise.constraints import Linf
from poise.errors import InputError
from poise.objectives import CrossEntropy, Margin, Misclassify, ProbabilityMargin, Targeted, TowardsClass
from poise.objectives.base import probability_gap
from poise.types import Access, OutputKind, Outputs
from toys import Fixed, Scripted, bind, outputs

CLEAN = outputs([0.6, 0.3, 0.1], [0.2, 0.5, 0.3])
LATER = outputs([0.5, 0.1, 0.4], [0.45, 0.4, 0.15])
BOTH = torch.tensor([0, 1])
LABELS = [0, 0]  # the second is misclassified from the start
LOGITS = outputs([3.0, 1.0, 2.5], [-1.0, 0.5, -2.0], kind=OutputKind.LOGITS)


def test_margin() -> None:
    bound = bind(Margin(), CLEAN, LABELS)
    assert bound.loss(LOGITS, BOTH).tolist() == pytest.approx([0.5, -1.5])
    assert bound.merit(LOGITS, BOTH).tolist() == pytest.approx([0.5, -1.5])
    assert bound.done(LOGITS, BOTH).tolist() == [False, True]
    assert bound.accept(LOGITS, BOTH).tolist() == [True, True]
    assert bind(Margin(stop=False), CLEAN, LABELS).done(LOGITS, BOTH).tolist() == [False, False]
    scaled = Outputs(LOGITS.scores * 7)  # scale-dependent, its sign is not
    assert bound.loss(scaled, BOTH).tolist() == pytest.approx([3.5, -10.5])


def test_margin_of_probabilities_is_that_of_their_logarithms() -> None:
    bound = bind(Margin(), CLEAN, LABELS)
    assert bound.loss(LATER, BOTH).tolist() == pytest.approx([math.log(0.5 / 0.4), math.log(0.45 / 0.4)])


def test_probability_margin() -> None:
    bound = bind(ProbabilityMargin(), CLEAN, [0, 1])
    assert bound.loss(LATER, BOTH).tolist() == pytest.approx([0.1, -0.05])
    assert bound.merit(LATER, BOTH).tolist() == pytest.approx([0.1, -0.05])
    assert bound.done(LATER, BOTH).tolist() == [False, True]


def test_cross_entropy_ranks_by_the_margin() -> None:
    """A flipped label is never thrown away for a lower probability of the true class."""
    bound = bind(CrossEntropy(stop=True), CLEAN, [0, 0])
    assert bound.loss(LATER, BOTH).tolist() == pytest.approx([math.log(0.5), math.log(0.45)])
    flipped, lower = outputs([0.4, 0.45, 0.15]), outputs([0.35, 0.33, 0.32])
    one = torch.tensor([0])
    assert bound.loss(lower, one) < bound.loss(flipped, one)
    assert bound.merit(flipped, one) < 0 < bound.merit(lower, one)
    assert bound.done(flipped, one).item()
    assert not bound.done(lower, one).item()
    assert not bind(CrossEntropy(), CLEAN, [0, 0]).done(flipped, one).item()


def test_misclassify_sees_labels_alone() -> None:
    bound = bind(Misclassify(), CLEAN, [0, 1])
    assert bound.loss(LATER, BOTH).tolist() == [1.0, 0.0]
    assert bound.merit(LATER, BOTH).tolist() == [1.0, 0.0]
    assert bound.done(LATER, BOTH).tolist() == [False, True]
    assert Misclassify.access is Access.LABELS


def test_targeted() -> None:
    bound = bind(Targeted(classes=2), CLEAN, [0, 0])
    assert bound.loss(LATER, BOTH).tolist() == pytest.approx([-math.log(0.4), -math.log(0.15)])
    assert bound.done(outputs([0.3, 0.3, 0.4], [0.5, 0.1, 0.4]), BOTH).tolist() == [True, False]
    margin = bind(Targeted(classes=2, margin=True), CLEAN, [0, 0])
    assert margin.loss(LOGITS, BOTH).tolist() == pytest.approx([0.5, 2.5])
    never = bind(Targeted(classes=2, stop=False), CLEAN, [0, 0])
    assert not never.done(outputs([0.3, 0.3, 0.4], [0.1, 0.1, 0.8]), BOTH).any()


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_targeted_draws_a_wrong_class_evenly(classes: int) -> None:
    n = 3000
    labels = torch.arange(n) % classes
    clean = Outputs(torch.zeros(n, classes, dtype=torch.float64))
    bound = bind(Targeted(), clean, labels)
    certain = Outputs(torch.eye(classes, dtype=torch.float64), OutputKind.PROBABILITIES)
    hits = torch.stack([bound.done(Outputs(certain.scores[[c] * n]), torch.arange(n)) for c in range(classes)], dim=1)
    assert (hits.sum(dim=1) == 1).all()
    chosen = hits.long().argmax(dim=1)
    assert not (chosen == labels).any()
    ahead = ((chosen - labels) % classes).numpy()
    counts = np.bincount(ahead, minlength=classes)[1:]
    assert classes == 2 or stats.chisquare(counts).pvalue > 1e-3
    again = bind(Targeted(), clean, labels, seed=1)
    differs = torch.stack([again.done(Outputs(certain.scores[[c] * n]), torch.arange(n)) for c in range(classes)], 1)
    assert torch.equal(differs, hits) == (classes == 2)


def test_targeted_success_is_never_thrown_away() -> None:
    """Spec 1: success is checked on every query. A point labelled t wins, though an earlier one had a higher p_t."""
    path = {0.5: [0.6, 0.3, 0.1], 0.6: [0.5, 0.45, 0.05], 0.7: [0.3, 0.4, 0.3]}

    def answer(x: torch.Tensor) -> torch.Tensor:
        return torch.tensor([path[round(value, 3)] for value in x.flatten().tolist()]).log()

    target = poise.ModuleTarget(Fixed(answer), num_classes=3)
    images, labels = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    for objective in (Targeted(classes=1), Targeted(classes=1, margin=True)):
        result = poise.attack(target, objective, Scripted((0.1, 0.2)), Linf(0.3), images, labels)
        assert result.table["prediction_after"].to_list() == [1]
        assert result.table["stop"].to_list() == ["success"]
        assert result.table["queries_to_success"].to_list() == [3]


def test_towards_class() -> None:
    bound = bind(TowardsClass(2), CLEAN, [2, 0])
    assert bound.loss(LATER, BOTH).tolist() == pytest.approx([-math.log(0.4), -math.log(0.15)])
    assert not bound.done(outputs([0.0, 0.0, 1.0], [0.0, 0.0, 1.0]), BOTH).any()
    assert bound.accept(LATER, BOTH).all()
    assert bound.over.all()


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        (Targeted(classes=3), r"Targeted: classes must be in 0..2, got 3"),
        (Targeted(classes=-1), r"Targeted: classes must be in 0..2, got -1"),
        (TowardsClass(3), r"TowardsClass: index must be in 0..2, got 3"),
    ],
)
def test_refusals(goal: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bind(goal, CLEAN, [0, 0])


@pytest.mark.parametrize("tie", [[0.4, 0.4, 0.2], [0.2, 0.4, 0.4]])
def test_ties_count_for_the_lowest_index(tie: list[float]) -> None:
    """Labels 0 and 1 respectively: with the true label 0 and 2, only the second is a success."""
    label = 0 if tie[0] == 0.4 else 2
    bound = bind(Margin(), outputs([0.5, 0.2, 0.3]), [label])
    assert bound.done(outputs(tie), torch.tensor([0])).item() is (label == 2)
    assert bound.loss(outputs(tie), torch.tensor([0])).item() == 0


@pytest.mark.parametrize("distance", [1e-15, 1e-10, 1e-3, 5.0])
def test_gap_is_exact_to_a_rounding_step_on_either_side(distance: float) -> None:
    """p_a - p_b of two classes is tanh(d / 2), to one rounding step of a probability, from both sides."""
    answer = Outputs(torch.tensor([[distance, 0.0]], dtype=torch.float64))
    expected = math.tanh(distance / 2)
    assert probability_gap(answer, torch.tensor([0])).item() == pytest.approx(expected, rel=1e-12, abs=2.3e-16)
    assert probability_gap(answer, torch.tensor([1])).item() == pytest.approx(-expected, rel=1e-12, abs=2.3e-16)
