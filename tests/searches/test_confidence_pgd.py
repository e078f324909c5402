"""ConfidencePGD: a loop written from its docstring, what it costs, where it stays, what it finds."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import poise
from poise.checks.searches import check_search
from poise.constraints import L2, Box, Constraint, Linf
from poise.errors import InputError
from poise.objectives import MMA, OCA, KeepLabel, MinConfidence
from poise.rng import Rng
from poise.searches import Ask, ConfidencePGD, Reply
from poise.searches.confidence_pgd import FAR, LOOK, NEAR
from poise.types import Outputs
from toys import Transcript, binary_case, by_hand, drive, generator, linear_case, problem

GOAL = KeepLabel(MinConfidence(tol=0.0))
BALLS = [Linf(0.15), L2(0.4)]


@pytest.mark.parametrize("constraint", BALLS, ids=repr)
@pytest.mark.parametrize("start", ["clean", "random", "best"])
@pytest.mark.parametrize("pace", ["reach", "other", "near", "far"])
def test_contract(start: str, pace: str, constraint: Constraint) -> None:
    check_search(ConfidencePGD(steps=5, start=start, pace=pace), constraint=constraint)


# --- a loop from the docstring ---

N, SHAPE = 6, (1, 3, 4)
CLEAN = torch.rand(N, *SHAPE, generator=generator(5), dtype=torch.float64)
SLOPES = torch.randn(N, 12, generator=generator(6), dtype=torch.float64) * 4
NAMES = torch.arange(N) * 3 + 1


def wave(x: np.ndarray, row: int, aim: float) -> tuple[float, np.ndarray]:
    """A positive loss with many minima; another aim is another loss."""
    s = SLOPES[row].numpy()
    return float((1 + np.sin(s * x + aim)).sum()) / 4, s * np.cos(s * x + aim) / 4


def waves(ask: Ask, number: int) -> Reply:
    aims = torch.zeros(len(ask.ids)) if ask.aim is None else ask.aim
    rows = zip(ask.x.flatten(1), ask.ids.tolist(), aims.double().tolist(), strict=True)
    pairs = [wave(x.numpy(), row, aim) for x, row, aim in rows]
    loss = torch.tensor([loss for loss, _ in pairs], dtype=torch.float64)
    gradient = torch.from_numpy(np.stack([gradient for _, gradient in pairs])).view_as(ask.x)
    return Reply(loss, torch.zeros(len(loss)).bool(), torch.ones(N).bool(), gradient)  # never accepted: it walks on


@dataclass(frozen=True)
class Flaw:
    """What the reference loop can be made to get wrong."""

    momentum: bool = True
    normalised: bool = True
    falling: bool = True
    rising: bool = True
    own_step: bool = True


def by_the_text(row: int, search: ConfidencePGD, constraint: Constraint, flaw: Flaw) -> list[np.ndarray]:
    x0, eps, steps = CLEAN[row].flatten().numpy(), constraint.eps, search.steps

    def norm(g: np.ndarray, order: int) -> float:
        return float(np.linalg.norm(g, ord=order))

    def project(x: np.ndarray) -> np.ndarray:
        if isinstance(constraint, Linf):
            return np.clip(np.clip(x, x0 - eps, x0 + eps), 0, 1)
        return np.clip(x0 + (x - x0) * min(1, eps / norm(x - x0, 2)), 0, 1)

    f, g = wave(x0, row, 0.0)
    pace = FAR if search.pace == "far" else NEAR
    asked, x, v = [x0], x0, np.zeros(12)
    if search.start != "clean":
        if search.start == "random":
            start = constraint.sample(CLEAN[row : row + 1], Box(), torch.tensor([row]), Rng(0, NAMES), 0)
            x = start.flatten().numpy()
        asked.append(x)
        _, g = wave(x, row, np.float32(pace.order(0)))
    for t in range(steps):
        v = (pace.momentum if flaw.momentum else 0) * v + (g / norm(g, 1) if flaw.normalised else g)
        a = pace.step(t / steps if flaw.falling else 0) * search.scale * eps * (1 if flaw.own_step else 0.999)
        x = project(x - a * (np.sign(v) if isinstance(constraint, Linf) else v / norm(v, 2)))
        asked.append(x)
        f, g = wave(x, row, np.float32(pace.order((t + 1) / steps if flaw.rising else 0)))
        if t + 1 == LOOK < steps and search.pace in ("reach", "other"):
            far = f > search.far * eps * norm(g, 1 if isinstance(constraint, Linf) else 2)
            pace = FAR if far == (search.pace == "reach") else NEAR
    return asked


def same_points(search: ConfidencePGD, constraint: Constraint, flaw: Flaw) -> None:
    told = run_by_hand(search, constraint)
    for row in range(N):
        asked = torch.stack([ask.x[row].flatten() for ask in told.asks])
        expected = torch.from_numpy(np.stack(by_the_text(row, search, constraint, flaw)))
        torch.testing.assert_close(asked, expected, rtol=0, atol=1e-6)


def run_by_hand(search: ConfidencePGD, constraint: Constraint) -> Transcript:
    return by_hand(search.run(problem(CLEAN, constraint, ids=NAMES)), waves)


SEARCHES = [
    ConfidencePGD(steps=6), ConfidencePGD(steps=6, pace="other"), ConfidencePGD(steps=6, pace="far", scale=0.3),
    ConfidencePGD(steps=6, pace="near", scale=0.5), ConfidencePGD(steps=5, start="random"), ConfidencePGD(steps=1),
    ConfidencePGD(steps=4, start="best"), ConfidencePGD(steps=6, far=1.0),
]  # fmt: skip


@pytest.mark.parametrize("constraint", BALLS, ids=repr)
@pytest.mark.parametrize("search", SEARCHES, ids=repr)
def test_points_are_those_of_a_loop_written_from_the_text(search: ConfidencePGD, constraint: Constraint) -> None:
    same_points(search, constraint, Flaw())


@pytest.mark.parametrize("flaw", [field.name for field in dataclasses.fields(Flaw)])
def test_a_flawed_loop_is_noticed(flaw: str) -> None:
    constraint = L2(0.4) if flaw == "own_step" else Linf(0.15)
    with pytest.raises(AssertionError):
        same_points(ConfidencePGD(steps=6, pace="far", scale=0.3), constraint, Flaw(**{flaw: False}))


def test_gradients_of_any_size_count_alike() -> None:
    """1e-30 and 1e30 move a sample as 1 does; a gradient of zeros does not move it."""

    def scaled(factor: float) -> Callable[[Ask, int], Reply]:
        def answer(ask: Ask, number: int) -> Reply:
            told = waves(ask, number)
            return dataclasses.replace(told, grad=(told.grad * factor).float())

        return answer

    search, clean = ConfidencePGD(steps=4, pace="far", scale=0.3), CLEAN.float()
    runs = [by_hand(search.run(problem(clean, L2(0.4))), scaled(factor)) for factor in (1.0, 1e-30, 1e30, 0.0)]
    for at in range(5):
        torch.testing.assert_close(runs[1].asks[at].x, runs[0].asks[at].x, rtol=0, atol=1e-5)
        torch.testing.assert_close(runs[2].asks[at].x, runs[0].asks[at].x, rtol=0, atol=1e-5)
        assert torch.equal(runs[3].asks[at].x, clean)


# --- what it costs, where it stays, what it finds ---


@pytest.mark.parametrize(("start", "more"), [("clean", 0), ("random", 1), ("best", 1)])
def test_costs(start: str, more: int) -> None:
    case = linear_case(3, classes=5)
    for steps in (1, 2, 7):
        run = drive(case, GOAL, ConfidencePGD(steps=steps, start=start), Linf(0.02))
        assert run.meter.gradients.tolist() == [steps + more] * 3
        assert run.meter.queries.tolist() == [1 + steps + more] * 3


@given(seed=st.integers(0, 10_000), eps=st.sampled_from([0.0, 1e-3, 0.1, 1.0]), norm=st.sampled_from([Linf, L2]))
def test_it_never_leaves_the_ball(seed: int, eps: float, norm: type) -> None:
    case = linear_case(3, classes=4, seed=seed)
    target, ball = case.target(), norm(eps)
    for start in ("clean", "random"):
        drive(case, GOAL, ConfidencePGD(steps=4, start=start, scale=3.0), ball, target=target)
    for ids, x, *_ in target.log:
        rows = torch.tensor([case.ids.tolist().index(name) for name in ids.tolist()])
        assert bool(ball.contains(x, case.images[rows]).all())
        assert bool(((x >= 0) & (x <= 1)).all())


def reaches_the_floor_or_the_closed_form(search: ConfidencePGD) -> None:
    """K = 2: the confidence falls to sigmoid(m - eps ||w||_1), and to 1/2 where the ball holds a tie (spec 28.5)."""
    case = binary_case(4, margin=3.0, shape=(1, 5, 5))
    length = float((case.weight[1] - case.weight[0]).abs().sum())
    for eps, rest in ((2.5 / length, 0.5), (2.95 / length, 0.05), (4.0 / length, 0.0)):
        goal = KeepLabel(MinConfidence(tol=0.0), 0.0)
        run = drive(case, goal, search, Linf(eps), budget=500)
        confidence = Outputs(run.best.scores).confidence
        expected = 1 / (1 + math.exp(-rest))
        assert bool((confidence >= expected - 1e-9).all())
        np.testing.assert_allclose(confidence.numpy(), expected, rtol=0, atol=5e-3)


def test_two_classes_reach_the_closed_form() -> None:
    reaches_the_floor_or_the_closed_form(ConfidencePGD(steps=100))
    reaches_the_floor_or_the_closed_form(ConfidencePGD(steps=100, start="random"))
    with pytest.raises(AssertionError):
        reaches_the_floor_or_the_closed_form(ConfidencePGD(steps=3, scale=0.1))


def test_it_crosses_the_boundary_and_comes_back() -> None:
    """No step is undone: with a goal that minds, points without the label are walked through, none is returned."""
    case = linear_case(10, classes=4, scale=6.0)
    target = case.target()
    run = drive(case, GOAL, ConfidencePGD(steps=30), Linf(0.3), target=target)
    labels = dict(zip(case.ids.tolist(), run.clean.labels.tolist(), strict=True))
    lost = back = 0
    for name, label in labels.items():
        path = [int(scores[ids == name].argmax()) == label for ids, _, scores, _ in target.log if (ids == name).any()]
        lost += path.count(False)
        back += any(not here and there for here, there in itertools.pairwise(path))
    assert lost > 10
    assert back > 3
    assert torch.equal(Outputs(run.best.scores).labels, run.clean.labels)


def test_directions_that_raise_the_confidence_follow_the_goals_own_loss() -> None:
    case = linear_case(12, classes=3)
    goal = KeepLabel(MMA(under=MinConfidence(), over=OCA(tol=1e-3, follow="cross-entropy")))
    run = drive(case, goal, ConfidencePGD(steps=20), Linf(0.1), budget=100)
    over = run.bound.over
    before, after = run.clean.confidence, Outputs(run.best.scores).confidence
    assert 0 < int(over.sum()) < 12
    assert bool((after > before)[over].all())
    assert bool((after < before)[~over].all())


def test_the_constant_model_is_left_alone() -> None:
    images = torch.rand(3, 1, 4, 4, generator=generator(0))
    target = poise.ModuleTarget(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)), num_classes=3)
    with torch.no_grad():
        target.module[1].weight.zero_()
        target.module[1].bias.copy_(torch.tensor([2.0, 0.0, 0.0]))
    labels = torch.tensor([0, 1, 2])
    result = poise.attack(target, GOAL, ConfidencePGD(steps=4), Linf(0.1), images, labels)
    assert torch.equal(result.images, images)
    assert result.table["zero_gradients"].to_list() == [4] * 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConfidencePGD(steps=0), "ConfidencePGD: steps must be at least 1, got 0"),
        (lambda: ConfidencePGD(scale=0.0), "ConfidencePGD: scale must be a positive number, got 0.0"),
        (lambda: ConfidencePGD(start="clean image"), "start must be 'clean', 'random' or 'best', got 'clean image'"),
        (lambda: ConfidencePGD(pace="fast"), "pace must be 'reach', 'other', 'near' or 'far', got 'fast'"),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
