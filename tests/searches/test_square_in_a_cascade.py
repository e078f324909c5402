"""Square as a member of a cascade: from the best point, by the loss alone, along another of the goal's losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from poise.checks.searches import check_search
from poise.constraints import L2, Constraint, Linf
from poise.objectives import KeepLabel, MinConfidence
from poise.objectives.lowest import divergence
from poise.searches import Ask, Cascade, Noise, Problem, Reply, Search, Square
from poise.searches.base import Steps
from poise.types import Outputs
from toys import by_hand, drive, linear_case
from toys import problem as make_problem

CLEAN = torch.full((2, 1, 30, 30), 0.5, dtype=torch.float64)
ONE_PIXEL = 0.001  # of 900: every proposal changes one pixel, so changed pixels count the proposals that were kept


def best_problem() -> Problem:
    """Somebody has found a best point: three pixels of the first image changed, one of the second."""
    given = make_problem(CLEAN, Linf(0.1))
    best = CLEAN.clone()
    best[0, 0, 0, :3], best[1, 0, 5, 5] = 0.6, 0.4
    return dataclasses.replace(given, best=best)


def changed(ask: Ask) -> list[int]:
    return [int((x != CLEAN[0]).sum()) for x in ask.x]


def script(*replies: tuple[float, bool]) -> Callable[[Ask, int], Reply]:
    """The same loss and acceptance for both samples; the run ends with the script."""

    def answer(ask: Ask, number: int) -> Reply:
        loss, accept = replies[number]
        m = len(ask.ids)
        return Reply(
            torch.full((m,), loss).double(), torch.full((m,), accept), torch.full((2,), number + 1 < len(replies))
        )

    return answer


@pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.4)], ids=repr)
@pytest.mark.parametrize(
    "search", [Square(start="best"), Square(strict=False), Square(start="best", strict=False, aim=4.0)], ids=repr
)
def test_contract(search: Square, constraint: Constraint) -> None:
    check_search(search, constraint=constraint)


def begins_at_the_best_point(search: Square) -> None:
    """One query for it; it is the first iterate whether it would do as a result or not, whatever the clean loss was."""
    for accept in (True, False):
        given = best_problem()
        told = by_hand(search.run(given), script((0.0, True), (5.0, accept), (9.0, True), (9.0, True)))
        assert torch.equal(told.asks[1].x, given.best)
        assert told.asks[1].x is not given.best
        for ask in told.asks[2:]:  # worse proposals: each is one pixel away from the best point
            assert changed(ask) == [4, 2]


def test_it_begins_at_the_best_point() -> None:
    begins_at_the_best_point(Square(p=ONE_PIXEL, start="best"))
    begins_at_the_best_point(Square(p=ONE_PIXEL, start="best", strict=False))
    for twin in (Square(p=ONE_PIXEL), Square(p=ONE_PIXEL, start="stripes")):
        with pytest.raises(AssertionError):
            begins_at_the_best_point(twin)


def copies_the_best_point(search: Search) -> None:
    """The driver goes on writing into its best points; the iterate must not follow."""
    given = best_problem()
    original = given.best.clone()

    def answer(ask: Ask, number: int) -> Reply:
        if number == 1:
            given.best.fill_(0.45)
        return script(*[(5.0, True)] * 4)(ask, number)

    told = by_hand(search.run(given), answer)
    for ask in told.asks[2:]:
        assert [int((x != y).sum()) for x, y in zip(ask.x, original, strict=True)] == [1, 1]


class _Aliased(Square):
    """Broken twin: its iterate is the driver's own tensor."""

    def run(self, problem: Problem) -> Steps:
        yield Ask(problem.clean, problem.everyone)
        x = problem.best
        yield Ask(x, problem.everyone)
        for step in range(2):
            candidate = x.clone()
            candidate[:, 0, step, 7] += 0.1
            yield Ask(candidate, problem.everyone)


def test_the_best_point_is_copied() -> None:
    copies_the_best_point(Square(p=ONE_PIXEL, start="best"))
    with pytest.raises(AssertionError):
        copies_the_best_point(_Aliased())


def test_a_best_point_beyond_the_budget_is_not_believed() -> None:
    """Its answer never came: an infinite loss."""
    given = best_problem()
    told = by_hand(Square(p=ONE_PIXEL, start="best").run(given), script((5.0, True), (torch.inf, False), (9.0, True)))
    assert changed(told.asks[2]) == [1, 1]


def goes_by_the_loss_alone(search: Square) -> None:
    """A lower loss is kept though the point would not do; a higher one is not though it would."""
    replies = [(5.0, True), (4.0, False), (3.0, False), (9.0, True), (2.0, True), (9.0, True)]
    told = by_hand(search.run(make_problem(CLEAN, Linf(0.1))), script(*replies))
    assert [changed(ask)[0] for ask in told.asks] == [0, 1, 2, 3, 3, 4]


def test_not_strict_goes_by_the_loss_alone() -> None:
    goes_by_the_loss_alone(Square(p=ONE_PIXEL, strict=False))
    with pytest.raises(AssertionError):
        goes_by_the_loss_alone(Square(p=ONE_PIXEL))


def test_what_is_returned_would_do_all_the_same() -> None:
    """Points that lost the label are walked through; none is returned, and the walk pays."""
    case = linear_case(12, classes=5, scale=6.0)
    goal = KeepLabel(MinConfidence(tol=0.0))
    target = case.target()
    free = drive(case, goal, Square(strict=False), Linf(0.2), budget=150, target=target)
    assert torch.equal(Outputs(free.best.scores).labels, free.clean.labels)
    before = dict(zip(case.ids.tolist(), free.clean.labels.tolist(), strict=True))
    lost = sum(
        int(label != before[name])
        for ids, _, scores, _ in target.log
        for name, label in zip(ids.tolist(), scores.argmax(dim=1).tolist(), strict=True)
    )
    assert lost > 100
    strict = drive(case, goal, Square(), Linf(0.2), budget=150)
    assert not torch.equal(free.best.x, strict.best.x)


def follows_the_aim(search: Square) -> None:
    """Every ask but the clean one carries it; the driver answers with that loss."""
    told = by_hand(search.run(best_problem()), script(*[(5.0, True)] * 5))
    assert told.asks[0].aim is None
    assert [ask.aim.tolist() for ask in told.asks[1:]] == [[4.0, 4.0]] * 4


def test_the_aim_is_followed() -> None:
    follows_the_aim(Square(start="best", aim=4.0))
    for twin in (Square(start="best", aim=0.0), _Forgets(start="best", aim=4.0)):
        with pytest.raises(AssertionError):
            follows_the_aim(twin)


class _Forgets(Square):
    """Broken twin: the aim is lost after the first proposal."""

    def run(self, problem: Problem) -> Steps:
        steps, number = super().run(problem), 0
        ask = next(steps)
        while True:
            reply = yield ask
            number += 1
            try:
                ask = steps.send(reply)
            except StopIteration:
                return
            if number > 2:
                ask = dataclasses.replace(ask, aim=torch.zeros(len(ask.ids)))


def compares_along_the_aim_alone(search: Search) -> None:
    """The clean image's own loss, .5, is on another scale: 4 at the first point of the aim is what 3 falls below."""
    replies = [(0.5, True), (4.0, search.start != "stripes"), (3.0, True), (9.0, True), (2.0, True), (9.0, True)]
    told = by_hand(search.run(make_problem(CLEAN, Linf(0.1))), script(*replies))
    begin = told.asks[1].x if search.start != "stripes" else CLEAN
    assert [int((ask.x[0] != begin[0]).sum()) for ask in told.asks[2:]] == [1, 2, 2, 3]


@pytest.mark.parametrize("start", ["clean", "best", "stripes"])
def test_losses_of_an_aim_are_compared_with_each_other(start: str) -> None:
    compares_along_the_aim_alone(Square(p=ONE_PIXEL, start=start, aim=4.0))


def test_a_comparison_with_the_clean_loss_is_noticed() -> None:
    with pytest.raises(AssertionError):
        compares_along_the_aim_alone(Square(p=ONE_PIXEL))


@pytest.mark.parametrize(("aim", "order"), [(4.0, 4.0), (None, 0.0)])
def test_the_driver_answers_with_the_loss_of_the_aim(aim: float | None, order: float) -> None:
    """The trace's losses are the divergences of that order at the recorded answers, plus the price of a lost label."""
    case = linear_case(3, classes=4)
    target, goal = case.target(), KeepLabel(MinConfidence(tol=0.0))
    search = Cascade((Noise(points=3), Square(start="best", strict=False, aim=aim)))
    run = drive(case, goal, search, Linf(0.1), budget=30, trace=True, target=target)
    assert len(run.trace) == len(target.log) == 30
    for at, (_, _, scores, _) in zip(run.trace[4:], target.log[4:], strict=True):
        expected = divergence(Outputs(scores), torch.full((3,), order)) + 0.1 * torch.relu(-at.margin)
        torch.testing.assert_close(at.loss, expected, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(at.loss, divergence(Outputs(scores), torch.full((3,), 2.0)))
