"""AdaptivePGD: steps that halve exactly on flips and grow by 1.1, per sample; and a loop written from the text."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from poise.constraints import L2, Box, Constraint, Linf
from poise.errors import InputError
from poise.objectives import UCA, ConfSmooth, KeepLabel
from poise.searches import AdaptivePGD, Ask, Reply
from poise.types import Outputs
from toys import Case, binary_case, by_hand, drive, generator, linear_case, problem

WIDE = Box(-100.0, 100.0)
A0 = 0.02
FALL, SAME, FLIP = "fall", "same", "flip"


def steps_taken(search: AdaptivePGD, *scripts: list[str], eps: float = 1.0) -> list[list[float]]:
    """Length of every step of each sample whose candidates' fates are scripted; the gradient is 1 everywhere."""
    n = len(scripts)
    clean = torch.zeros(n, 1, 2, 2, dtype=torch.float64)
    level = [10.0] * n

    def answer(ask: Ask, number: int) -> Reply:
        losses, accept = [], []
        for row in ask.ids.tolist():
            fate = FALL if number == 0 else scripts[row][number - 1]
            losses.append(level[row] - (fate == FALL) * 1.0 + (fate == SAME) * 1.0 - (fate == FLIP) * 5.0)
            accept.append(fate != FLIP)
            if fate == FALL or (fate == SAME and search.on_no_improve == "move"):
                level[row] = losses[-1]
        active = torch.full((n,), number < max(map(len, scripts)))
        return Reply(torch.tensor(losses), torch.tensor(accept), active, torch.ones_like(ask.x))

    told = by_hand(search.run(problem(clean, Linf(eps), box=WIDE)), answer)
    taken: list[list[float]] = []
    for row, script in enumerate(scripts):
        at, lengths = clean[row], []
        for ask, fate in zip(told.asks[1:], script, strict=False):
            candidate = ask.x[row]
            lengths.append(float((at - candidate).mean()))
            if fate == FALL or (fate == SAME and search.on_no_improve == "move"):
                at = candidate
        taken.append(lengths)
    return taken


def test_steps_halve_on_flips_and_grow_on_falls() -> None:
    """P4."""
    script = [FALL, FALL, FLIP, FLIP, FALL, FLIP, FALL, FALL]
    (taken,) = steps_taken(AdaptivePGD(steps=20, step=A0), script)
    factors = [1.1, 1.1, 0.5, 0.5, 1.1, 0.5, 1.1]
    assert taken == pytest.approx(A0 * np.cumprod([1.0, *factors]), rel=1e-9)


def test_every_sample_has_its_own_step() -> None:
    first, second = steps_taken(AdaptivePGD(steps=20, step=A0), [FALL] * 4, [FLIP] * 4)
    assert first == pytest.approx([A0 * 1.1**t for t in range(4)], rel=1e-9)
    assert second == pytest.approx([A0 * 0.5**t for t in range(4)], rel=1e-9)


@pytest.mark.parametrize(
    ("rule", "factor"),
    [("move", 1.0), ("halve", 0.5), ("literal", 1.0)],
)
def test_where_the_loss_did_not_fall(rule: str, factor: float) -> None:
    """Label kept, loss higher: Eq. 6 moves with the same a; "halve" stays with half; Alg. 1 stays with the same a."""
    search = AdaptivePGD(steps=20, step=A0, on_no_improve=rule)
    (taken,) = steps_taken(search, [FALL, SAME, SAME, FALL])
    a = A0 * 1.1
    assert taken == pytest.approx([A0, a, a * factor, a * factor**2], rel=1e-9)


def test_literal_repeats_the_rejected_candidate_for_ever() -> None:
    """Spec 27.2: the printed branch is a fixed point."""
    clean = torch.zeros(1, 1, 2, 2, dtype=torch.float64)

    def worse(ask: Ask, number: int) -> Reply:
        return Reply(
            torch.tensor([float(number)]), torch.tensor([True]), torch.tensor([number < 6]), torch.ones_like(ask.x)
        )

    told = by_hand(AdaptivePGD(on_no_improve="literal").run(problem(clean, Linf(1.0), box=WIDE)), worse)
    assert len({tuple(ask.x.flatten().tolist()) for ask in told.asks[1:]}) == 1
    moved = by_hand(AdaptivePGD().run(problem(clean, Linf(1.0), box=WIDE)), worse)
    assert len({tuple(ask.x.flatten().tolist()) for ask in moved.asks[1:]}) == 6


def test_step_is_capped_at_twice_the_radius() -> None:
    """a: .01, .1, then .6 and not 1; two flips bring it to .15, which shows again inside the ball of .3."""
    clean = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    fates = [FALL, FALL, FALL, FLIP, FLIP, SAME]

    def answer(ask: Ask, number: int) -> Reply:
        accept = torch.tensor([fates[number] != FLIP])
        return Reply(torch.tensor([-float(number)]), accept, torch.tensor([number < 5]), torch.ones_like(ask.x))

    search = AdaptivePGD(steps=30, step=0.01, growth=10.0)
    told = by_hand(search.run(problem(clean, Linf(0.3), box=WIDE)), answer)
    places = [float(ask.x.mean()) for ask in told.asks]
    assert places == pytest.approx([0.0, -0.01, -0.11, -0.3, -0.3, -0.26])


def test_first_step_is_capped_too() -> None:
    """a_0 = .9 counts as .6: after two flips .15."""
    clean = torch.zeros(1, 1, 2, 2, dtype=torch.float64)

    def answer(ask: Ask, number: int) -> Reply:
        return Reply(torch.zeros(1), torch.tensor([number == 0]), torch.tensor([number < 3]), torch.ones_like(ask.x))

    told = by_hand(AdaptivePGD(step=0.9).run(problem(clean, Linf(0.3), box=WIDE)), answer)
    assert [float(ask.x.mean()) for ask in told.asks] == pytest.approx([0.0, -0.3, -0.3, -0.15])


# --- a loop from the text ---


def by_the_text(case: Case, row: int, constraint: Constraint, search: AdaptivePGD, smooth: bool) -> list[Tensor]:
    """Spec 6 (7 with `smooth`) for one sample, in plain autograd."""
    module, clean = case.module(), case.images[row : row + 1]
    k = int(module(clean).argmax())

    def loss(x: Tensor) -> Tensor:
        z = module(x)
        if smooth:
            return torch.nn.functional.cross_entropy(z, torch.tensor([k]), label_smoothing=0.98)
        p = z[0].softmax(dim=0)
        return p[k] - torch.cat([p[:k], p[k + 1 :]]).max()

    x, a, points = clean, min(search.step, 2 * constraint.eps), [clean]
    for _ in range(search.steps):
        leaf = x.clone().requires_grad_()
        old = loss(leaf)
        (gradient,) = torch.autograd.grad(old, leaf)
        if isinstance(constraint, Linf):
            c = (x - a * gradient.sign()).clamp(clean - constraint.eps, clean + constraint.eps)
        else:
            change = x - a * gradient / gradient.norm() - clean
            c = clean + change * min(1.0, constraint.eps / float(change.norm()))
        c = c.clamp(0, 1)
        points.append(c)
        if int(module(c).argmax()) != k:
            a /= 2
        elif loss(c) < old:
            x, a = c, min(search.growth * a, 2 * constraint.eps)
        elif search.on_no_improve == "move":
            x = c
        elif search.on_no_improve == "halve":
            a /= 2
    return points


@pytest.mark.parametrize("rule", ["move", "halve", "literal"])
@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("constraint", [Linf(0.15), L2(0.6)])
@pytest.mark.parametrize("classes", [2, 5])
def test_points_are_those_of_a_loop_written_from_the_text(
    rule: str, smooth: bool, constraint: Constraint, classes: int
) -> None:
    case = linear_case(6, shape=(1, 5, 4), classes=classes, scale=5.0)
    search = AdaptivePGD(steps=12, step=0.05, on_no_improve=rule)
    goal = ConfSmooth(tol=-1.0) if smooth else UCA(tol=0)
    target = case.target()
    drive(case, KeepLabel(goal, 0.0), search, constraint, target=target)
    flips = 0
    for row in range(6):
        asked = torch.cat([x[ids == case.ids[row]] for ids, x, _, _ in target.log])
        expected = torch.cat(by_the_text(case, row, constraint, search, smooth))
        torch.testing.assert_close(asked, expected, rtol=0, atol=1e-12)
        flips += len(case.module()(asked).argmax(dim=1).unique()) > 1
    assert flips or smooth


@pytest.mark.parametrize("growth", [1.0, 1.2])
def test_loop_with_another_growth(growth: float) -> None:
    case = linear_case(4, classes=3)
    search = AdaptivePGD(steps=8, step=0.03, growth=growth)
    target = case.target()
    drive(case, KeepLabel(UCA(tol=0), 0.0), search, Linf(0.2), target=target)
    for row in range(4):
        asked = torch.cat([x[ids == case.ids[row]] for ids, x, _, _ in target.log])
        torch.testing.assert_close(
            asked, torch.cat(by_the_text(case, row, Linf(0.2), search, False)), rtol=0, atol=1e-12
        )


# --- what it achieves, and what it costs ---


def test_two_classes_end_at_one_half_from_above() -> None:
    """P3: the paper's .50 of its two-class set; the default margin keeps the label."""
    case = binary_case(8, margin=2.0)
    run = drive(case, KeepLabel(UCA(tol=0)), AdaptivePGD(steps=60), Linf(0.2), budget=100)
    confidence = Outputs(run.best.scores).confidence
    assert bool((confidence > 0.5 + 0.4e-4).all())
    assert bool((confidence < 0.505).all())
    assert torch.equal(Outputs(run.best.scores).labels, run.clean.labels)


def test_best_is_kept_when_later_iterates_are_worse() -> None:
    """P2 with "move": the iterate may rise, the result does not."""
    case = linear_case(8, classes=5, scale=8.0)
    search = AdaptivePGD(steps=15, step=0.1)
    results = [drive(case, KeepLabel(UCA(tol=0)), search, Linf(0.2), budget=b).best.merit for b in (1, 4, 8, 16)]
    for earlier, later in pairwise(results):
        assert bool((later <= earlier).all())
    assert bool((results[-1] < results[0]).all())


def test_twenty_steps_are_twenty_one_forward_passes() -> None:
    case = linear_case(3)
    run = drive(case, KeepLabel(UCA(tol=0)), AdaptivePGD(), Linf(0.01))
    assert run.meter.queries.tolist() == [21] * 3
    assert run.meter.gradients.tolist() == [20] * 3


def test_random_start_falls_back_to_the_clean_image() -> None:
    clean = torch.full((2, 1, 4, 4), 0.5, dtype=torch.float64)

    def answer(ask: Ask, number: int) -> Reply:
        accept = torch.tensor([True, number != 1])
        return Reply(torch.zeros(2).double(), accept, torch.full((2,), number < 2), torch.ones_like(ask.x))

    told = by_hand(AdaptivePGD(step=0.01, random_start=True).run(problem(clean, Linf(0.1))), answer)
    start, candidate = told.asks[1].x, told.asks[2].x
    assert not torch.equal(start, clean)
    assert bool(Linf(0.1).contains(start, clean).all())
    expected = Linf(0.1).project(torch.stack([start[0], clean[1]]) - 0.01, clean, Box())
    torch.testing.assert_close(candidate, expected)


def test_starts_at_the_clean_image_unless_asked() -> None:
    clean = torch.rand(2, 1, 4, 4, generator=generator(0), dtype=torch.float64)

    def answer(ask: Ask, number: int) -> Reply:
        return Reply(
            torch.zeros(2), torch.ones(2, dtype=torch.bool), torch.full((2,), number < 1), torch.ones_like(ask.x)
        )

    told = by_hand(AdaptivePGD(step=0.01).run(problem(clean, Linf(0.1), box=WIDE)), answer)
    torch.testing.assert_close(told.asks[1].x, clean - 0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdaptivePGD(steps=0), "AdaptivePGD: steps must be at least 1, got 0"),
        (lambda: AdaptivePGD(step=0), "AdaptivePGD: step must be a positive number, got 0"),
        (lambda: AdaptivePGD(growth=0.9), "AdaptivePGD: growth must be at least 1, got 0.9"),
        (lambda: AdaptivePGD(on_no_improve="stay"), "on_no_improve must be 'move', 'halve' or 'literal', got 'stay'"),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
