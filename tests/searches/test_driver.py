"""The driver: budget, best point, probes, repeats, early stop, last verification; by searches that provoke it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import poise
from poise.constraints import Box, Linf
from poise.errors import PoiseError
from poise.objectives import OCA, UCA, KeepLabel
from poise.objectives.base import Bound, downwards
from poise.rng import Rng
from poise.searches import Ask, Problem
from poise.searches.base import Steps
from poise.searches.driver import Best, Driver
from poise.types import Access, Outputs
from toys import Case, Elsewhere, RecordingTarget, Scripted, drive, linear_case

BALL = Linf(0.3)


@dataclass(frozen=True)
class Own:
    """A search made of a generator function."""

    steps: Callable[[Problem], Steps]
    access: ClassVar[Access] = Access.GRADIENTS

    def run(self, problem: Problem) -> Steps:
        return self.steps(problem)


@dataclass(frozen=True)
class FirstPixel:
    """Goal on a model that answers with the image itself: merit is logit 0, the loss its negative if `against`.

    Args:
        done_below, accept_below: merits under which a point ends the attack, and is accepted.
        against: the search is led upwards while results are ranked downwards.
    """

    access: ClassVar[Access] = Access.SCORES
    done_below: float = -1.0
    accept_below: float = 9.0
    against: bool = False

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        return _FirstPixel(k=clean.labels, over=downwards(clean), goal=self)


@dataclass(frozen=True, kw_only=True)
class _FirstPixel(Bound):
    goal: FirstPixel

    def merit(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return outputs.logits[:, 0]

    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return -self.merit(outputs, ids) if self.goal.against else self.merit(outputs, ids)

    def accept(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return self.merit(outputs, ids) < self.goal.accept_below

    def done(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return self.merit(outputs, ids) < self.goal.done_below


def identity_case(*values: float) -> Case:
    """Images of one pixel, and a model that answers (pixel, 0)."""
    images = torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)
    weight = torch.tensor([1.0, 0.0], dtype=torch.float64).view(2, 1, 1, 1)
    n = len(values)
    return Case(images, torch.zeros(n, dtype=torch.long), torch.arange(n) * 3, weight, torch.zeros(2).double())


def pixels(run: object) -> list[float]:
    return run.best.x.flatten().tolist()


# --- the best point ---


def test_the_lowest_merit_is_kept_whatever_comes_later() -> None:
    run = drive(identity_case(0.5, 0.6), FirstPixel(), Scripted((-0.1, -0.2, 0.1, -0.15)), BALL)
    assert pixels(run) == pytest.approx([0.3, 0.4])
    assert run.best.merit.tolist() == pytest.approx([0.3, 0.4])
    assert run.best.scores[:, 0].tolist() == pytest.approx([0.3, 0.4])


def test_the_clean_point_is_the_first() -> None:
    run = drive(identity_case(0.5), FirstPixel(), Scripted((0.1, 0.2)), BALL)
    assert pixels(run) == [0.5]


def test_merit_ranks_and_loss_leads() -> None:
    """A search may follow one thing while what counts is another (spec of `Bound`)."""
    told: list[list[float]] = []

    def steps(problem: Problem) -> Steps:
        reply = yield Ask(problem.clean, problem.everyone)
        told.append(reply.loss.tolist())
        for change in (-0.1, 0.2):
            reply = yield Ask(problem.clean + change, problem.everyone)
            told.append(reply.loss.tolist())

    run = drive(identity_case(0.5), FirstPixel(against=True), Own(steps), BALL)
    assert [loss for (loss,) in told] == pytest.approx([-0.5, -0.4, -0.7])
    assert pixels(run) == pytest.approx([0.4])
    assert run.clean_merit.tolist() == [0.5]


def test_probes_are_charged_and_never_returned() -> None:
    search = Scripted((-0.2, -0.1), probe=(0,))
    case = identity_case(0.5)
    target = case.target()
    run = drive(case, FirstPixel(), search, BALL, target=target)
    assert pixels(run) == pytest.approx([0.4])
    assert run.meter.queries.tolist() == [3] == target.counted(case.ids, gradients=False)


def test_probes_end_nothing() -> None:
    run = drive(identity_case(0.5), FirstPixel(done_below=0.35), Scripted((-0.2, -0.1), probe=(0,)), BALL)
    assert run.done.tolist() == [False]
    assert run.queries_to_success.tolist() == [-1]


def test_points_outside_the_ball_or_the_box_are_never_returned() -> None:
    for change in (-0.31, -0.5):
        run = drive(identity_case(0.5), FirstPixel(done_below=0.25), Scripted((-0.05, change)), BALL)
        assert pixels(run) == pytest.approx([0.45])
        assert run.done.tolist() == [False]
    outside_the_box = drive(identity_case(0.1), FirstPixel(), Scripted((-0.05, -0.2)), BALL)
    assert pixels(outside_the_box) == pytest.approx([0.05])


def test_points_that_are_not_accepted_are_never_returned() -> None:
    run = drive(identity_case(0.5), FirstPixel(accept_below=0.45), Scripted((-0.02, 0.1)), BALL)
    assert pixels(run) == [0.5]  # the clean one, though it is not accepted either
    run = drive(identity_case(0.5), FirstPixel(accept_below=0.45), Scripted((-0.02, -0.1, 0.1)), BALL)
    assert pixels(run) == pytest.approx([0.4])


def test_the_accepted_column_says_so() -> None:
    case = linear_case(4)
    never = poise.attack(
        case.target(), KeepLabel(UCA(), 0.999), Scripted((0.01,)), BALL, case.images * 0.5, case.labels
    )
    assert never.table["accepted"].to_list() == [False] * 4
    assert torch.equal(never.images, case.images * 0.5)


@pytest.mark.parametrize("defect", ["ball", "box", "merit", "accept"])
def test_the_last_verification_stops_a_defect(defect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that records what it must not is caught before it returns."""
    value = {"ball": 0.9, "box": -1e-3, "merit": 0.52, "accept": 0.48}[defect]

    def broken(self: Best, ids: Tensor, x: Tensor, scores: Tensor, merit: Tensor) -> None:
        self.x[:] = value
        self.scores[:, 0] = value
        self.merit[:] = value if defect == "merit" else 0.4

    monkeypatch.setattr(Best, "take", broken)
    goal = FirstPixel(accept_below=0.45 if defect == "accept" else 9.0)
    with pytest.raises(PoiseError, match="failed its last verification") as caught:
        drive(identity_case(0.5 if defect != "box" else 0.1), goal, Scripted((-0.1,)), BALL)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("change", "eps"), [(-0.31, 0.3), (-0.6, 1.0)])
def test_a_search_that_vouches_in_vain_is_stopped(change: float, eps: float) -> None:
    """Points that are said to lie inside are looked at once, as results: outside the ball, outside the box."""

    def steps(inside: bool) -> Callable[[Problem], Steps]:
        def run(problem: Problem) -> Steps:
            yield Ask(problem.clean, problem.everyone)
            yield Ask(problem.clean + change, problem.everyone, inside=inside)

        return run

    assert pixels(drive(identity_case(0.5), FirstPixel(), Own(steps(False)), Linf(eps))) == [0.5]
    with pytest.raises(PoiseError, match="failed its last verification"):
        drive(identity_case(0.5), FirstPixel(), Own(steps(True)), Linf(eps))


# --- several points of one sample ---


def asks_many(repeats: int, *changes: float) -> Own:
    """The clean points, then for every sample all of clean + changes in one ask."""

    def steps(problem: Problem) -> Steps:
        yield Ask(problem.clean, problem.everyone)
        ids = problem.everyone.repeat(len(changes))
        shift = torch.tensor(changes, dtype=torch.float64).repeat_interleave(len(problem.everyone)).view(-1, 1, 1, 1)
        yield Ask(problem.clean[ids] + shift, ids, repeats=repeats)

    return Own(steps)


def test_the_best_of_several_points_wins() -> None:
    run = drive(identity_case(0.5, 0.6), FirstPixel(), asks_many(4, -0.1, -0.25, 0.1, -0.2), BALL)
    assert pixels(run) == pytest.approx([0.25, 0.35])
    assert run.best.merit.tolist() == pytest.approx([0.25, 0.35])
    assert run.best.scores[:, 0].tolist() == pytest.approx([0.25, 0.35])
    assert run.meter.queries.tolist() == [5, 5]


def test_several_points_some_of_which_are_no_candidates() -> None:
    """Outside the ball, not accepted, tied: the first of the best that would do."""
    goal = FirstPixel(accept_below=0.45)
    run = drive(identity_case(0.5), goal, asks_many(5, -0.4, 0.1, -0.2, -0.2, -0.1), BALL)
    assert pixels(run) == pytest.approx([0.3])


def test_several_points_reach_the_goal_together() -> None:
    run = drive(identity_case(0.5, 0.9), FirstPixel(done_below=0.32), asks_many(3, -0.1, -0.2, -0.25), BALL)
    assert run.done.tolist() == [True, False]
    assert pixels(run) == pytest.approx([0.25, 0.65])
    assert run.queries_to_success[0] in (3, 4)


def test_a_budget_that_ends_among_several_points_takes_the_earlier_ones() -> None:
    case = identity_case(0.5, 0.6)
    target = case.target()
    run = drive(case, FirstPixel(), asks_many(4, -0.1, -0.05, -0.2, -0.25), BALL, budget=3, target=target)
    assert run.meter.queries.tolist() == [3, 3] == target.counted(case.ids, gradients=False)
    assert pixels(run) == pytest.approx([0.4, 0.5])


def test_points_that_were_not_affordable_come_back_as_infinite() -> None:
    told = []

    def steps(problem: Problem) -> Steps:
        yield Ask(problem.clean, problem.everyone)
        ids = torch.tensor([1, 0, 1])
        told.append((yield Ask(problem.clean[ids], ids, grad=True, repeats=2)))

    run = drive(identity_case(0.5, 0.6), FirstPixel(), Own(steps), BALL, budget=2)
    (reply,) = told
    assert torch.isinf(reply.loss).tolist() == [False, False, True]
    assert reply.accept.tolist() == [True, True, False]
    assert reply.active.tolist() == [False, False]
    assert reply.grad[2].abs().sum() == 0
    assert reply.grad[0].item() == reply.grad[1].item() == 1
    assert run.meter.queries.tolist() == [2, 2]
    assert run.meter.gradients.tolist() == [1, 1]


@pytest.mark.parametrize("budget", [4, 10, 1000])
def test_several_points_without_saying_so_are_refused(budget: int) -> None:
    """`repeats` left at 1: a defect of the search, named before a single pass beyond the budget is spent."""

    def steps(problem: Problem) -> Steps:
        yield Ask(problem.clean, problem.everyone)
        for _ in range(20):
            ids = problem.everyone.repeat(2)
            yield Ask(problem.clean[ids] - 0.1, ids)

    case = identity_case(0.5, 0.6)
    target = case.target()
    with pytest.raises(PoiseError) as caught:
        drive(case, FirstPixel(), Own(steps), BALL, budget=budget, target=target)
    assert "\n" not in str(caught.value)
    assert max(target.counted(case.ids, gradients=False)) <= budget


@pytest.mark.parametrize("checkpoint", [1, 2, 3, 4, 5])
def test_the_curve_never_shows_what_took_more_queries(checkpoint: int) -> None:
    changes = (-0.05, -0.1, -0.15, -0.2)
    run = drive(identity_case(0.5), FirstPixel(), asks_many(4, *changes), BALL, checkpoints=(checkpoint,))
    ((queries, scores),) = run.curve
    assert queries == checkpoint
    best_possible = 0.5 + (0.0, *changes)[checkpoint - 1]
    assert scores[0, 0].item() >= best_possible - 1e-12


def test_a_part_of_an_ask_says_what_the_whole_says() -> None:
    x, ids, numbers = torch.rand(3, 1, 1, 1), torch.tensor([4, 5, 6]), torch.tensor([0.1, 0.2, 0.3])
    part = Ask(x, ids, grad=True, probe=True, repeats=2, aim=numbers + 1, step=numbers, inside=True)
    part = part.at(torch.tensor([2, 0]))
    assert torch.equal(part.x, x[[2, 0]])
    assert part.ids.tolist() == [6, 4]
    assert (part.grad, part.probe, part.repeats, part.inside) == (True, True, 2, True)
    assert torch.equal(part.aim, numbers[[2, 0]] + 1)
    assert torch.equal(part.step, numbers[[2, 0]])
    part = Ask(x, ids, step=0.5).at(ids > 4)
    assert part.ids.tolist() == [5, 6]
    assert (part.grad, part.probe, part.repeats, part.inside) == (False, False, 1, False)
    assert (part.aim, part.step) == (None, 0.5)


def test_a_probe_that_the_budget_cuts_is_still_a_probe() -> None:
    def steps(problem: Problem) -> Steps:
        yield Ask(problem.clean, problem.everyone)
        ids = problem.everyone.repeat(3)
        yield Ask(problem.clean[ids] - 0.1, ids, probe=True, repeats=3)

    run = drive(identity_case(0.5, 0.6), FirstPixel(), Own(steps), BALL, budget=2)
    assert run.meter.queries.tolist() == [2, 2]
    assert pixels(run) == [0.5, 0.6]


def test_a_search_can_judge_answers_that_nobody_gave() -> None:
    judged = []

    def steps(problem: Problem) -> Steps:
        yield Ask(problem.clean, problem.everyone)
        imagined = Outputs(torch.tensor([[0.25, 0.0], [-0.5, 0.0]], dtype=torch.float64))
        judged.append(problem.judge(imagined, torch.tensor([1, 0]), None).tolist())

    run = drive(identity_case(0.5, 0.6), FirstPixel(against=True), Own(steps), BALL)
    assert judged == [[-0.25, 0.5]]
    assert run.meter.queries.tolist() == [1, 1]


# --- accelerators, where the driver never looks at a value ---

STEPS = (-0.05, -0.4, -0.1, 0.1, -0.02, -0.2, -0.25)
"""Better and worse ones, one outside of the ball; later ones reach the goal."""


@pytest.mark.parametrize("budget", [4, 100])
@pytest.mark.parametrize(
    "search", [Scripted(STEPS), Scripted(STEPS, forever=True), asks_many(7, *STEPS)], ids=["one", "forever", "many"]
)
def test_an_accelerator_gives_the_same(search: object, budget: int) -> None:
    case = identity_case(0.5, 0.9, 0.2, 0.05)
    goal = FirstPixel(done_below=0.35, accept_below=0.87)
    here = drive(case, goal, search, BALL, budget=budget, checkpoints=(2, 3, 5))
    with Elsewhere() as elsewhere:
        assert case.images.device == elsewhere.device
        there = drive(case, goal, search, BALL, budget=budget, checkpoints=(2, 3, 5))
    assert int(here.improved_at.max()) > 1
    for field in ("done", "queries_to_success", "improved_at", "clean_merit", "active"):
        assert torch.equal(getattr(there, field), getattr(here, field)), field
    for field in ("x", "scores", "merit"):
        assert torch.equal(getattr(there.best, field), getattr(here.best, field)), field
    assert [queries for queries, _ in there.curve] == [2, 3, 5]
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(there.curve, here.curve, strict=True))


# --- budget and end ---


def test_finished_samples_leave_and_the_others_go_on() -> None:
    case = identity_case(0.5, 0.9, 0.2)
    target = case.target()
    run = drive(case, FirstPixel(done_below=0.4), Scripted((-0.05, -0.2, -0.3)), BALL, target=target)
    assert run.done.tolist() == [True, False, True]
    assert run.meter.queries.tolist() == [3, 4, 1] == target.counted(case.ids, gradients=False)
    assert run.queries_to_success.tolist() == [3, -1, 1]


def test_the_first_success_counts_though_a_search_asks_on() -> None:
    def steps(problem: Problem) -> Steps:
        for change in (0.0, -0.2, -0.25):
            yield Ask(problem.clean if change == 0 else problem.clean + change, problem.everyone)

    run = drive(identity_case(0.5, 0.9), FirstPixel(done_below=0.4), Own(steps), BALL)
    assert run.queries_to_success.tolist() == [2, -1]
    assert run.meter.queries.tolist() == [3, 3]


def test_a_clean_point_that_is_not_accepted_is_not_done() -> None:
    """Its merit would do, the point would not."""
    goal = FirstPixel(done_below=0.6, accept_below=0.45)
    run = drive(identity_case(0.5), goal, Scripted((-0.1,)), BALL)
    assert run.queries_to_success.tolist() == [2]
    assert pixels(run) == pytest.approx([0.4])


@pytest.mark.parametrize("budget", [1, 2, 7])
def test_a_search_that_never_stops_is_stopped_by_the_budget(budget: int) -> None:
    """It asks for everyone again and again: no query beyond the budget, and an end, not a hang."""
    case = identity_case(0.5, 0.6)
    target = case.target()
    asked = []

    def steps(problem: Problem) -> Steps:
        yield Ask(problem.clean, problem.everyone)
        while True:
            asked.append(1)
            assert len(asked) < 100, "the driver asks on although nobody is active"
            yield Ask(problem.clean - 0.1, problem.everyone)

    run = drive(case, FirstPixel(), Own(steps), BALL, budget=budget, target=target)
    assert run.meter.queries.tolist() == [budget] * 2 == target.counted(case.ids, gradients=False)
    assert pixels(run) == pytest.approx([0.5, 0.6] if budget == 1 else [0.4, 0.5])


def test_an_ask_for_nobody_costs_nothing() -> None:
    def steps(problem: Problem) -> Steps:
        yield Ask(problem.clean, problem.everyone)
        none = problem.everyone[:0]
        for grad in (False, True):
            reply = yield Ask(problem.clean[none], none, grad=grad)
            assert reply.loss.shape == reply.accept.shape == (0,)
            assert (reply.grad is None) is not grad
        yield Ask(problem.clean - 0.1, problem.everyone)

    run = drive(identity_case(0.5), FirstPixel(), Own(steps), BALL)
    assert run.meter.queries.tolist() == [2]
    assert pixels(run) == pytest.approx([0.4])


def test_gradients_belong_to_the_points_asked() -> None:
    case = linear_case(3)
    told = []

    def steps(problem: Problem) -> Steps:
        told.append((yield Ask(problem.clean, problem.everyone, grad=True)))
        ids = torch.tensor([2, 0])
        told.append((yield Ask(problem.clean[ids], ids, grad=True)))

    run = drive(case, OCA(tol=0), Own(steps), BALL)
    first, second = told
    assert torch.equal(first.grad[[2, 0]], second.grad)
    assert run.meter.gradients.tolist() == [2, 1, 2]
    leaf = case.images.clone().requires_grad_()
    p = case.module()(leaf).softmax(dim=1)
    (expected,) = torch.autograd.grad((1 - p.amax(dim=1)).sum(), leaf)
    torch.testing.assert_close(first.grad, expected, rtol=1e-9, atol=1e-12)


def test_direction_is_known_after_the_clean_answers() -> None:
    seen = []

    def steps(problem: Problem) -> Steps:
        seen.append(problem.over.tolist())
        yield Ask(problem.clean, problem.everyone)
        seen.append(problem.over.tolist())

    case = linear_case(6)
    drive(case, poise.objectives.MMA(), Own(steps), BALL)
    wrong = (case.module()(case.images).argmax(dim=1) != case.labels).tolist()
    assert seen == [[False] * 6, wrong]
    assert True in wrong
    assert False in wrong


# --- the rule of the first ask, and what a search may not touch ---


def first_asks() -> dict[str, Callable[[Problem], Steps]]:
    def nothing(problem: Problem) -> Steps:
        yield from ()

    def a_copy(problem: Problem) -> Steps:
        yield Ask(problem.clean.clone(), problem.everyone)

    def a_change(problem: Problem) -> Steps:
        yield Ask(problem.clean + 0.1, problem.everyone)

    return {"nothing": nothing, "a copy": a_copy, "a change": a_change}


@pytest.mark.parametrize("which", first_asks())
def test_the_first_points_must_be_the_clean_ones(which: str) -> None:
    case = identity_case(0.5)
    target = case.target()
    with pytest.raises(PoiseError, match="Own: the first points a search asks for must be the clean ones"):
        drive(case, FirstPixel(), Own(first_asks()[which]), BALL, target=target)
    assert target.log == []


def test_a_search_may_reuse_its_memory() -> None:
    """Points are copied when they are kept: what a search writes into its tensor afterwards changes no result."""

    def steps(problem: Problem) -> Steps:
        yield Ask(problem.clean, problem.everyone)
        x = problem.clean - 0.1
        yield Ask(x, problem.everyone)
        x += 0.25
        yield Ask(x, problem.everyone)

    run = drive(identity_case(0.5), FirstPixel(), Own(steps), BALL)
    assert pixels(run) == pytest.approx([0.4])


class Clingy(RecordingTarget):
    """Hands out one tensor of scores and overwrites it at the next call, as a runtime with fixed buffers does."""

    buffer: Tensor | None = None

    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        answer = super().query(x, ids)
        if self.buffer is None or self.buffer.shape != answer.scores.shape:
            self.buffer = answer.scores.clone()
        self.buffer.copy_(answer.scores)
        return Outputs(self.buffer, answer.kind)


def test_answers_are_copied_when_they_are_kept() -> None:
    case = identity_case(0.5)
    target = Clingy(case.module(), num_classes=2)
    run = drive(case, FirstPixel(), Scripted((-0.1, 0.2)), BALL, target=target)
    assert run.best.scores[0, 0].item() == pytest.approx(0.4)
    assert run.clean.scores[0, 0].item() == pytest.approx(0.5)


def test_the_search_is_closed_when_a_target_breaks() -> None:
    closed = []

    def steps(problem: Problem) -> Steps:
        try:
            yield Ask(problem.clean, problem.everyone)
            yield Ask(problem.clean / 0, problem.everyone)
        finally:
            closed.append(True)

    with pytest.raises(PoiseError):
        drive(identity_case(0.5), FirstPixel(), Own(steps), BALL)
    assert closed == [True]


def test_driver_checks_the_box_of_its_target() -> None:
    case = identity_case(0.5)
    driver = Driver(
        target=case.target(bounds=(0.45, 1.0)),
        objective=FirstPixel(),
        search=Scripted((-0.04, -0.2)),
        constraint=BALL,
        labels=case.labels,
        sample_ids=case.ids,
        budget=9,
        seed=0,
    )
    run = driver.run(case.images.clone())
    assert run.problem.box == Box(0.45, 1.0)
    assert pixels(run) == pytest.approx([0.46])
