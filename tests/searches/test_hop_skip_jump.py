"""HopSkipJump: the known distance of a hyperplane, a loop from the text, its brackets and probes, ART, labels alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import poise
from decision_cases import (
    NOWHERE,
    asked,
    compared,
    hop_skip_jump,
    lengths,
    nearest_wrong,
    shortest,
    walked,
)
from libraries import global_seed, peer
from poise.checks.searches import check_search
from poise.constraints import L2, Anywhere, Constraint, Linf
from poise.errors import AccessError, InputError
from poise.objectives import MMA, UCA, KeepLabel, Margin, Misclassify, Objective
from poise.peers.art_bridge import Bridge, art_estimator
from poise.searches import Ask, Reply, Search
from poise.searches.decision import Boundary, HopSkipJump, RamBo
from poise.searches.decision.decisions import Decisions, blend
from poise.types import Access, OutputKind, Outputs
from toys import Case, Constant, RecordingTarget, SmallCNN, binary_case, by_hand, drive, generator, linear_case, problem

BALLS: dict[str, Callable[[float], Constraint]] = {"l2": L2, "linf": Linf}
EVERY = [HopSkipJump(), Boundary(), RamBo()]
every_search = pytest.mark.parametrize("search", EVERY, ids=lambda search: type(search).__name__)

# --- a hyperplane ---


@pytest.mark.parametrize("norm", BALLS)
def test_the_walk_comes_near_the_known_distance(norm: str) -> None:
    case = binary_case(6)
    target, run = walked(case, HopSkipJump(), norm, 1500)
    ratios = nearest_wrong(target, case, norm) / shortest(case, norm)
    assert float(ratios.min()) >= 1 - 1e-9
    assert float(ratios.median()) < 1.05
    assert float(ratios.max()) < 1.15
    assert run.meter.queries.tolist() == [1500] * 6


def test_one_iteration_alone_does_not() -> None:
    case = binary_case(6)
    target, _ = walked(case, HopSkipJump(iterations=1, probes=5), "l2", 1500)
    assert float(nearest_wrong(target, case, "l2").median()) > 1.15 * shortest(case, "l2")


@pytest.mark.parametrize("norm", BALLS)
def test_success_is_a_wrong_point_in_the_ball(norm: str) -> None:
    case = binary_case(6)
    for factor, expected in ((0.99, False), (1.1, True)):
        ball = BALLS[norm](factor * shortest(case, norm))
        result = poise.attack(
            case.target(), Misclassify(), HopSkipJump(), ball, case.images, case.labels, case.ids, 1500
        )
        assert (result.table["stop"] == "success").to_list() == [expected] * 6
        assert (result.table["prediction_after"] != result.table["label"]).to_list() == [expected] * 6
        assert bool(ball.contains(result.images, case.images).all())
        assert torch.equal(result.images, case.images) is not expected
        assert expected or result.table["queries"].to_list() == [1500] * 6


# --- a loop from the text ---


@pytest.mark.parametrize("norm", BALLS)
def test_points_are_those_of_a_loop_written_from_the_text(norm: str) -> None:
    case = linear_case(5, shape=(1, 4, 4))
    target, _ = walked(case, HopSkipJump(), norm, 500)
    assert compared(case, target, 500, lambda loop: hop_skip_jump(loop, norm), 1e-9) >= 3


@pytest.mark.parametrize("other", [{"centre": False}, {"radius": 0.09}, {"root": 1.0}], ids=repr)
def test_another_iteration_is_noticed(other: dict[str, float]) -> None:
    case = linear_case(5, shape=(1, 4, 4))
    target, _ = walked(case, HopSkipJump(), "l2", 500)
    with pytest.raises(AssertionError):
        compared(case, target, 500, lambda loop: hop_skip_jump(loop, "l2", **other), 1e-9)


# --- brackets and probes ---


def halved(threshold: Tensor, width: float, *, never: bool = False) -> tuple[Tensor, Tensor, list[int]]:
    """`Decisions.halve` on a path of one pixel, wrong from the threshold on; also the queries of each ask."""
    clean = torch.zeros(len(threshold), 1, 1, 1, dtype=torch.float64)
    asks: list[int] = []
    decisions, ids = Decisions(problem(clean, L2(10.0)), "test"), torch.arange(len(threshold))
    one = torch.ones(len(threshold), dtype=torch.float64)
    path = blend(decisions.problem, ids, torch.ones_like(clean))
    steps = decisions.halve(path, ids, torch.ones_like(clean), one, 0 * one, width * one)
    try:
        ask = next(steps)
        while True:
            asks.append(len(ask.ids))
            right = ask.x.flatten() < threshold[ask.ids]
            if never:
                right = torch.zeros_like(right)
            ask = steps.send(Reply(right.double(), torch.ones_like(right), torch.ones(len(clean), dtype=torch.bool)))
    except StopIteration as end:
        x, high = end.value
        return x.flatten(), high, asks


def test_brackets_are_right_below_and_wrong_above() -> None:
    threshold = torch.tensor([0.001, 0.3, 0.5, 0.777, 0.999], dtype=torch.float64)
    x, high, asks = halved(threshold, 1e-3)
    assert torch.equal(x, high)
    assert bool(((x >= threshold) & (x - 1e-3 < threshold)).all())
    assert asks == [5] * math.ceil(math.log2(1000))


def test_a_bracket_that_ignores_the_answers_is_noticed() -> None:
    threshold = torch.tensor([0.3, 0.777], dtype=torch.float64)
    x, *_ = halved(threshold, 1e-3, never=True)
    assert not bool((x >= threshold).any())


def linear_asks(search: Search, constraint: Constraint, shape: tuple[int, int, int], asks: int) -> list[Ask]:
    """The first questions of a search that is told of a plane through the middle of the box."""
    clean = torch.rand(2, *shape, generator=generator(1), dtype=torch.float64) * 0.4
    given = problem(clean, constraint)
    slope = torch.rand(shape, generator=generator(2), dtype=torch.float64) - 0.3
    level = 0.4 * slope.sum()

    def answer(ask: Ask, number: int) -> Reply:
        right = (ask.x * slope).flatten(1).sum(dim=1) < level
        active = torch.full((2,), number < asks)
        return Reply(right.double(), torch.ones_like(right), active)

    return by_hand(search.run(given), answer).asks


def test_probes_are_counted_declared_and_never_results() -> None:
    asks = linear_asks(HopSkipJump(), L2(50.0), (1, 4, 4), 150)
    many = [ask for ask in asks if ask.repeats > 1]
    assert [ask.repeats for ask in many] == [int(100 * math.sqrt(j)) for j in range(1, len(many) + 1)]
    assert len(many) >= 4
    assert all(ask.probe == (ask.repeats > 1) for ask in asks), "all other points lie in this ball"
    assert all(len(ask.ids) == 2 * ask.repeats for ask in many)


def test_large_images_are_probed_a_few_at_a_time() -> None:
    asks = linear_asks(HopSkipJump(), L2(50.0), (3, 64, 64), 120)
    assert max(ask.repeats for ask in asks) == 2
    assert sum(ask.repeats == 2 for ask in asks) >= 50


def test_most_probes() -> None:
    asks = linear_asks(HopSkipJump(probes=10, most_probes=17), L2(50.0), (1, 4, 4), 150)
    assert [ask.repeats for ask in asks if ask.repeats > 1][:5] == [10, 14, 17, 17, 17]


# --- what all decision-based searches promise ---


@pytest.mark.parametrize("constraint", [L2(0.4), L2(100.0), Linf(0.1)], ids=repr)
@every_search
def test_contract(search: Search, constraint: Constraint) -> None:
    check_search(search, constraint=constraint, budget=120)


@pytest.mark.parametrize("budget", [1, 2, 10, 150])
@every_search
def test_the_ledger_is_what_the_model_saw(search: Search, budget: int) -> None:
    case = linear_case(5)
    target = case.target()
    table = poise.attack(target, Misclassify(), search, L2(0.2), case.images, case.labels, case.ids, budget).table
    assert table["queries"].to_list() == target.counted(case.ids, gradients=False)
    assert int(table["queries"].max()) <= budget
    assert target.module.passes == {"forward": table["queries"].sum(), "backward": 0}


@every_search
def test_a_result_does_not_depend_on_the_others(search: Search) -> None:
    case = linear_case(6)

    def attacked(rows: list[int], batch_size: int) -> poise.AttackResult:
        given = case.images[rows], case.labels[rows], case.ids[rows], 200
        return poise.attack(case.target(batch_size=batch_size), Misclassify(), search, L2(0.35), *given)

    whole = attacked(list(range(6)), 256)
    assert (whole.table["stop"] == "success").any()
    for rows, batch_size in (([5, 2, 0], 256), (list(range(6)), 2), ([3], 1)):
        part = attacked(rows, batch_size)
        assert torch.equal(part.images, whole.images[rows])
        assert part.table["queries"].to_list() == [whole.table["queries"][row] for row in rows]


@every_search
def test_a_shorter_run_is_the_beginning_of_a_longer_one(search: Search) -> None:
    case = linear_case(3)
    (few, _), (many, _) = (walked(case, search, "l2", budget) for budget in (170, 400))
    for row in range(3):
        short = asked(few, case, row)
        assert np.array_equal(asked(many, case, row)[: len(short)], short)


class LabelTarget(RecordingTarget):
    """Shows labels alone, one-hot."""

    def __init__(self, case: Case) -> None:
        super().__init__(case.module(), num_classes=len(case.weight))
        self.kind, self.access = OutputKind.LABELS, Access.LABELS

    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        labels = self.module(x).detach().argmax(dim=1)
        return Outputs(torch.nn.functional.one_hot(labels, self.num_classes).double(), OutputKind.LABELS)


@every_search
def test_labels_alone_are_enough(search: Search) -> None:
    case = linear_case(4)
    given = case.images, case.labels, case.ids, 300
    labels, scores = (
        poise.attack(target, Misclassify(), search, L2(0.5), *given) for target in (LabelTarget(case), case.target())
    )
    assert torch.equal(labels.images, scores.images)
    assert (scores.table["stop"] == "success").sum() >= 2
    with pytest.raises(AccessError, match="needs access 'scores', the target gives 'labels'"):
        poise.attack(LabelTarget(case), KeepLabel(UCA()), search, L2(0.5), *given)


@pytest.mark.parametrize("goal", [KeepLabel(UCA()), KeepLabel(MMA()), Margin()], ids=repr)
@every_search
def test_goals_that_need_scores_are_refused(search: Search, goal: Objective) -> None:
    """Before the first query."""
    case = linear_case(4)
    target = case.target()
    name = type(search).__name__
    with pytest.raises(InputError, match=f"^{name}: .* Misclassify.*confidence goals need scores"):
        poise.attack(target, goal, search, L2(0.5), case.images, case.labels, case.ids, 300)
    assert target.module.passes["forward"] == 0


@every_search
def test_who_is_wrong_already_is_left_alone(search: Search) -> None:
    case = linear_case(4)
    target = case.target()
    run = drive(case, Misclassify(stop=False), search, L2(0.5), target=target)
    assert run.meter.queries.tolist() == [100, 1, 100, 100]


@pytest.mark.parametrize("search", [HopSkipJump(tries=7), Boundary(tries=7), RamBo(hops=HopSkipJump(tries=7))])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_model_that_is_never_wrong_is_given_up(search: Search, n: int) -> None:
    images = torch.rand(n, 1, 4, 4, generator=generator(0))
    target = RecordingTarget(Constant(3), num_classes=3)
    labels = torch.zeros(n, dtype=torch.long)
    result = poise.attack(target, Misclassify(), search, L2(1.0), images, labels)
    assert torch.equal(result.images, images)
    assert result.table["queries"].to_list() == [8] * n
    assert result.table["stop"].to_list() == ["finished"] * n


# --- a network, and a peer ---

IMAGES = torch.rand(8, 1, 8, 8, generator=generator(3))


def network() -> tuple[RecordingTarget, Tensor]:
    target = RecordingTarget(SmallCNN(size=8).eval(), num_classes=4)
    return target, target.query(IMAGES, torch.arange(8)).labels


def median_of(search: Search, norm: str, budget: int) -> float:
    """Median distance that a walk comes to."""
    target, labels = network()
    case = Case(IMAGES, labels, torch.arange(8), torch.zeros(4, 1), torch.zeros(4))
    drive(case, Misclassify(), search, NOWHERE[norm], target=target, budget=budget)
    return float(nearest_wrong(target, case, norm).median())


@pytest.mark.parametrize("norm", BALLS)
def test_no_farther_than_art_at_equal_queries(norm: str) -> None:
    target, labels = network()
    bridge = Bridge(target, OutputKind.LOGITS)
    estimator = art_estimator(bridge, IMAGES.shape[1:], "test")
    with global_seed(0):
        made = peer("art.attacks.evasion").HopSkipJump(
            estimator, norm=2 if norm == "l2" else "inf", max_iter=6, verbose=False
        )
        points = torch.from_numpy(made.generate(x=IMAGES.numpy(), y=labels.numpy()))
    assert bool((target.query(points, torch.arange(8)).labels != labels).all())
    theirs = float(lengths(points - IMAGES, norm).median())
    assert median_of(HopSkipJump(), norm, bridge.forwards // 8) <= 1.25 * theirs


@pytest.mark.parametrize("norm", BALLS)
def test_results_on_a_network_are_wrong_and_inside(norm: str) -> None:
    target, labels = network()
    ball = BALLS[norm](2.0 * median_of(HopSkipJump(), norm, 500))
    result = poise.attack(target, Misclassify(), HopSkipJump(), ball, IMAGES, labels, budget=500)
    success = result.table["stop"] == "success"
    assert success.sum() >= 4
    assert ((result.table["prediction_after"] != result.table["label"]) == success).all()
    assert bool(ball.contains(result.images, IMAGES).all())
    assert bool(((result.images >= 0) & (result.images <= 1)).all())


def test_the_units_of_the_images_do_not_matter() -> None:
    """On [0, 255], every point is 255 times the one on [0, 1]."""
    module = SmallCNN(size=8).eval()
    logs = []
    for high in (1.0, 255.0):
        scaled = torch.nn.Sequential(_Divided(high), module.double()).eval()
        target = RecordingTarget(scaled, num_classes=4, bounds=(0.0, high))
        images = IMAGES[:2].double()
        labels = module(images).argmax(dim=1)
        poise.attack(target, Misclassify(), HopSkipJump(), L2(0.0), images * high, labels, budget=160)
        logs.append(torch.cat([x for _, x, *_ in target.log]) / high)
    torch.testing.assert_close(logs[0], logs[1], rtol=0, atol=1e-9)


class _Divided(torch.nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return x / self.by


# --- refusals ---


@every_search
def test_a_ball_is_needed_by_those_that_walk_in_its_norm(search: Search) -> None:
    case = linear_case(3)
    given = case.images, case.labels, case.ids, 300
    if isinstance(search, HopSkipJump):
        with pytest.raises(InputError, match="HopSkipJump: the constraint must be Linf or L2, got Anywhere"):
            poise.attack(case.target(), Misclassify(), search, Anywhere(), *given)
    else:
        result = poise.attack(case.target(), Misclassify(), search, Anywhere(), *given)
        assert (result.table["prediction_after"] != result.table["label"]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HopSkipJump(iterations=0), "HopSkipJump: iterations must be at least 1, got 0"),
        (lambda: HopSkipJump(probes=0), "HopSkipJump: probes must be at least 1, got 0"),
        (lambda: HopSkipJump(tries=0), "HopSkipJump: tries must be at least 1, got 0"),
        (lambda: HopSkipJump(most_probes=99), "HopSkipJump: most_probes must be at least probes, 100, got 99"),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
