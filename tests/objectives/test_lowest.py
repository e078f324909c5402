"""MinConfidence, RandomConfidence and the divergence they follow: scipy, hand-worked answers, gradcheck, both ends."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from poise.checks.objectives import check_objective
from poise.errors import InputError
from poise.objectives import MMA, OCA, RCA, KeepLabel, MinConfidence, RandomConfidence
from poise.objectives.lowest import divergence
from poise.types import OutputKind, Outputs
from toys import bind, generator, outputs

Divergence = Callable[[Outputs, Tensor], Tensor]
ONE = torch.tensor([0])
HUNDRED = torch.arange(100)


def answers(seed: int, classes: int, scale: float = 2.0) -> Outputs:
    return Outputs(scale * torch.randn(100, classes, generator=generator(seed), dtype=torch.float64))


def at(function: Divergence, given_: Outputs, order: float) -> Tensor:
    return function(given_, torch.full((len(given_.scores),), order, dtype=torch.float64))


# --- the divergence ---


def order_0_is_kl_of_uniform(function: Divergence) -> None:
    for classes in (2, 3, 10, 100):
        given_ = answers(classes, classes)
        expected = stats.entropy(np.full((1, classes), 1 / classes), given_.probabilities.numpy(), axis=1)
        np.testing.assert_allclose(at(function, given_, 0.0).numpy(), expected, rtol=0, atol=1e-12)


def orders_above_1_are_renyis(function: Divergence) -> None:
    """log(sum p^q u^(1 - q)) / (q - 1), term by term."""
    for classes, order in ((2, 2.0), (3, 2.0), (10, 64.0), (5, 1.3), (100, 2.0)):
        given_ = answers(classes, classes)
        for row, got in zip(given_.probabilities.tolist(), at(function, given_, order).tolist(), strict=True):
            expected = math.log(math.fsum(p**order * (1 / classes) ** (1 - order) for p in row)) / (order - 1)
            assert got == pytest.approx(expected, abs=1e-12, rel=0)


def the_floor_is_0_at_uniform(function: Divergence) -> None:
    for classes in (2, 3, 10, 1000):
        uniform = Outputs(torch.full((1, classes), 7.0, dtype=torch.float64))
        for order in (0.0, 1.3, 2.0, 64.0):
            assert at(function, uniform, order).item() == pytest.approx(0, abs=1e-12)


def it_never_falls_with_the_order(function: Divergence) -> None:
    """Renyi's divergences are ordered by q and end at log(K max p)."""
    for classes in (2, 7):
        given_ = answers(1, classes)
        values = [at(function, given_, order) for order in (1.0001, 1.01, 1.3, 2.0, 8.0, 64.0, 1e4)]
        for low, high in itertools.pairwise(values):
            assert bool((high >= low - 1e-9).all())
        torch.testing.assert_close(values[-1], (classes * given_.confidence).log(), rtol=0, atol=1e-3)


def it_is_nowhere_negative(function: Divergence) -> None:
    for order in (0.0, 1.3, 2.0, 64.0):
        assert bool((at(function, answers(2, 5, scale=0.1), order) > 0).all())


def each_row_has_its_own_order(function: Divergence) -> None:
    given_ = answers(3, 4)
    orders = torch.tensor([0.0, 1.3, 2.0, 64.0, 1.7]).double().repeat(20)
    alone = torch.cat([function(Outputs(given_.scores[i : i + 1]), orders[i : i + 1]) for i in range(100)])
    torch.testing.assert_close(function(given_, orders), alone, rtol=1e-12, atol=0)


CHECKS = [
    order_0_is_kl_of_uniform,
    orders_above_1_are_renyis,
    the_floor_is_0_at_uniform,
    it_never_falls_with_the_order,
    it_is_nowhere_negative,
    each_row_has_its_own_order,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_divergence(check: Callable[[Divergence], None]) -> None:
    check(divergence)


def turned_round(given_: Outputs, order: Tensor) -> Tensor:
    """KL(p || u) at order 0."""
    p, log_p = given_.probabilities, given_.log_probabilities
    kl = (p * log_p).sum(dim=1) + math.log(p.shape[1])
    return torch.where(order == 0, kl, divergence(given_, order))


def not_normalised(given_: Outputs, order: Tensor) -> Tensor:
    return divergence(given_, order) - math.log(given_.scores.shape[1])


def upside_down(given_: Outputs, order: Tensor) -> Tensor:
    return -divergence(given_, order)


def one_order_for_all(given_: Outputs, order: Tensor) -> Tensor:
    return divergence(given_, order[:1].expand_as(order))


@pytest.mark.parametrize(
    ("check", "twin"),
    [
        (order_0_is_kl_of_uniform, turned_round),
        (order_0_is_kl_of_uniform, not_normalised),
        (orders_above_1_are_renyis, not_normalised),
        (the_floor_is_0_at_uniform, not_normalised),
        (it_never_falls_with_the_order, upside_down),
        (it_is_nowhere_negative, upside_down),
        (each_row_has_its_own_order, one_order_for_all),
    ],
)
def test_broken_divergences_are_noticed(check: Callable[[Divergence], None], twin: Divergence) -> None:
    with pytest.raises(AssertionError):
        check(twin)


@pytest.mark.parametrize("order", [0.0, 1.0001, 1.3, 2.0, 64.0])
def test_gradient(order: float) -> None:
    scores = torch.randn(4, 5, generator=generator(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: at(divergence, Outputs(z), order), (scores,))


@given(
    size=st.sampled_from([50.0, 800.0, 1e4]), order=st.sampled_from([0.0, 1.0000001, 1.3, 64.0]), k=st.integers(2, 9)
)
def test_saturated_answers_have_finite_values_and_gradients(size: float, order: float, k: int) -> None:
    scores = torch.zeros(2, k, dtype=torch.float32)
    scores[0, 1], scores[1, 0] = size, -size
    scores.requires_grad_(True)
    value = at(divergence, Outputs(scores), order)
    (slope,) = torch.autograd.grad(value.sum(), scores)
    assert bool(torch.isfinite(value).all())
    assert bool(torch.isfinite(slope).all())
    assert bool((slope[0] != 0).any()) or order != 0  # order 0 still pulls at a probability of exactly 1


# --- the contract ---


GOALS = [
    MinConfidence(), MinConfidence(order=2.0, weight=1.0), MinConfidence("goal"), RandomConfidence(),
    KeepLabel(MinConfidence()), KeepLabel(RandomConfidence()), MMA(under=MinConfidence(), over=OCA()),
]  # fmt: skip


@pytest.mark.parametrize("goal", GOALS, ids=repr)
def test_contract(goal: object) -> None:
    check_objective(goal)


@pytest.mark.parametrize("goal", GOALS, ids=repr)
def test_an_aim_reaches_the_inner_goal(goal: object) -> None:
    """Wrapped or split: aim 0 and aim 64 are other losses wherever the confidence is to fall, the same elsewhere."""
    clean = answers(5, 6)
    bound = bind(goal, clean, torch.where(HUNDRED % 2 == 0, clean.labels, (clean.labels + 1) % 6))
    low, high = (bound.aimed(clean, HUNDRED, torch.full((100,), order).double()) for order in (0.0, 64.0))
    assert torch.equal(low == high, bound.over)
    assert not bound.over.all()


# --- MinConfidence by hand ---


def hand(goal: MinConfidence, *later: float) -> tuple[float, float, bool, bool]:
    """loss, merit, accept, done at an answer, for a clean prediction of class 0 of 3."""
    bound = bind(goal, outputs([0.5, 0.3, 0.2]), [1])
    now = outputs(list(later))
    values = (bound.loss(now, ONE), bound.merit(now, ONE), bound.accept(now, ONE), bound.done(now, ONE))
    return tuple(value.item() for value in values)


def test_where_the_label_is_kept() -> None:
    loss, merit, accept, done = hand(MinConfidence(), 0.5, 0.3, 0.2)
    assert loss == pytest.approx(-(math.log(0.5) + math.log(0.3) + math.log(0.2)) / 3 - math.log(3), abs=1e-9)
    assert merit == pytest.approx(1 / 6, abs=1e-9)
    assert accept
    assert not done


def test_a_lost_label_costs_by_the_logits_that_are_missing() -> None:
    kept, *_ = hand(MinConfidence(weight=0.0), 0.3, 0.5, 0.2)
    for weight in (0.1, 2.0):
        loss, merit, accept, _ = hand(MinConfidence(weight=weight), 0.3, 0.5, 0.2)
        assert loss - kept == pytest.approx(weight * math.log(0.5 / 0.3), abs=1e-9)
        assert merit == pytest.approx(0.3 - 1 / 3, abs=1e-9)  # may be negative: that point is no result
        assert not accept


def test_the_order_is_followed() -> None:
    loss, *_ = hand(MinConfidence(order=2.0), 0.5, 0.3, 0.2)
    assert loss == pytest.approx(math.log(3 * (0.25 + 0.09 + 0.04)), abs=1e-9)


def test_the_goal_itself_can_be_followed() -> None:
    loss, merit, *_ = hand(MinConfidence("goal"), 0.45, 0.35, 0.2)
    assert loss == merit == pytest.approx(0.45 - 1 / 3, abs=1e-9)


@pytest.mark.parametrize(("confidence", "expected"), [(1 / 3 + 4e-4, True), (1 / 3 + 6e-4, False)])
def test_done_near_the_floor(confidence: float, expected: bool) -> None:
    rest = (1 - confidence) / 2
    assert hand(MinConfidence(), confidence, rest, rest)[3] is expected
    assert hand(MinConfidence(tol=0.0), confidence, rest, rest)[3] is False


def test_a_tie_goes_to_the_lowest_class() -> None:
    assert hand(MinConfidence(), 0.4, 0.4, 0.2)[2] is True
    with_margin = bind(KeepLabel(MinConfidence()), outputs([0.5, 0.3, 0.2]), [1])
    assert with_margin.accept(outputs([0.4, 0.4, 0.2]), ONE).tolist() == [False]


# --- RandomConfidence ---


def drawn(seed: int, classes: int = 4, labels: Tensor = HUNDRED % 4) -> tuple[object, Outputs]:
    clean = answers(seed, classes)
    return bind(RandomConfidence(), clean, labels, seed=seed), clean


def test_goals_are_those_of_rca() -> None:
    bound, clean = drawn(3)
    assert torch.equal(bound.goal, bind(RCA(), clean, HUNDRED % 4, seed=3).goal)
    assert bool(((bound.goal >= 0.25) & (bound.goal < 1)).all())
    assert stats.kstest((bound.goal.numpy() - 0.25) / 0.75, "uniform").pvalue > 1e-3
    assert torch.equal(bound.over, bound.goal > clean.confidence)
    assert not torch.equal(bound.goal, drawn(4)[0].goal)


def test_two_sides_of_the_goal() -> None:
    """Above it the divergence falls, below it -log p_k; the merit is the distance, the label's price the same."""
    bound, clean = drawn(3)
    for later, flips in ((clean, False), (answers(9, 4), True)):
        own = later.probabilities.gather(1, bound.k[:, None])[:, 0]
        other = later.logits.scatter(1, bound.k[:, None], -torch.inf).amax(dim=1)
        missing = torch.relu(other - later.logits.gather(1, bound.k[:, None])[:, 0])
        assert bool((missing > 0).any()) == flips
        kl = torch.from_numpy(stats.entropy(np.full((1, 4), 0.25), later.probabilities.numpy(), axis=1))
        expected = torch.where(own > bound.goal, kl, -own.log()) + 0.1 * missing
        torch.testing.assert_close(bound.loss(later, HUNDRED), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(bound.merit(later, HUNDRED), (own - bound.goal).abs(), rtol=0, atol=1e-12)
        assert torch.equal(bound.accept(later, HUNDRED), later.labels == bound.k)


def test_done_within_the_tolerance_on_both_sides() -> None:
    bound, _ = drawn(3, classes=2, labels=HUNDRED % 2)
    for away, expected in ((0.0049, True), (-0.0049, True), (0.0051, False), (-0.0051, False)):
        own = bound.goal + away
        pair = torch.stack([torch.where(bound.k == 0, own, 1 - own), torch.where(bound.k == 0, 1 - own, own)], dim=1)
        inside = (own > 0.01) & (own < 0.99)
        done = bound.done(Outputs(pair, OutputKind.PROBABILITIES), HUNDRED)
        assert bool((done == expected)[inside].all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MinConfidence("loss"), "MinConfidence: follow must be 'penalty' or 'goal', got 'loss'"),
        (lambda: MinConfidence(order=1.0), "MinConfidence: order must be 0 or above 1, got 1.0"),
        (lambda: MinConfidence(order=0.5), "MinConfidence: order must be 0 or above 1, got 0.5"),
        (lambda: MinConfidence(order=math.nan), "MinConfidence: order must be 0 or above 1, got nan"),
        (lambda: MinConfidence(weight=-0.1), "MinConfidence: weight must be a finite number of at least 0, got -0.1"),
        (
            lambda: MinConfidence(weight=math.inf),
            "MinConfidence: weight must be a finite number of at least 0, got inf",
        ),
        (lambda: MinConfidence(tol=1.0), r"MinConfidence: tol must be in \[0, 1\), got 1.0"),
        (lambda: RandomConfidence(tol=-1.0), r"RandomConfidence: tol must be in \[0, 1\), got -1.0"),
        (
            lambda: RandomConfidence(weight=-0.1),
            "RandomConfidence: weight must be a finite number of at least 0, got -0.1",
        ),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
