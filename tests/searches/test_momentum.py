"""MomentumPGD: a loop written from the text, plain PGD without decay, ART, and what undoing forgets."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import poise
from poise.checks.searches import check_search
from poise.constraints import L2, Box, Constraint, Linf
from poise.errors import InputError
from poise.objectives import UCA, ConfSmooth, CrossEntropy, KeepLabel
from poise.rng import Rng
from poise.searches import PGD, Ask, Reply
from poise.searches.momentum import MomentumPGD
from toys import (
    Case,
    Constant,
    RecordingTarget,
    SmallCNN,
    binary_case,
    by_hand,
    drive,
    generator,
    linear_case,
    problem,
)

# --- a loop from the text ---


def by_the_text(
    case: Case, row: int, search: MomentumPGD, constraint: Constraint, *, scaled: bool, smooth: bool
) -> list[np.ndarray]:
    """All points of one sample of a linear softmax model, in numpy; not `scaled`: no l1 norm.

    Away from the true label by its cross-entropy, or (`smooth`) towards the prediction's label smoothed by .98, whose
    lowest point lies inside the ball, so that steps overshoot.
    """
    weight, bias = case.weight.flatten(1).numpy(), case.bias.numpy()
    x0 = case.images[row].flatten().numpy()
    y, points, x, v = int(case.labels[row]), [x0], x0, np.zeros_like(x0)

    def clipped(x: np.ndarray) -> np.ndarray:
        change = x - x0
        if isinstance(constraint, Linf):
            return np.clip(x0 + np.clip(change, -constraint.eps, constraint.eps), 0, 1)
        return np.clip(x0 + change * min(1.0, constraint.eps / max(np.sqrt((change**2).sum()), 1e-300)), 0, 1)

    def predicted(x: np.ndarray) -> int:
        return int((weight @ x + bias).argmax())

    k = predicted(x0)
    if search.random_start:
        start = constraint.sample(case.images[row : row + 1], Box(), torch.tensor([row]), Rng(0, case.ids), 0)
        x = start.flatten().numpy()
        points.append(x)
        x = x if not search.undo or predicted(x) == k else x0
    a = constraint.eps / search.steps if search.step is None else search.step

    wanted = np.full(len(bias), 0.98 / len(bias)) if smooth else np.zeros(len(bias))
    wanted[k if smooth else y] += 0.02 if smooth else 1
    side = 1 if smooth else -1

    def lost(x: np.ndarray) -> float:
        z = weight @ x + bias
        return -side * float(wanted @ (z - z.max() - np.log(np.exp(z - z.max()).sum())))

    for _ in range(search.steps):
        z = weight @ x + bias
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        g = -side * (p - wanted) @ weight  # downhill
        v = search.decay * v + (g / np.abs(g).sum() if scaled else g)
        step = np.sign(v) if isinstance(constraint, Linf) else v / np.sqrt((v**2).sum())
        points.append(clipped(x + a * step))
        fell = lost(points[-1]) < lost(x)
        if search.backtrack > 1 and not fell:
            a /= search.backtrack
        if search.undo and predicted(points[-1]) != k:
            v = np.zeros_like(v)
        elif search.backtrack == 1 or fell:
            x = points[-1]
    return points


def same_points(
    search: MomentumPGD, constraint: Constraint, *, scaled: bool = True, smooth: bool = False, used: MomentumPGD
) -> None:
    case = linear_case(6, shape=(1, 5, 4), classes=4)
    followed = ConfSmooth(tol=0) if smooth else CrossEntropy()
    goal = KeepLabel(followed, 0.0) if search.undo else followed
    target = case.target()
    drive(case, goal, search, constraint, target=target)
    for row in range(6):
        asked = torch.cat([x[ids == case.ids[row]] for ids, x, _, _ in target.log])
        expected = torch.from_numpy(np.stack(by_the_text(case, row, used, constraint, scaled=scaled, smooth=smooth)))
        torch.testing.assert_close(asked.flatten(1), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.4)], ids=repr)
@pytest.mark.parametrize(
    "search",
    [
        MomentumPGD(),
        MomentumPGD(steps=8, step=0.05, decay=0.5),
        MomentumPGD(steps=8, step=0.05, random_start=True),
        MomentumPGD(steps=8, step=0.08, undo=True),
        MomentumPGD(steps=10, step=0.05, decay=0.9, random_start=True, backtrack=1.5),
        MomentumPGD(steps=10, step=0.05, backtrack=2.0),
        MomentumPGD(steps=10, step=0.05, undo=True, backtrack=1.5),
    ],
    ids=repr,
)
@pytest.mark.parametrize("smooth", [False, True], ids=["away", "smooth"])
def test_points_are_those_of_a_loop_written_from_the_text(
    search: MomentumPGD, constraint: Constraint, smooth: bool
) -> None:
    same_points(search, constraint, smooth=smooth, used=search)


@pytest.mark.parametrize(
    ("used", "scaled"),
    [(MomentumPGD(steps=8, step=0.05, decay=0.0), True), (MomentumPGD(steps=8, step=0.05), False)],
    ids=["no momentum", "no l1 norm"],
)
def test_another_velocity_is_noticed(used: MomentumPGD, scaled: bool) -> None:
    with pytest.raises(AssertionError):
        same_points(MomentumPGD(steps=8, step=0.05), L2(0.4), used=used, scaled=scaled)


@pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.4)], ids=repr)
@pytest.mark.parametrize("other", [1.0, 1.5])
def test_another_backtrack_is_noticed(constraint: Constraint, other: float) -> None:
    with pytest.raises(AssertionError):
        same_points(
            MomentumPGD(steps=10, step=0.05, backtrack=2.0),
            constraint,
            smooth=True,
            used=MomentumPGD(steps=10, step=0.05, backtrack=other),
        )


def test_without_decay_it_is_pgd() -> None:
    case = linear_case(5)
    for constraint in (Linf(0.1), L2(0.4)):
        for undo in (True, False):
            ours = drive(case, KeepLabel(UCA(tol=0)), MomentumPGD(steps=6, step=0.03, decay=0.0, undo=undo), constraint)
            plain = drive(case, KeepLabel(UCA(tol=0)), PGD(steps=6, step=0.03, undo=undo), constraint)
            torch.testing.assert_close(ours.best.x, plain.best.x, rtol=0, atol=1e-12)
            assert ours.meter.gradients.tolist() == plain.meter.gradients.tolist()


@pytest.mark.parametrize("constraint", [Linf(0.05), L2(0.2)], ids=repr)
def test_two_classes_in_closed_form(constraint: Constraint) -> None:
    """The steps of eps / T add up to eps: the margin falls by eps times the dual norm of w_1 - w_0."""
    case = binary_case(4, margin=3.0)
    run = drive(case, CrossEntropy(), MomentumPGD(), constraint)
    difference = (case.weight[1] - case.weight[0]).flatten()
    dual = difference.abs().sum() if isinstance(constraint, Linf) else difference.norm()
    np.testing.assert_allclose(run.best.merit.numpy(), 3.0 - constraint.eps * float(dual), rtol=1e-9)
    assert run.meter.queries.tolist() == [11] * 4
    assert run.meter.gradients.tolist() == [10] * 4


# --- undo ---


def test_undoing_forgets_the_velocity() -> None:
    """v = (1, 0) after one step; the second is refused; the third follows the gradient (-0.5, 0.5) alone."""
    clean = torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64)
    gradients = [torch.tensor(g, dtype=torch.float64).view(1, 1, 1, 2) for g in ([1.0, 0.0], [-1.0, 1.0], [7.0, 7.0])]

    def answer(ask: Ask, number: int) -> Reply:
        yes = torch.ones(1, dtype=torch.bool)
        return Reply(torch.zeros(1), yes if number != 2 else ~yes, yes, gradients[min(number, 2)])

    for undo, third in ((True, [0.50, 0.45]), (False, [0.35, 0.40])):
        told = by_hand(
            MomentumPGD(steps=3, step=0.05, undo=undo).run(problem(clean, Linf(0.4), box=Box(-9, 9))), answer
        )
        points = [ask.x.flatten().tolist() for ask in told.asks]
        assert points[1] == pytest.approx([0.45, 0.5])
        assert points[2] == pytest.approx([0.40, 0.45])  # v = (0.5, 0.5)
        assert points[3] == pytest.approx(third)


# --- backtrack ---


def test_a_step_that_does_not_gain_is_taken_back_and_shortened() -> None:
    """One pixel, two samples: the first gains always, the second not in the second step; the velocity stays."""
    clean = torch.full((2, 1, 1, 1), 0.5, dtype=torch.float64)
    losses = {0: [0.0, -1.0, -2.0, -3.0], 1: [0.0, -1.0, -1.0, -3.0]}

    def answer(ask: Ask, number: int) -> Reply:
        yes = torch.ones(2, dtype=torch.bool)
        loss = torch.tensor([losses[int(row)][min(number, 3)] for row in ask.ids]).double()
        slope = torch.tensor([1.0, -1.0 if number == 2 else 1.0]).double()
        return Reply(loss, yes, yes, slope.view(2, 1, 1, 1).expand_as(ask.x))

    # v = 1, 1.5, and then 1.75 (the gradient of the point gone back to is still 1) or .75 - 1 = -.25
    for backtrack, second in ((2.0, [0.4, 0.3, 0.35, 0.3]), (1.0, [0.4, 0.3, 0.4, 0.3])):
        search = MomentumPGD(steps=4, step=0.1, decay=0.5, backtrack=backtrack)
        told = by_hand(search.run(problem(clean, Linf(0.5), box=Box(-9, 9))), answer)
        points = torch.stack([ask.x.flatten() for ask in told.asks[1:]])
        assert points[:, 0].tolist() == pytest.approx([0.4, 0.3, 0.2, 0.1])
        assert points[:, 1].tolist() == pytest.approx(second)
        assert told.asks[3].step.tolist() == pytest.approx([0.1, 0.1 / backtrack])


# --- ART ---


@pytest.mark.parametrize(("norm", "constraint"), [(np.inf, Linf(0.05))])
def test_iterates_equal_arts(norm: float, constraint: Constraint) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evasion = importlib.import_module("art.attacks.evasion")
        estimators = importlib.import_module("art.estimators.classification")
    module = SmallCNN(classes=4, size=8).eval()
    images = 0.3 + 0.4 * torch.rand(12, 1, 8, 8, generator=generator(1))
    with torch.no_grad():
        labels = module(images).argmax(dim=1)
    classifier = estimators.PyTorchClassifier(
        module,
        loss=nn.CrossEntropyLoss(),
        input_shape=(1, 8, 8),
        nb_classes=4,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    attack = evasion.MomentumIterativeMethod(
        classifier, norm=norm, eps=constraint.eps, eps_step=constraint.eps / 5, decay=1.0, max_iter=5, verbose=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.from_numpy(attack.generate(images.numpy().copy(), labels.numpy()))
    target = RecordingTarget(module, num_classes=4)
    poise.attack(target, CrossEntropy(), MomentumPGD(steps=5), constraint, images, labels)
    ours = target.log[-1][1]
    equal = ((ours - theirs).abs() < 1e-5).double().mean().item()
    assert equal > 0.999, f"only {equal:.5f} of the pixels agree"


# --- edges ---


@pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.4)], ids=repr)
@pytest.mark.parametrize(
    "search",
    [
        MomentumPGD(),
        MomentumPGD(step=0.05, random_start=True, undo=True),
        MomentumPGD(step=0.05, random_start=True, backtrack=1.5),
    ],
    ids=repr,
)
def test_contract(search: MomentumPGD, constraint: Constraint) -> None:
    check_search(search, constraint=constraint)


@pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.4)], ids=repr)
@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_constant_model_moves_nothing(n: int, classes: int, constraint: Constraint) -> None:
    images = torch.rand(n, 1, 4, 4, generator=generator(0))
    target = RecordingTarget(Constant(classes), num_classes=classes)
    labels = torch.zeros(n, dtype=torch.long)
    result = poise.attack(target, CrossEntropy(), MomentumPGD(), constraint, images, labels)
    assert torch.equal(result.images, images)
    assert all(torch.equal(x, images) for _, x, _, _ in target.log)


def test_the_smallest_gradients_still_move() -> None:
    """Float32 gradients of 1e-30 per pixel: their sum is no 0, and the direction is theirs."""
    clean = torch.full((1, 1, 2, 2), 0.5)

    def answer(ask: Ask, number: int) -> Reply:
        yes = torch.ones(1, dtype=torch.bool)
        return Reply(torch.zeros(1), yes, yes, torch.full_like(ask.x, 1e-30))

    told = by_hand(MomentumPGD(steps=2).run(problem(clean, L2(0.2))), answer)
    torch.testing.assert_close(told.asks[-1].x, clean - 0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MomentumPGD(steps=0), "MomentumPGD: steps must be at least 1, got 0"),
        (lambda: MomentumPGD(step=-1.0), "MomentumPGD: step must be a positive number, got -1.0"),
        (lambda: MomentumPGD(decay=-0.5), "MomentumPGD: decay must be a number of at least 0, got -0.5"),
        (lambda: MomentumPGD(decay=float("nan")), "MomentumPGD: decay must be a number of at least 0, got nan"),
        (lambda: MomentumPGD(backtrack=0.5), "MomentumPGD: backtrack must be a number of at least 1, got 0.5"),
        (lambda: MomentumPGD(backtrack=float("nan")), "MomentumPGD: backtrack must be a number of at least 1, got nan"),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
