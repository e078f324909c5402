"""ThroughTemperature: the loss at z / T, everything else as served; only the product of temperatures counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import poise
from poise.checks.objectives import CheckError, check_objective
from poise.constraints import L2, Linf
from poise.errors import AccessError, InputError
from poise.objectives import MMA, OCA, RCA, UCA, ConfSmooth, CrossEntropy, KeepLabel, Margin, Misclassify, Targeted
from poise.objectives.base import Bound, Objective
from poise.objectives.misclassification import ProbabilityMargin
from poise.objectives.through_temperature import ThroughTemperature
from poise.rng import Rng
from poise.searches import PGD, Square
from poise.types import Access, AttackResult, OutputKind, Outputs
from toys import SmallCNN, bind, generator, linear_case, outputs

ONE = torch.tensor([0])
GOALS: list[Objective] = [
    UCA(), OCA(), UCA(follow="cross-entropy"), MMA(), RCA(), ConfSmooth(), Margin(), ProbabilityMargin(),
    CrossEntropy(), CrossEntropy(stop=True), Targeted(), KeepLabel(UCA()), KeepLabel(CrossEntropy(), 0.2),
]  # fmt: skip


class Served(nn.Module):
    """softmax(z / T_d): what the owner of the model puts behind it."""

    def __init__(self, inner: nn.Module, temperature: float) -> None:
        super().__init__()
        self.inner, self.temperature = inner, temperature

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) / self.temperature


# --- the contract ---


@pytest.mark.parametrize("goal", GOALS, ids=repr)
@pytest.mark.parametrize("temperature", [0.5, 3.0, 1000.0])
def test_every_wrapped_goal_keeps_the_contract(goal: Objective, temperature: float) -> None:
    check_objective(ThroughTemperature(goal, temperature))


def test_wrapped_from_outside() -> None:
    check_objective(KeepLabel(ThroughTemperature(UCA(), 3.0)))


@dataclass(frozen=True)
class Batched(ThroughTemperature):
    """Broken twin: the loss is taken at a temperature that depends on the whole batch."""

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        bound = super().bind(clean, labels, ids, rng)
        follow = type(bound).loss

        class Mixed(type(bound)):
            def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
                return follow(self, Outputs(outputs.logits / outputs.logits.std()), ids)

        return Mixed(k=bound.k, over=bound.over, inner=bound.inner, temperature=bound.temperature)


def test_a_loss_that_mixes_rows_is_refused() -> None:
    with pytest.raises(CheckError, match="other rows"):
        check_objective(Batched(CrossEntropy(), 2.0))


# --- what sees which temperature ---


def differing(wrap: Callable[[Objective, float], Objective], goal: Objective) -> set[str]:
    """Which readings of the wrapped goal at T = 4 differ from the goal's own on the same drawn answers."""
    source = generator(3)
    clean, later = (Outputs(4 * torch.randn(400, 5, generator=source, dtype=torch.float64)) for _ in range(2))
    labels, ids = torch.randint(5, (400,), generator=source), torch.arange(400)
    own, wrapped = bind(goal, clean, labels), bind(wrap(goal, 4.0), clean, labels)
    assert torch.equal(own.k, wrapped.k)
    assert torch.equal(own.over, wrapped.over)
    readings = ("loss", "merit", "accept", "done")
    return {
        name for name in readings if not torch.equal(getattr(own, name)(later, ids), getattr(wrapped, name)(later, ids))
    }


@pytest.mark.parametrize("goal", GOALS, ids=repr)
def test_only_the_loss_sees_the_temperature(goal: Objective) -> None:
    assert differing(ThroughTemperature, goal) == {"loss"}


@dataclass(frozen=True)
class _Everything(Bound):
    inner: Bound
    temperature: float

    def _at(self, outputs: Outputs) -> Outputs:
        return Outputs(outputs.logits / self.temperature)

    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return self.inner.loss(self._at(outputs), ids)

    def merit(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return self.inner.merit(self._at(outputs), ids)

    def accept(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return self.inner.accept(self._at(outputs), ids)

    def done(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return self.inner.done(self._at(outputs), ids)


@dataclass(frozen=True)
class JudgedThrough(ThroughTemperature):
    """Broken twin: results are judged on the attacker's own copy of the model."""

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        inner = self.objective.bind(clean, labels, ids, rng)
        return _Everything(k=inner.k, over=inner.over, inner=inner, temperature=self.temperature)


@dataclass(frozen=True)
class BoundThrough(ThroughTemperature):
    """Broken twin: the goal is bound on the clean answers through T, so that RCA's direction is another."""

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        return super().bind(Outputs(clean.logits / self.temperature), labels, ids, rng)


def test_broken_twins_are_seen() -> None:
    assert {"merit", "done"} <= differing(JudgedThrough, UCA(0.3))
    assert "accept" in differing(JudgedThrough, KeepLabel(UCA(), 0.2))
    with pytest.raises(AssertionError):
        differing(BoundThrough, RCA())


def test_hand_worked_losses() -> None:
    """z = (4, 0, 0) / T = 2 is (2, 0, 0): log p_0 = 2 - log(e^2 + 2); the margin halves; merit stays 4."""
    clean = outputs([4.0, 0.0, 0.0], kind=OutputKind.LOGITS)
    entropy = bind(ThroughTemperature(CrossEntropy(), 2.0), clean, [0])
    assert entropy.loss(clean, ONE).item() == pytest.approx(2 - math.log(math.exp(2) + 2), rel=1e-12)
    assert entropy.merit(clean, ONE).item() == 4
    margin = bind(ThroughTemperature(Margin(), 2.0), clean, [0])
    assert margin.loss(clean, ONE).item() == 2
    p = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64).softmax(0)
    assert bind(ThroughTemperature(UCA(), 2.0), clean, [0]).loss(clean, ONE).item() == pytest.approx(
        (p[0] - p[1]).item()
    )
    twice = bind(ThroughTemperature(ThroughTemperature(CrossEntropy(), 0.5), 4.0), clean, [0])
    assert twice.loss(clean, ONE).item() == pytest.approx(entropy.loss(clean, ONE).item(), rel=1e-12)


def test_probabilities_are_scaled_in_their_logarithm() -> None:
    """p = (0.8, 0.2) through T = 2: weights sqrt(.8) and sqrt(.2), so 2 : 1."""
    clean = outputs([0.8, 0.2])
    assert bind(ThroughTemperature(CrossEntropy(), 2.0), clean, [0]).loss(clean, ONE).item() == pytest.approx(
        math.log(2 / 3)
    )


def test_saturated_answers_regain_a_gradient() -> None:
    """A float32 logit gap of 2000: the cross-entropy is flat as served and not through T = 1000."""
    slopes = []
    for temperature in (1.0, 1000.0):
        leaf = torch.tensor([[2000.0, 0.0, -500.0]], requires_grad=True)
        bound = bind(ThroughTemperature(CrossEntropy(), temperature), Outputs(leaf.detach()), [0])
        bound.loss(Outputs(leaf), ONE).sum().backward()
        slopes.append(leaf.grad)
    assert not slopes[0].any()
    assert bool((slopes[1] != 0).all())


@pytest.mark.parametrize("temperature", [1e-306, 1e-30, 1e-8, 1e8, 1e300])
@pytest.mark.parametrize("goal", [CrossEntropy(), Margin(), UCA(), ConfSmooth()], ids=repr)
def test_extreme_temperatures_stay_finite(goal: Objective, temperature: float) -> None:
    leaf = torch.tensor([[1e4, -1e4, 3.0], [0.0, 0.0, 0.0]], requires_grad=True)
    bound = bind(ThroughTemperature(goal, temperature), Outputs(leaf.detach()), [0, 1])
    loss = bound.loss(Outputs(leaf), torch.arange(2))
    assert bool(loss.isfinite().all())
    if temperature > 1e-38:  # below, 1 / T itself does not fit into the gradient's float32
        loss.sum().backward()
        assert bool(leaf.grad.isfinite().all())


# --- properties of the attack ---


def attacked(
    served_at: float,
    through: float | None,
    search: object = None,
    constraint: object = None,
    goal: Objective | None = None,
) -> AttackResult:
    """A small float64 network served at one temperature, attacked through another (None: without the wrapper)."""
    module = Served(SmallCNN(size=6, seed=2).double().eval(), served_at)
    target = poise.ModuleTarget(module, num_classes=4)
    images = torch.rand(12, 1, 6, 6, generator=generator(5), dtype=torch.float64)
    labels = target.query(images, torch.arange(12)).labels
    goal = goal or CrossEntropy()
    goal = goal if through is None else ThroughTemperature(goal, through)
    search = search or PGD(steps=8, step=0.01, undo=False)
    return poise.attack(target, goal, search, constraint or Linf(0.05), images, labels, budget=40)


@pytest.mark.parametrize("constraint", [Linf(0.05), L2(0.3)])
@pytest.mark.parametrize("goal", [CrossEntropy(), KeepLabel(CrossEntropy(), 0), Margin(stop=False)], ids=repr)
@pytest.mark.parametrize("served_at", [2.0**-10, 1e-3, 1e6])
def test_only_the_product_of_temperatures_counts(constraint: object, goal: Objective, served_at: float) -> None:
    """P2: through 1 / T_d the images are those of the attack on z; through 3 / T_d those of T_a = 3 on z."""
    for product in (1.0, 3.0):
        plain = attacked(1.0, product, constraint=constraint, goal=goal)
        through = attacked(served_at, product / served_at, constraint=constraint, goal=goal)
        torch.testing.assert_close(through.images, plain.images, rtol=0, atol=1e-9)
    assert bool((through.images != attacked(1.0, None).images).any()), "nothing depends on the product"


def test_powers_of_two_are_exact() -> None:
    """No rounding at all: the same bits, and the same as without the wrapper."""
    plain = attacked(1.0, None)
    assert torch.equal(attacked(1.0, 1.0).images, plain.images)
    assert torch.equal(attacked(2.0**-10, 2.0**10).images, plain.images)
    assert not torch.equal(attacked(2.0**-10, 1.0).images, plain.images), "a temperature that changes nothing"


@pytest.mark.parametrize("served_at", [1e-3, 1.0, 1e3])
def test_labels_do_not_see_a_temperature(served_at: float) -> None:
    """P1, for every answer that the attack saw; and what is ranked is the served margin."""
    here, there = attacked(1.0, 0.7), attacked(served_at, 0.7 / served_at)
    assert here.table["prediction_after"].to_list() == there.table["prediction_after"].to_list()
    margins = [torch.tensor(result.table["loss_after"].to_list(), dtype=torch.float64) for result in (here, there)]
    torch.testing.assert_close(margins[1] * served_at, margins[0], rtol=1e-9, atol=1e-9)


def test_keep_label_inside_and_outside_are_one() -> None:
    inside = attacked(1e-2, 100.0, goal=KeepLabel(UCA()), search=Square(start="clean"))
    target = poise.ModuleTarget(Served(SmallCNN(size=6, seed=2).double().eval(), 1e-2), num_classes=4)
    images = torch.rand(12, 1, 6, 6, generator=generator(5), dtype=torch.float64)
    labels = target.query(images, torch.arange(12)).labels
    goal = KeepLabel(ThroughTemperature(UCA(), 100.0))
    outside = poise.attack(target, goal, Square(start="clean"), Linf(0.05), images, labels, budget=40)
    assert torch.equal(inside.images, outside.images)
    assert bool((inside.images != images).any())
    assert inside.table["prediction_after"].to_list() == labels.tolist()


def test_a_confident_model_stands_still_until_it_is_looked_through() -> None:
    """P3 on a float32 linear model served at 1e-3."""
    case = linear_case(9, dtype=torch.float32, scale=20.0)
    served, plain = (poise.ModuleTarget(Served(case.module(), T), num_classes=3) for T in (1e-3, 1.0))
    search = PGD(steps=5, step=0.02, undo=False)

    def run(target: poise.Target, goal: Objective) -> AttackResult:
        return poise.attack(target, goal, search, Linf(0.1), case.images, predicted, budget=10)

    predicted = plain.query(case.images, torch.arange(9)).labels
    assert torch.equal(run(served, CrossEntropy()).images, case.images)
    through = run(served, ThroughTemperature(CrossEntropy(), 1e3))
    assert bool((through.images != case.images).flatten(1).any(1).all())
    torch.testing.assert_close(through.images, run(plain, CrossEntropy()).images, rtol=0, atol=1e-6)


# --- refusals ---


@pytest.mark.parametrize(
    ("temperature", "message"),
    [
        (0, "ThroughTemperature: temperature must be positive, got 0"),
        (-2.5, "ThroughTemperature: temperature must be positive, got -2.5"),
        (math.nan, "ThroughTemperature: temperature must be positive, got nan"),
        (math.inf, "ThroughTemperature: temperature must be finite, got inf"),
    ],
)
def test_bad_temperatures(temperature: float, message: str) -> None:
    with pytest.raises(InputError) as caught:
        ThroughTemperature(CrossEntropy(), temperature)
    assert str(caught.value) == message


def test_access_is_what_the_goal_needs_and_scores_at_least() -> None:
    assert ThroughTemperature(Misclassify(), 2.0).access is Access.SCORES
    assert ThroughTemperature(UCA(), 2.0).access is Access.SCORES
    target = poise.ModuleTarget(SmallCNN(), num_classes=4, access=Access.LABELS)
    goal, images = ThroughTemperature(Misclassify(), 2.0), torch.rand(1, 1, 8, 8)
    with pytest.raises(AccessError, match="with Square needs access 'scores', the target gives 'labels'"):
        poise.attack(target, goal, Square(), Linf(0.1), images, torch.tensor([0]))


def test_a_label_margin_is_measured_as_served() -> None:
    """Served at 1e6 no probability gap reaches 1e-4: KeepLabel then accepts nothing, whatever is followed."""
    stuck = attacked(1e6, 1e-6, goal=KeepLabel(CrossEntropy()))
    assert not any(stuck.table["accepted"])
    assert stuck.table["linf"].to_list() == [0.0] * 12
