"""Cascade: one clean query, members in order with draws of their own, never worse for one member more."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from poise.checks.searches import check_search
from poise.constraints import L2, Constraint, Linf
from poise.errors import InputError
from poise.objectives import MMA, OCA, KeepLabel, Margin, MaxConfidence, MinConfidence
from poise.rng import Rng
from poise.searches import (
    ACE,
    APGD,
    PGD,
    AdaptivePGD,
    Ask,
    Cascade,
    ConfidencePGD,
    EveryClass,
    Noise,
    Problem,
    Search,
    Square,
    Stage,
)  # fmt: skip
from poise.searches.base import Reply, Steps
from poise.searches.driver import Run
from poise.types import Access
from toys import Case, RecordingTarget, drive, linear_case

UNDER = KeepLabel(MinConfidence(tol=0.0))
STEPPED = PGD(steps=3, step=0.02, random_start=True, undo=False)
MEMBERS: list[Search] = [
    Noise(points=4), STEPPED, EveryClass(STEPPED), ConfidencePGD(steps=4), ConfidencePGD(steps=3, start="best"), ACE(),
    AdaptivePGD(steps=4, random_start=True), APGD(steps=5), Square(start="best", strict=False, horizon=100),
]  # fmt: skip


def logged(
    case: Case, search: Search, *, budget: int = 400, seed: int = 0, objective: object = None
) -> tuple[Run, list[Tensor], RecordingTarget]:
    """The run, and for every sample the points that were asked for it, in order."""
    target = case.target()
    goal = objective or MaxConfidence(tol=0.0)
    run = drive(case, goal, search, Linf(0.05), target=target, budget=budget, seed=seed)
    points = [torch.cat([x[ids == name] for ids, x, *_ in target.log]) for name in case.ids]
    return run, points, target


@pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.4)], ids=repr)
@pytest.mark.parametrize(
    "search",
    [
        Cascade(),
        Cascade((Noise(points=3), Stage(STEPPED, repeats=2), Square(start="best"))),
        Cascade((Cascade((Noise(points=2), ACE())), EveryClass(STEPPED, at_once=1), Noise())),
    ],
    ids=repr,
)
def test_contract(search: Search, constraint: Constraint) -> None:
    check_search(search, constraint=constraint)


# --- one member more ---


def one_member_more(kind: Callable[[tuple[Search, ...]], Search], members: list[Search], seed: int = 0) -> None:
    """Earlier members ask exactly what they asked before, bit for bit, and no merit rises."""
    case = linear_case(4, classes=4, seed=seed)
    before: list[Tensor] | None = None
    merit = torch.full((4,), torch.inf, dtype=torch.float64)
    for count in range(1, len(members) + 1):
        run, points, _ = logged(case, kind(tuple(members[:count])), seed=seed)
        assert bool((run.best.merit <= merit).all())
        for old, new in zip(before or [], points, strict=False):
            assert len(new) > len(old) or isinstance(members[count - 1], ACE)
            assert torch.equal(new[: len(old)], old)
        before, merit = points, run.best.merit.clone()


@settings(max_examples=5)
@given(order=st.permutations(MEMBERS[:-1]), seed=st.integers(0, 1000))
def test_one_member_more_is_never_worse(order: list[Search], seed: int) -> None:
    one_member_more(Cascade, [*order[:4], MEMBERS[-1]], seed)


@dataclass(frozen=True)
class Twin(Cascade):
    """A cascade whose draws are keyed by `branch(members, number)` instead of the number."""

    def branch(self, number: int) -> int:
        return number

    def run(self, problem: Problem) -> Steps:
        return super().run(
            dataclasses.replace(problem, rng=_Renumbered(problem.rng.seed, problem.rng.sample_ids, self))
        )


@dataclass(frozen=True)
class _Renumbered(Rng):
    twin: Twin | None = None

    def fork(self, branch: int) -> Rng:
        assert self.twin is not None
        return Rng(self.seed, self.sample_ids).fork(self.twin.branch(branch))


class CountsFromTheEnd(Twin):
    def branch(self, number: int) -> int:
        return len(self.members) - number


class AlwaysTheSame(Twin):
    def branch(self, number: int) -> int:
        return 0


def test_draws_that_depend_on_later_members_are_noticed() -> None:
    one_member_more(Twin, [MEMBERS[0], MEMBERS[1]])
    with pytest.raises(AssertionError):
        one_member_more(CountsFromTheEnd, [MEMBERS[0], MEMBERS[1]])


def repetitions_are_fresh(kind: Callable[[tuple[Stage, ...]], Search]) -> None:
    """Every point of the ball that is drawn is another one: of repetitions, of equal stages, of samples."""
    _, points, _ = logged(linear_case(3), kind((Stage(Noise(points=3), repeats=3), Stage(Noise(points=3)))))
    drawn = [x for one in points for x in one[1:]]
    assert len(drawn) == 3 * 12
    assert len({x.numpy().tobytes() for x in drawn}) == len(drawn)


def test_repetitions_draw_fresh_points() -> None:
    repetitions_are_fresh(Cascade)
    with pytest.raises(AssertionError):
        repetitions_are_fresh(AlwaysTheSame)


# --- costs ---


def test_costs_add_up_and_the_clean_image_is_asked_once() -> None:
    """Noise 4; PGD 1 start + 3; the targeted ones (1 + 1 + 3) for each of 3 classes; ConfidencePGD 4 (one gradient
    is the clean image's); from the best point 1 + 3; the rest of the budget is Square's."""
    case = linear_case(3, classes=4)
    expected, gradients = 1, 1
    members: list[Search] = []
    for search, queries, slopes in (
        (Noise(points=4), 4, 0),
        (STEPPED, 4, 3),
        (EveryClass(STEPPED), 15, 9),
        (ConfidencePGD(steps=4), 4, 3),
        (ConfidencePGD(steps=3, start="best"), 4, 3),
        (Square(start="best"), None, 0),
    ):
        members.append(search)
        expected, gradients = 60 if queries is None else expected + queries, gradients + slopes
        run, points, _ = logged(case, Cascade(tuple(members)), budget=60)
        assert run.meter.queries.tolist() == [expected] * 3 == [len(one) for one in points]
        assert run.meter.gradients.tolist() == [gradients - (len(members) == 1)] * 3
        assert all(bool((one[1:] != case.images[i]).flatten(1).any(dim=1)[:4].all()) for i, one in enumerate(points))


def test_black_box_members_ask_for_no_gradient() -> None:
    search = Cascade((Noise(points=2), Square()))
    assert search.access is Access.LABELS
    assert logged(linear_case(3), search, budget=20)[0].meter.gradients.tolist() == [0] * 3
    assert Cascade((Noise(points=2), STEPPED)).access is Access.GRADIENTS


@pytest.mark.parametrize("budget", range(1, 40, 3))
def test_a_budget_ends_it_anywhere(budget: int) -> None:
    """The points within the budget are the first ones of a longer run; schedules are told apart by `horizon`."""
    search = Cascade((Noise(points=4), EveryClass(STEPPED), Stage(Square(start="best", horizon=99))))
    case = linear_case(3, classes=4)
    _, points, _ = logged(case, search, budget=budget)
    _, longer, _ = logged(case, search, budget=60)
    assert [len(one) for one in points] == [budget] * 3
    assert all(torch.equal(one, more[:budget]) for one, more in zip(points, longer, strict=True))


# --- levels ---


def test_only_samples_above_the_level_take_part() -> None:
    """At the moment when the stage begins, and one by one while it runs."""
    case = linear_case(12)
    first, before, _ = logged(case, Cascade((Noise(points=2),)), objective=UNDER)
    level = float(first.best.merit.median())
    low = first.best.merit <= level
    assert int(low.sum()) == 6
    run, points, target = logged(
        case, Cascade((Noise(points=2), Stage(Square(), above=level))), budget=60, objective=UNDER
    )
    left = run.best.merit <= level
    assert int((left & ~low).sum()) > 0
    for i in range(12):
        assert torch.equal(points[i][: len(before[i])], before[i])
        if low[i]:
            assert len(points[i]) == 3
        elif left[i]:
            assert torch.equal(points[i][-1], run.best.x[i])  # the point that brought it below was its last
        else:
            assert len(points[i]) == 60
    assert len(target.log) == 60


def stays_within_its_queries(stage: Stage) -> None:
    """A member uses what it may and no more, each time; those who left it early do not lend the rest to others."""
    case = linear_case(6, scale=4.0)
    _, points, _ = logged(case, Cascade((Noise(points=2), stage, Noise(points=1))), objective=UNDER, budget=60)
    _, ended, _ = logged(case, Cascade((Noise(points=2), Stage(stage.search, stage.above), Noise(points=1))),
                         objective=UNDER, budget=60)  # fmt: skip
    lengths = [len(one) for one in points]
    assert max(lengths) == 1 + 2 + stage.repeats * 5 + 1
    assert all(
        torch.equal(one[:8], more[:8]) for one, more in zip(points, ended, strict=True) if len(one) == max(lengths)
    )


def test_a_member_stays_within_its_queries() -> None:
    stays_within_its_queries(Stage(Square(), queries=5))
    stays_within_its_queries(Stage(Square(), above=0.2, queries=5, repeats=2))
    stays_within_its_queries(Stage(ConfidencePGD(steps=50), queries=5))
    for twin in (Stage(Square(), queries=6), Stage(Square()), Stage(ConfidencePGD(steps=3))):
        with pytest.raises(AssertionError):
            stays_within_its_queries(twin)


def company_changes_nothing(search: Search, objective: object) -> None:
    """Each of several samples alone: the same points, bit for bit."""
    case = linear_case(8, scale=4.0)
    _, together, _ = logged(case, search, budget=50, objective=objective)
    for i in range(8):
        rows = slice(i, i + 1)
        alone = dataclasses.replace(case, images=case.images[rows], labels=case.labels[rows], ids=case.ids[rows])
        _, points, _ = logged(alone, search, budget=50, objective=objective)
        assert torch.equal(points[0], together[i])


@pytest.mark.parametrize(
    "stages",
    [
        (Stage(Square(horizon=50), above=0.25), Noise(points=9)),  # who leaves early goes on with what it has left
        (Stage(Noise(points=3), above=0.3, repeats=3), Stage(Noise(points=3), above=0.2), Square(start="best")),
        (Stage(Square(horizon=30), above=0.2, queries=7), Stage(Square(start="best"), queries=9), Noise()),
        (ACE(), Square()),  # the first member takes one try for some and several for others
        (Stage(ConfidencePGD(steps=5), above=0.1), Stage(AdaptivePGD(steps=4, random_start=True)), Noise()),
    ],
    ids=repr,
)
def test_company_changes_nothing(stages: tuple[Stage | Search, ...]) -> None:
    company_changes_nothing(Cascade(stages), UNDER)


@dataclass(frozen=True)
class ByTheBatch(Cascade):
    """Broken twin: stages are numbered as they run, so that the draws know whether anybody was left."""

    def run(self, problem: Problem) -> Steps:
        clean = yield Ask(problem.clean, problem.everyone)
        active, branch = clean.active, 0
        for stage in self.members:
            for _ in range(stage.repeats):
                part = active & (problem.merit > stage.above)
                if not bool(part.any()):
                    break
                mine = dataclasses.replace(problem, rng=problem.rng.fork(branch))
                active, branch = (yield from _drive(stage, mine, dataclasses.replace(clean, active=part))), branch + 1


def _drive(stage: Stage, problem: Problem, clean: Reply) -> Generator[Ask, Reply, Tensor]:
    steps, reply = stage.search.run(problem), clean
    next(steps)
    while True:
        try:
            ask = steps.send(reply)
        except StopIteration:
            return reply.active | ~clean.active
        reply = yield ask


def test_numbering_by_the_batch_is_noticed() -> None:
    stages = (Stage(Noise(points=1), above=0.4), Noise(points=1))
    company_changes_nothing(Cascade(stages), UNDER)
    with pytest.raises(AssertionError):
        company_changes_nothing(ByTheBatch(stages), UNDER)


# --- the members see what was found before ---


def test_from_the_best_point() -> None:
    """The first question of a member that begins at the best point is that point, exactly."""
    case = linear_case(4)
    for second in (Square(start="best"), ConfidencePGD(steps=2, start="best")):
        first, before, _ = logged(case, Cascade((Noise(points=6),)), objective=Margin(stop=False))
        _, points, _ = logged(case, Cascade((Noise(points=6), second)), budget=12, objective=Margin(stop=False))
        for i in range(4):
            assert torch.equal(points[i][len(before[i])], first.best.x[i])


def test_the_goal_of_both_directions_is_split_by_sample() -> None:
    case = linear_case(9, classes=3)
    goal = KeepLabel(MMA(under=MinConfidence(), over=OCA(tol=1e-3, follow="cross-entropy")))
    run, _, _ = logged(case, Cascade(), budget=200, objective=goal)
    assert bool((run.best.merit < run.clean_merit).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cascade(()), "Cascade: stages must name at least one search, got none"),
        (lambda: Stage(Noise(), repeats=0), "Stage: repeats must be at least 1, got 0"),
        (lambda: Stage(Noise(), queries=0), "Stage: queries must be at least 1, got 0"),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
