"""MaxConfidence: aims, ranking (rule C) and the confidence put aside (rule A), on the spec's examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import poise
from poise.checks.objectives import check_objective
from poise.constraints import Linf
from poise.errors import InputError
from poise.objectives import KeepLabel, MaxConfidence
from poise.objectives.base import Bound
from poise.objectives.max_confidence import _SurelyWrong
from poise.rng import Rng
from poise.searches import Noise
from poise.types import Outputs
from toys import Fixed, Scripted, bind, outputs

A, B, C = [0.5, 0.4, 0.1], [0.33, 0.36, 0.31], [0.33, 0.33, 0.34]
"""Spec 23: three classes, true class 0; the class-1 optimum is A (still class 0), the class-2 optimum is C."""


def pick(goal: object, *rows: list[float], label: int = 0) -> tuple[int, float]:
    """Which of the answers a driver would return (lowest merit), and the confidence put aside."""
    bound, ids = bind(goal, outputs(*rows), [label] * len(rows)), torch.arange(len(rows))
    answer = outputs(*rows)
    return int(bound.merit(answer, ids).argmin()), -float(bound.aside(answer, ids).min())


@pytest.mark.parametrize("goal", [MaxConfidence(), MaxConfidence(tol=0.0), KeepLabel(MaxConfidence(), 0.0)], ids=repr)
def test_contract(goal: object) -> None:
    check_objective(goal)


def test_the_specs_example() -> None:
    """C is returned although B fails as well and A has the surer wrong class; A's confidence is what is reported."""
    row, aside = pick(MaxConfidence(), A, B, C)
    assert row == 1  # B: .36 in a wrong class that wins; C has .34
    assert aside == pytest.approx(0.4)
    row, aside = pick(MaxConfidence(), A, C)
    assert row == 1
    assert aside == pytest.approx(0.4)


def test_a_wrapper_passes_what_is_put_aside_on() -> None:
    assert pick(KeepLabel(MaxConfidence(), 0.0), A, B, C)[1] == pytest.approx(0.4)
    assert pick(KeepLabel(MaxConfidence(), 0.0), A, C) == pick(MaxConfidence(), A, C)


def test_without_an_error_the_surest_wrong_class_is_kept() -> None:
    row, aside = pick(MaxConfidence(), [0.9, 0.06, 0.04], [0.6, 0.25, 0.15], [0.6, 0.1, 0.3])
    assert row == 2
    assert aside == pytest.approx(0.3)


def test_a_tie_for_the_true_class_is_no_error_and_for_a_lower_one_is() -> None:
    """Predictions take the lowest index: (.4, .4) with y = 0 is right, with y = 1 wrong."""
    bound = bind(MaxConfidence(), outputs([0.4, 0.4, 0.2], [0.4, 0.4, 0.2]), [0, 1])
    merit = bound.merit(outputs([0.4, 0.4, 0.2], [0.4, 0.4, 0.2]), torch.arange(2))
    assert merit.tolist() == pytest.approx([-0.4, -1.4])


def test_merit_falls_with_the_wrong_confidence_of_errors_and_stays_above_it_elsewhere() -> None:
    """Any error ranks before any correct answer: an error has merit at most -1 - 1/K, others above -1/2 or at it."""
    rows = [[0.5, 0.5, 0.0], [0.35, 0.34, 0.31], [0.3, 0.36, 0.34], [0.01, 0.98, 0.01], [0.0, 0.0, 1.0]]
    bound = bind(MaxConfidence(), outputs(*rows), [0] * 5)
    merit = bound.merit(outputs(*rows), torch.arange(5)).tolist()
    assert merit == pytest.approx([-0.5, -0.34, -1.36, -1.98, -2.0])


@pytest.mark.parametrize(
    ("confidence", "tol", "expected"), [(0.9995, 1e-3, True), (0.998, 1e-3, False), (0.5, 0, False)]
)
def test_done(confidence: float, tol: float, expected: bool) -> None:
    answer = outputs([1 - confidence, confidence])
    assert bind(MaxConfidence(tol=tol), answer, [0]).done(answer, torch.tensor([0])).item() is expected
    assert bind(MaxConfidence(tol=tol), answer, [1]).done(answer, torch.tensor([0])).item() is False


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_aims_are_the_other_classes_each_once(classes: int) -> None:
    """aim r is class (y + 1 + r) mod K, so r = 0 .. K - 2 never is y; the loss without an aim is the best of them."""
    answer = Outputs(torch.randn(classes, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    everyone = torch.arange(classes)
    bound = bind(MaxConfidence(), answer, everyone)
    losses = []
    for r in range(classes - 1):
        loss = bound.aimed(answer, everyone, torch.full((classes,), float(r)))
        expected = [-answer.log_probabilities[y, (y + 1 + r) % classes] for y in range(classes)]
        torch.testing.assert_close(loss, torch.stack(expected))
        losses.append(loss)
    torch.testing.assert_close(bound.loss(answer, everyone), torch.stack(losses).amin(dim=0))


def test_which_point_is_returned_and_what_is_put_aside_by_a_run() -> None:
    """A toy that answers A, B, C in turn, through attack(): the table holds both picks."""
    table_ = torch.tensor([[0.8, 0.1, 0.1], A, C, [0.45, 0.35, 0.2]]).double()
    target = poise.ModuleTarget(
        Fixed(lambda x: table_[(x[:, 0, 0, 0] * 10).round().long()]), num_classes=3, outputs="probabilities"
    )
    images = torch.zeros(1, 1, 1, 1)
    result = poise.attack(
        target, MaxConfidence(), Scripted((0.1, 0.2, 0.3)), Linf(0.5), images, torch.tensor([0]), budget=9
    )
    assert result.images.item() == pytest.approx(0.2)
    assert result.table["confidence_after"].item() == pytest.approx(0.34)
    assert result.table["wrong_confidence"].item() == pytest.approx(0.4)
    outside = poise.attack(
        target, MaxConfidence(), Scripted((0.1, 0.2, 0.3)), Linf(0.05), images, torch.tensor([0]), budget=9
    )
    assert outside.table["wrong_confidence"].item() == pytest.approx(0.1)  # points outside of the ball do not count
    probed = poise.attack(
        target, MaxConfidence(), Scripted((0.1, 0.2), probe=(0,)), Linf(0.5), images, torch.tensor([0]), budget=9
    )
    assert probed.table["wrong_confidence"].item() == pytest.approx(0.34)  # nor do probes


def bounds_every_failure(make: Callable[[], object]) -> None:
    """Spec 25: S004's counterexample. Kept is (.8, .2, 0); (.1, .11, ...) fails at .105. UB(t) must be 1 there."""
    spread = 0.79 / 8  # true .1, best wrong .11, the rest spread over eight more classes
    answers = torch.tensor([[0.8, 0.2, *[0.0] * 8], [0.1, 0.11, *[spread] * 8]]).double()
    target = poise.ModuleTarget(
        Fixed(lambda x: answers[(x[:, 0, 0, 0] > 0.5).long()]), num_classes=10, outputs="probabilities"
    )
    result = poise.attack(
        target, make(), Noise(), Linf(1.0), torch.full((1, 1, 1, 1), 0.4), torch.tensor([0]), budget=20
    )
    reported = result.table["wrong_confidence"].item()
    assert result.table["prediction_after"].item() == 1
    assert result.table["confidence_after"].item() == pytest.approx(0.11)
    for t in (0.0, 0.1, 0.105, 0.15, 0.19):
        possible = any(float(row.max()) > t and int(row.argmax()) != 0 for row in answers)
        assert (reported > t) >= possible
    assert reported == pytest.approx(0.2)  # rule A: the surest wrong class, though the label was right there


def test_the_upper_bound_holds_on_the_counterexample() -> None:
    bounds_every_failure(MaxConfidence)


# --- broken twins ---


@dataclass(frozen=True)
class RuleC(MaxConfidence):
    """Puts aside only the confidence of points that are errors: what cleverhans does."""

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        return _OnlyErrors(k=clean.labels, over=clean.labels >= 0, y=labels, tol=self.tol)


class _OnlyErrors(_SurelyWrong):
    def aside(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return super().aside(outputs, ids) * (outputs.labels != self.y[ids])

    def merit(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return _SurelyWrong.aside(self, outputs, ids) - (outputs.labels != self.y[ids]).double()


@dataclass(frozen=True)
class RuleA(MaxConfidence):
    """Ranks by the wrong confidence alone."""

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        return _Sure(k=clean.labels, over=clean.labels >= 0, y=labels, tol=self.tol)


class _Sure(_SurelyWrong):
    def merit(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return self.aside(outputs, ids)


def test_broken_rules_are_noticed() -> None:
    for twin in (RuleC, RuleA):
        with pytest.raises(AssertionError):
            bounds_every_failure(twin)
    assert pick(RuleA(), A, B, C)[0] == 0
    assert pick(RuleC(), A, B, C)[1] == pytest.approx(0.36)


@pytest.mark.parametrize("tol", [-0.1, 1.0])
def test_refusals(tol: float) -> None:
    with pytest.raises(InputError, match=rf"MaxConfidence: tol must be in \[0, 1\), got {tol}"):
        MaxConfidence(tol=tol)
