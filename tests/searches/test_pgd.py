"""PGD: FGSM's closed form, the starts, undoing, and a loop written from the text, one sample at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import poise
from poise.checks.searches import check_search
from poise.constraints import L2, Box, Constraint, Linf
from poise.errors import InputError
from poise.objectives import OCA, UCA, ConfSmooth, CrossEntropy, KeepLabel
from poise.rng import Rng
from poise.searches import PGD, Ask, Reply
from poise.types import Outputs
from toys import Case, binary_case, by_hand, drive, generator, linear_case, problem

FGSM = PGD(steps=1, step=None, undo=False)
BOX = Box()


# --- closed forms ---


def test_fgsm_is_optimal_for_logistic_regression() -> None:
    """Spec 4, P1: cross-entropy softplus(-(m - eps * ||w_1 - w_0||_1)), reached in one step."""
    case = binary_case(6, margin=1.0)
    run = drive(case, CrossEntropy(), FGSM, Linf(0.05))
    difference = case.weight[1] - case.weight[0]
    expected = 1.0 - 0.05 * float(difference.abs().sum())
    np.testing.assert_allclose(run.best.merit.numpy(), expected, rtol=1e-9)
    side = torch.where(case.labels == 1, -1.0, 1.0).double().view(-1, 1, 1, 1)
    torch.testing.assert_close(run.best.x, case.images + side * 0.05 * difference.sign())
    loss = -Outputs(run.best.scores).log_probabilities.gather(1, case.labels[:, None])[:, 0]
    np.testing.assert_allclose(loss.numpy(), math.log1p(math.exp(-expected)), rtol=1e-9)


def test_fgsm_in_the_euclidean_ball() -> None:
    case = binary_case(6, margin=1.0)
    run = drive(case, CrossEntropy(), FGSM, L2(0.1))
    expected = 1.0 - 0.1 * float((case.weight[1] - case.weight[0]).norm())
    np.testing.assert_allclose(run.best.merit.numpy(), expected, rtol=1e-9)


def test_one_step_of_eps_is_fgsm() -> None:
    """P3."""
    case = linear_case(5, shape=(3, 5, 4))
    for constraint in (Linf(0.1), L2(0.3)):
        named = drive(case, CrossEntropy(), FGSM, constraint)
        spelt = drive(case, CrossEntropy(), PGD(steps=1, step=constraint.eps), constraint)
        assert torch.equal(named.best.x, spelt.best.x)
        assert named.meter.queries.tolist() == [2] * 5
        assert named.meter.gradients.tolist() == [1] * 5


@pytest.mark.parametrize(("goal", "sign"), [(UCA(tol=0), -1), (OCA(tol=0), 1), (CrossEntropy(), -1)])
@pytest.mark.parametrize("constraint", [Linf(0.05), L2(0.2)])
def test_linear_models_are_driven_to_the_closed_form(goal: object, sign: int, constraint: Constraint) -> None:
    """Spec 28.5, K = 2: z-margin -+ eps times the dual norm of w_1 - w_0."""
    case = binary_case(4, margin=3.0)
    run = drive(case, KeepLabel(goal), PGD(steps=60, step=0.02), constraint)
    difference = case.weight[1] - case.weight[0]
    dual = difference.abs().sum() if isinstance(constraint, Linf) else difference.norm()
    m = 3.0 + sign * constraint.eps * float(dual)
    assert m > 0.3
    expected = {UCA: math.tanh(m / 2), OCA: 1 / (1 + math.exp(m)), CrossEntropy: m}[type(goal)]
    np.testing.assert_allclose(run.best.merit.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("search", [PGD(steps=200, step=0.002), poise.searches.AdaptivePGD(steps=60, step=0.02)])
def test_beyond_the_boundary_the_gap_ends_just_above_zero(search: object) -> None:
    """Best gap = max(0+, closed form): the ball reaches across the boundary, the label must not."""
    case = binary_case(6, margin=0.5)
    run = drive(case, KeepLabel(UCA(tol=0)), search, Linf(0.2), budget=300)
    assert bool((run.best.merit > 1e-4).all())
    assert bool((run.best.merit < 0.05).all())
    assert torch.equal(run.best.scores.argmax(dim=1), case.labels)


def test_confsmooth_ends_at_its_target_for_two_classes() -> None:
    """Spec 7, P1: K = 2 and a large ball: p_k -> 0.51."""
    case = binary_case(4, margin=1.0)
    run = drive(
        case,
        KeepLabel(ConfSmooth()),
        poise.searches.AdaptivePGD(steps=60, step=0.02, on_no_improve="halve"),
        Linf(0.3),
        budget=400,
    )
    np.testing.assert_allclose(Outputs(run.best.scores).confidence.numpy(), 0.51, atol=1e-3)


def test_many_classes_against_a_solver() -> None:
    """K = 5, OCA on a linear model: maximising p_k over the box is concave in log p_k, solved by scipy."""
    from scipy.optimize import minimize

    case = linear_case(3, classes=5, shape=(1, 3, 3))
    eps = 0.1
    run = drive(case, KeepLabel(OCA(tol=0)), PGD(steps=400, step=0.002), Linf(eps), budget=500)
    weight, bias = case.weight.flatten(1).numpy(), case.bias.numpy()
    for row, image in enumerate(case.images.flatten(1).numpy()):
        k = int(run.clean.labels[row])

        def loss(x: np.ndarray, k: int = k) -> float:
            z = weight @ x + bias
            return np.logaddexp.reduce(z) - z[k]

        bounds = list(zip(np.maximum(image - eps, 0), np.minimum(image + eps, 1), strict=True))
        solved = minimize(loss, image, bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-10})
        assert run.best.merit[row].item() == pytest.approx(-math.expm1(-solved.fun), rel=1e-4)


# --- a loop from the text ---


def pulled(x: Tensor, clean: Tensor, constraint: Constraint) -> Tensor:
    """Into the ball, then into [0, 1]."""
    if isinstance(constraint, Linf):
        return x.clamp(clean - constraint.eps, clean + constraint.eps).clamp(0, 1)
    change = x - clean
    return (clean + change * min(1.0, constraint.eps / float(change.norm()))).clamp(0, 1)


def by_the_text(
    case: Case, row: int, constraint: Constraint, search: PGD, seed: int, goal: Callable[[Tensor, int], Tensor]
) -> list[Tensor]:
    """All points of one sample: x <- Pi(x - a * steepest(grad)), in plain autograd."""
    module, clean = case.module(), case.images[row : row + 1]
    k = int(module(clean).argmax())
    target = int(case.labels[row]) if goal is _log_true else k
    points, x = [clean], clean
    if search.random_start:
        rng = Rng(seed, case.ids)
        x = constraint.sample(clean, BOX, torch.tensor([row]), rng, 0)
        points.append(x)
    if search.jitter:
        noise = Rng(seed, case.ids).normal("jitter", 0, torch.tensor([row]), tuple(clean.shape[1:])).double()
        x = pulled(clean + search.jitter * noise, clean, constraint)
        points.append(x)
        if search.undo and int(module(x).argmax()) != k:
            x = clean
    a = constraint.eps if search.step is None else search.step
    for _ in range(search.steps):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(goal(module(leaf)[0], target), leaf)
        direction = gradient.sign() if isinstance(constraint, Linf) else gradient / gradient.norm()
        stepped = pulled(x - a * direction, clean, constraint)
        points.append(stepped)
        if not search.undo or int(module(stepped).argmax()) == k:
            x = stepped
    return points


def _log_true(z: Tensor, label: int) -> Tensor:
    return z.log_softmax(dim=0)[label]


def _uncertain(z: Tensor, k: int) -> Tensor:
    p = z.softmax(dim=0)
    return p[k] - torch.cat([p[:k], p[k + 1 :]]).max()


@pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.4)])
@pytest.mark.parametrize(
    ("search", "objective", "goal"),
    [
        (PGD(steps=6, step=0.03, undo=False), CrossEntropy(), _log_true),
        (PGD(steps=6, step=0.03, undo=False, random_start=True), CrossEntropy(), _log_true),
        (PGD(steps=1, step=None, undo=False), CrossEntropy(), _log_true),
        (PGD(steps=6, step=0.05), KeepLabel(UCA(tol=0), 0.0), _uncertain),
        (PGD(steps=6, step=0.03, undo=False, jitter=0.001), CrossEntropy(), _log_true),
        (PGD(steps=3, step=0.03, undo=False, jitter=0.3), CrossEntropy(), _log_true),  # mostly beyond the ball
        (PGD(steps=6, step=0.05, jitter=0.05), KeepLabel(UCA(tol=0), 0.0), _uncertain),
    ],
)
def test_points_are_those_of_a_loop_written_from_the_text(
    constraint: Constraint, search: PGD, objective: object, goal: Callable[[Tensor, int], Tensor]
) -> None:
    case = linear_case(5, shape=(1, 5, 4), classes=4)
    target = case.target()
    drive(case, objective, search, constraint, target=target, seed=7)
    for row in range(5):
        asked = torch.cat([x[ids == case.ids[row]] for ids, x, _, _ in target.log])
        expected = torch.cat(by_the_text(case, row, constraint, search, 7, goal))
        torch.testing.assert_close(asked, expected, rtol=0, atol=1e-9)


# --- starts ---


def test_random_start_lies_inside_and_is_another_for_each_seed() -> None:
    """P2."""
    case = linear_case(4)
    starts = []
    for seed in (0, 1):
        target = case.target()
        drive(
            case,
            CrossEntropy(),
            PGD(steps=1, step=0.01, random_start=True, undo=False),
            Linf(0.2),
            target=target,
            seed=seed,
        )
        starts.append(target.log[1][1])
    assert bool(Linf(0.2).contains(starts[0], case.images).all())
    assert not torch.equal(starts[0], starts[1])


def test_random_start_falls_back_where_it_is_not_accepted() -> None:
    """With `undo`; without, the iterate stays where the start put it."""
    clean = torch.full((2, 1, 4, 4), 0.5, dtype=torch.float64)

    def answer(ask: Ask, number: int) -> Reply:
        n = len(ask.ids)
        accept = torch.tensor([True, number != 1])[:n]
        return Reply(torch.zeros(n).double(), accept, torch.full((2,), number < 3), torch.zeros_like(ask.x))

    for undo in (True, False):
        told = by_hand(PGD(steps=3, step=0.1, random_start=True, undo=undo).run(problem(clean, Linf(0.2))), answer)
        start, after = told.asks[1].x, told.asks[2].x  # a gradient of zero: the step stands still
        assert torch.equal(after[0], start[0])
        assert torch.equal(after[1], clean[1] if undo else start[1])


def test_jitter_is_small_gaussian_noise() -> None:
    """Standard deviation as given, in pixels; another for every seed; what follows is plain PGD."""
    clean = torch.full((40, 1, 10, 10), 0.5, dtype=torch.float64)

    def answer(ask: Ask, number: int) -> Reply:
        n = len(ask.ids)
        yes = torch.ones(n, dtype=torch.bool)
        return Reply(torch.zeros(n).double(), yes, yes, torch.ones_like(ask.x))

    starts = []
    for seed in (0, 1):
        steps = PGD(steps=2, step=0.01, jitter=1e-3, undo=False).run(problem(clean, Linf(0.1), seed=seed))
        asks = by_hand(steps, answer).asks
        assert torch.equal(asks[0].x, clean)
        assert not asks[0].grad  # the slope at the clean image is not used
        starts.append(asks[1].x - clean)
        torch.testing.assert_close(asks[2].x, asks[1].x - 0.01, rtol=0, atol=1e-12)
    for noise in starts:
        assert stats.kstest(noise.flatten().numpy() / 1e-3, "norm").pvalue > 1e-3
        assert stats.kstest(noise.flatten().numpy() / 1.3e-3, "norm").pvalue < 1e-6
    assert not torch.equal(*starts)


def test_jitter_leaves_a_place_without_a_slope() -> None:
    """At the clean image TRADES' goal is flat but for rounding: from beside it the search gets somewhere."""
    case = linear_case(8)
    still, moved = (
        drive(case, poise.objectives.KLDivergence(), PGD(steps=5, step=0.03, undo=False, jitter=jitter), Linf(0.1))
        for jitter in (0.0, 1e-3)
    )
    assert int((still.best.merit == 0).sum()) > 4
    assert bool((moved.best.merit < -1e-2).all())


def test_passes_are_paid_once() -> None:
    """T forward+backward and one last forward; a random start or jitter costs one pass more (spec 4)."""
    case = linear_case(3)
    for search, queries, gradients in (
        (PGD(steps=5, step=0.01), 6, 5),
        (PGD(steps=5, step=0.01, random_start=True), 7, 6),
        (PGD(steps=5, step=0.01, random_start=True, undo=False), 7, 5),
        (PGD(steps=5, step=0.01, jitter=1e-3, undo=False), 7, 5),
        (PGD(steps=5, step=0.01, jitter=1e-3), 7, 6),
        (FGSM, 2, 1),
    ):
        run = drive(case, KeepLabel(OCA(tol=0)), search, Linf(0.1))
        assert run.meter.queries.tolist() == [queries] * 3
        assert run.meter.gradients.tolist() == [gradients] * 3


def test_undo_stands_still_at_the_boundary() -> None:
    """Documented: the step is deterministic, so a sample whose step flips the label repeats it."""
    case = binary_case(1, margin=0.2)
    target = case.target()
    drive(case, KeepLabel(UCA(tol=0)), PGD(steps=5, step=0.05), Linf(0.3), target=target)
    points = [x for _, x, _, _ in target.log]
    assert torch.equal(points[-1], points[-2])


def test_a_zero_gradient_moves_nothing() -> None:
    clean = torch.rand(3, 1, 4, 4, generator=generator(0), dtype=torch.float64)

    def flat(ask: Ask, number: int) -> Reply:
        n = len(ask.ids)
        return Reply(
            torch.ones(n).double(), torch.ones(n, dtype=torch.bool), torch.ones(3, dtype=torch.bool), 0 * ask.x
        )

    for constraint in (Linf(0.1), L2(0.1)):
        told = by_hand(PGD(steps=3).run(problem(clean, constraint)), flat)
        assert all(torch.equal(ask.x, clean) for ask in told.asks)


@pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.4)], ids=repr)
@pytest.mark.parametrize("undo", [True, False])
def test_contract_with_jitter(undo: bool, constraint: Constraint) -> None:
    check_search(PGD(steps=4, step=0.03, jitter=0.01, undo=undo), constraint=constraint)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(steps=0), "PGD: steps must be at least 1, got 0"),
        (lambda: PGD(step=0.0), "PGD: step must be a positive number, got 0.0"),
        (lambda: PGD(step=-0.1), "PGD: step must be a positive number, got -0.1"),
        (lambda: PGD(step=float("nan")), "PGD: step must be a positive number, got nan"),
        (
            lambda: PGD(jitter=-1e-3),
            "PGD: jitter must be a number of at least 0, .* got -0.001 with random_start=False",
        ),
        (lambda: PGD(jitter=float("inf")), "PGD: jitter must be a number of at least 0, .* got inf"),
        (lambda: PGD(jitter=0.1, random_start=True), "0 with random_start, got 0.1 with random_start=True"),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
