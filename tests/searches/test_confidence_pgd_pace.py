"""ConfidencePGD's paces: which one a sample takes, how its steps fall and its orders rise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from poise.constraints import L2, Constraint, Linf
from poise.objectives import KeepLabel, MinConfidence
from poise.searches import ConfidencePGD, Problem
from poise.searches.base import Steps
from poise.searches.confidence_pgd import FAR, LOOK, NEAR, Pace, dual_norm
from toys import Case, drive, generator, linear_case

GOAL = KeepLabel(MinConfidence(tol=0.0))


def model(slope: float, margin: float) -> Case:
    """One pixel at .5, K = 2: logits (margin + slope (x - .5), 0)."""
    weight = torch.tensor([slope, 0.0], dtype=torch.float64).view(2, 1, 1, 1)
    bias = torch.tensor([margin - slope / 2, 0.0], dtype=torch.float64)
    image = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    return Case(image, torch.zeros(1, dtype=torch.long), torch.arange(1), weight, bias)


def reach(slope: float, margin: float, eps: float) -> float:
    """KL(u || p) = -log(p q) / 2 - log 2 at p = sigmoid(margin); its slope in x is (p - 1/2) slope."""
    p = 1 / (1 + math.exp(-margin))
    return (-math.log(p * (1 - p)) / 2 - math.log(2)) / (eps * (p - 0.5) * slope)


@dataclass(frozen=True)
class Walked:
    """What one run told: step lengths and aims of its points after the clean one, margins of all its points."""

    steps: list[float]
    aims: list[float]
    margins: list[float]


def walked(search: ConfidencePGD, case: Case, eps: float = 0.1) -> Walked:
    aims: list[float] = []

    @dataclass(frozen=True)
    class Heard:
        access = search.access

        def run(self, problem: Problem) -> Steps:
            steps = search.run(problem)
            ask = next(steps)
            while True:
                reply = yield ask
                try:
                    ask = steps.send(reply)
                except StopIteration:
                    return
                aims.append(float(ask.aim[0]))

    run = drive(case, GOAL, Heard(), Linf(eps), trace=True, budget=500)
    steps = [float(at.step[0]) for at in run.trace[1:] if at.step is not None]
    return Walked(steps, aims, [float(at.margin[0]) for at in run.trace])


def goes_at(told: Walked, pace: Pace, steps: int, since: int, until: int) -> None:
    """The steps from `since` up to `until` are the pace's."""
    for t in range(since, until):
        assert told.steps[t] == pytest.approx(pace.step(t / steps) * 0.1, rel=1e-5)
        assert told.aims[t] == pytest.approx(pace.order((t + 1) / steps), rel=1e-5)


def chooses_by_reach(search: ConfidencePGD) -> None:
    """Two linear models, the same but for their slopes: after two near steps one needs .12 of the ball, one .47."""
    for slope, far in ((20.0, False), (12.0, True)):
        told = walked(search, model(slope, 2.0))
        goes_at(told, NEAR, search.steps, 0, LOOK)
        assert (reach(slope, told.margins[LOOK], 0.1) > 0.3) == far
        goes_at(told, FAR if far else NEAR, search.steps, LOOK, search.steps)


def test_near_and_far_are_chosen_by_the_reach_after_two_steps() -> None:
    chooses_by_reach(ConfidencePGD(steps=8))


@pytest.mark.parametrize("twin", [{"pace": "other"}, {"pace": "near"}, {"pace": "far"}, {"far": 0.1}, {"far": 0.6}])
def test_another_choice_is_noticed(twin: dict) -> None:
    with pytest.raises(AssertionError):
        chooses_by_reach(ConfidencePGD(steps=8, **twin))


@pytest.mark.parametrize(("slope", "far"), [(20.0, False), (12.0, True)])
def test_the_pace_can_be_forced_and_turned_round(slope: float, far: bool) -> None:
    for pace, first, then in (
        ("near", NEAR, NEAR),
        ("far", FAR, FAR),
        ("reach", NEAR, FAR if far else NEAR),
        ("other", NEAR, NEAR if far else FAR),
    ):
        told = walked(ConfidencePGD(steps=6, pace=pace), model(slope, 2.0))
        goes_at(told, first, 6, 0, LOOK)
        goes_at(told, then, 6, LOOK, 6)


def test_the_level_is_the_callers() -> None:
    at = reach(12.0, walked(ConfidencePGD(steps=8), model(12.0, 2.0)).margins[LOOK], 0.1)
    for far, pace in ((at * 1.001, NEAR), (at * 0.999, FAR)):
        goes_at(walked(ConfidencePGD(steps=8, far=far), model(12.0, 2.0)), pace, 8, LOOK, 8)


def test_a_short_run_has_no_time_to_look() -> None:
    for steps in range(1, LOOK + 1):
        goes_at(walked(ConfidencePGD(steps=steps, pace="other"), model(20.0, 2.0)), NEAR, steps, 0, steps)


def test_samples_of_one_batch_choose_for_themselves() -> None:
    case = linear_case(40, scale=2.0)
    run = drive(case, GOAL, ConfidencePGD(steps=6), Linf(0.06), trace=True)
    expected = sorted([NEAR.step(LOOK / 6) * 0.06, FAR.step(LOOK / 6) * 0.06])
    assert sorted(set(run.trace[LOOK + 1].step.tolist())) == pytest.approx(expected)


@pytest.mark.parametrize(("constraint", "norm"), [(Linf(0.1), 1), (L2(0.1), 2)])
def test_dual_norm(constraint: Constraint, norm: int) -> None:
    gradient = torch.randn(5, 2, 3, 3, generator=generator(0), dtype=torch.float64)
    expected = np.linalg.norm(gradient.flatten(1).numpy(), ord=norm, axis=1)
    np.testing.assert_allclose(dual_norm(constraint, gradient).numpy(), expected, rtol=1e-12)
    assert dual_norm(constraint, gradient * 0).tolist() == [0] * 5


# --- paces ---


@pytest.mark.parametrize("pace", [NEAR, FAR, Pace(1.0, 0.1, 0.5, (2.0, 8.0))])
def test_paces_fall_and_rise_geometrically(pace: Pace) -> None:
    shares = [i / 10 for i in range(11)]
    steps, orders = [pace.step(share) for share in shares], [pace.order(share) for share in shares]
    assert (steps[0], steps[-1]) == (pytest.approx(pace.first), pytest.approx(pace.last))
    assert (orders[0], orders[-1]) == (pytest.approx(pace.orders[0]), pytest.approx(pace.orders[1]))
    assert np.diff(np.log(steps)) == pytest.approx([math.log(pace.last / pace.first) / 10] * 10)
    if pace.orders[0]:
        assert np.diff(np.log(orders)) == pytest.approx([math.log(pace.orders[1] / pace.orders[0]) / 10] * 10)
    else:
        assert orders == [0.0] * 11


def test_orders_of_a_run() -> None:
    """Order 0 all the way where the answer is within reach; from 1.3 to 64 where it is not."""
    near, far = (walked(ConfidencePGD(steps=10, pace=pace), model(12.0, 2.0)).aims for pace in ("near", "far"))
    assert near == [0.0] * 10
    assert far == pytest.approx([FAR.order((t + 1) / 10) for t in range(10)], rel=1e-6)
    assert far[-1] == pytest.approx(FAR.orders[1], rel=1e-6)
