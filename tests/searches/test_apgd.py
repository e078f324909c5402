"""APGD: a loop written from the paper, one sample at a time; its schedule; closed forms; ART."""

from __future__ import annotations

import importlib
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import poise
from poise.checks.searches import check_search
from poise.constraints import L2, Box, Constraint, Linf
from poise.errors import InputError
from poise.objectives import CrossEntropy
from poise.rng import Rng
from poise.searches import PGD, Ask, Reply
from poise.searches.apgd import APGD, checkpoints
from poise.types import Outputs
from toys import Constant, RecordingTarget, SmallCNN, Transcript, binary_case, by_hand, drive, generator, problem

# --- the schedule ---


def test_checkpoints_by_hand() -> None:
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]  # AutoAttack's, intervals 22 19 16 13 10 7 6 6
    assert sorted(checkpoints(50)) == [11, 21, 30, 38, 45]  # intervals 11 10 9 8 7, the next one ends at 51
    assert sorted(checkpoints(4)) == [1, 2, 3, 4]
    assert sorted(checkpoints(1)) == [1]


# --- a loop from the paper ---

N, SHAPE = 7, (1, 4, 3)
WAVES = torch.randn(N, 12, generator=generator(3), dtype=torch.float64) * 5
SHIFT = torch.rand(N, 12, generator=generator(4), dtype=torch.float64) * 6
CLEAN = torch.rand(N, *SHAPE, generator=generator(5), dtype=torch.float64)
NAMES = torch.arange(N) * 13 + 2


def wave(x: np.ndarray, row: int) -> tuple[float, np.ndarray]:
    """A loss with many local minima, and its gradient; x (12,)."""
    w, s = WAVES[row].numpy(), SHIFT[row].numpy()
    return float(np.sin(w * x + s).sum() + 4 * x.sum()), w * np.cos(w * x + s) + 4


def waves(ask: Ask, number: int) -> Reply:
    """The same answers, number for number: a loss that ties with an earlier one must tie for both."""
    pairs = [wave(x.numpy(), row) for x, row in zip(ask.x.flatten(1), ask.ids.tolist(), strict=True)]
    loss = torch.tensor([loss for loss, _ in pairs], dtype=torch.float64)
    gradient = torch.from_numpy(np.stack([gradient for _, gradient in pairs])).view_as(ask.x)
    accept = torch.ones(len(loss), dtype=torch.bool)
    return Reply(loss, accept, torch.ones(N, dtype=torch.bool), gradient)


@dataclass(frozen=True)
class Flaw:
    """What the reference loop can be made to get wrong."""

    restart: bool = True
    second_condition: bool = True
    strict: bool = False
    paper_step: float = 2.0
    momentum_at_once: bool = False


def by_the_paper(row: int, search: APGD, constraint: Constraint, flaw: Flaw) -> tuple[list[np.ndarray], list[float]]:
    """Alg. 1 with signs turned, in numpy, from histories of losses; also the step size of every step."""
    x0, eps, steps = CLEAN[row].flatten().numpy(), constraint.eps, search.steps

    def project(x: np.ndarray) -> np.ndarray:
        if isinstance(constraint, Linf):
            return np.clip(np.clip(x, x0 - eps, x0 + eps), 0, 1)
        return np.clip(x0 + (x - x0) * min(1, eps / max(np.sqrt(((x - x0) ** 2).sum()), 1e-300)), 0, 1)

    def direction(g: np.ndarray) -> np.ndarray:
        return np.sign(g) if isinstance(constraint, Linf) else g / np.sqrt((g**2).sum())

    asked, x = [x0], x0
    if search.random_start:
        start = constraint.sample(CLEAN[row : row + 1], Box(), torch.tensor([row]), Rng(0, NAMES), 0)
        x = start.flatten().numpy()
        asked.append(x)
    f, g = wave(x, row)
    best_x, best_f, best_g = x, f, g
    before, a, used = x, flaw.paper_step * eps, []
    reduced, best_then, improved = [True], [best_f], []
    interval, next_look = max(int(0.22 * steps), 1), max(int(0.22 * steps), 1)
    for t in range(1, steps + 1):
        used.append(a)
        z = project(x - a * direction(g))
        alpha = 1.0 if t == 1 and not flaw.momentum_at_once else search.momentum
        new = project(x + alpha * (z - x) + (1 - alpha) * (x - before))
        asked.append(new)
        new_f, new_g = wave(new, row)
        improved.append(new_f < f)
        before, x, f, g = x, new, new_f, new_g
        if f < best_f:
            best_x, best_f, best_g = x, f, g
        if t == next_look:
            enough = search.rho * len(improved)
            first = sum(improved) < enough if flaw.strict else sum(improved) <= enough
            second = not reduced[-1] and best_then[-1] == best_f and flaw.second_condition
            if first or second:
                a = a / 2
                if flaw.restart:
                    x, f, g = best_x, best_f, best_g
            reduced.append(first or second)
            best_then.append(best_f)
            improved = []
            interval = max(interval - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
            next_look += interval
    return asked, used


def run_by_hand(search: APGD, constraint: Constraint) -> Transcript:
    return by_hand(search.run(problem(CLEAN, constraint, ids=NAMES)), waves)


def same_points(search: APGD, constraint: Constraint, flaw: Flaw) -> None:
    """Linf bit by bit. In the l2 ball 1e-7: near a minimum losses tie up to rounding over distances of sqrt(1e-16)."""
    told, atol = run_by_hand(search, constraint), 0.0 if isinstance(constraint, Linf) else 1e-7
    for row in range(N):
        asked = torch.stack([ask.x[row].flatten() for ask in told.asks])
        expected, _ = by_the_paper(row, search, constraint, flaw)
        torch.testing.assert_close(asked, torch.from_numpy(np.stack(expected)), rtol=0, atol=atol)


SEARCHES = [
    APGD(steps=60),
    APGD(steps=60, random_start=True),
    APGD(steps=17, rho=0.5, momentum=0.6),
    APGD(steps=100, rho=0.2),
    APGD(steps=1),
]


@pytest.mark.parametrize("constraint", [Linf(0.15), L2(0.2)], ids=repr)
@pytest.mark.parametrize("search", SEARCHES, ids=repr)
def test_points_are_those_of_a_loop_written_from_the_paper(search: APGD, constraint: Constraint) -> None:
    same_points(search, constraint, Flaw())


def test_the_loop_meets_both_conditions_and_neither() -> None:
    """Otherwise the comparison would show little: some steps are halved, some kept; samples differ."""
    steps = {tuple(by_the_paper(row, APGD(steps=100, rho=0.2), Linf(0.15), Flaw())[1]) for row in range(N)}
    assert len(steps) > 3
    assert any(len(set(used)) > 2 for used in steps)


@pytest.mark.parametrize(
    "flaw",
    [
        Flaw(restart=False),
        Flaw(second_condition=False),
        Flaw(strict=True),
        Flaw(paper_step=1.0),
        Flaw(momentum_at_once=True),
    ],
    ids=repr,
)
def test_another_algorithm_is_noticed(flaw: Flaw) -> None:
    found = 0
    for search in (APGD(steps=60), APGD(steps=100, rho=0.2), APGD(steps=100, rho=0.5)):
        try:
            same_points(search, Linf(0.15), flaw)
        except AssertionError:
            found += 1
    assert found


def test_finished_samples_leave_without_disturbing_the_others() -> None:
    """Sample 1 finishes at ask 10, sample 4 at ask 31: all others are asked the same points as ever."""
    ends = {1: 10, 4: 31}

    def answer(ask: Ask, number: int) -> Reply:
        active = torch.tensor([number < ends.get(row, 1000) for row in range(N)])
        reply = waves(ask, number)
        return Reply(reply.loss, reply.accept, active, reply.grad)

    search, constraint = APGD(steps=60), Linf(0.15)
    told, whole = by_hand(search.run(problem(CLEAN, constraint, ids=NAMES)), answer), run_by_hand(search, constraint)
    for number, (ask, other) in enumerate(zip(told.asks, whole.asks, strict=True)):
        assert ask.ids.tolist() == [row for row in range(N) if number <= ends.get(row, 1000)]
        assert torch.equal(ask.x, other.x[ask.ids])


# --- closed forms and ART ---


@pytest.mark.parametrize("constraint", [Linf(0.05), L2(0.2)], ids=repr)
def test_two_classes_in_closed_form(constraint: Constraint) -> None:
    case = binary_case(4, margin=3.0)
    run = drive(case, CrossEntropy(), APGD(steps=10), constraint)
    difference = (case.weight[1] - case.weight[0]).flatten()
    dual = difference.abs().sum() if isinstance(constraint, Linf) else difference.norm()
    np.testing.assert_allclose(run.best.merit.numpy(), 3.0 - constraint.eps * float(dual), rtol=1e-9)
    assert run.meter.queries.tolist() == [11] * 4
    assert run.meter.gradients.tolist() == [10] * 4


def art_losses(module: nn.Module, images: Tensor, labels: Tensor, constraint: Constraint, steps: int) -> Tensor:
    """(n,) final cross-entropies of ART's AutoProjectedGradientDescent; its draws come from numpy's generator."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evasion = importlib.import_module("art.attacks.evasion")
        estimators = importlib.import_module("art.estimators.classification")
    classifier = estimators.PyTorchClassifier(
        module,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=4,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = evasion.AutoProjectedGradientDescent(
                classifier,
                norm=np.inf if isinstance(constraint, Linf) else 2,
                eps=constraint.eps,
                eps_step=2 * constraint.eps,
                max_iter=steps,
                nb_random_init=1,
                loss_type="cross_entropy",
                verbose=False,
            ).generate(images.numpy().copy(), labels.numpy())
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
    found = torch.from_numpy(found)
    assert bool(constraint.contains(found, images).all())
    with torch.no_grad():
        return nn.functional.cross_entropy(module(found), labels, reduction="none")


@pytest.mark.parametrize("constraint", [Linf(0.06), L2(0.6)], ids=repr)
def test_no_weaker_than_arts_on_average(constraint: Constraint) -> None:
    """Where ART flips the label (elsewhere it returns no final point); 30 steps from a random start."""
    module, images = SmallCNN(classes=4, size=8).eval(), torch.rand(60, 1, 8, 8, generator=generator(6))
    with torch.no_grad():
        labels = module(images).argmax(dim=1)
    theirs = art_losses(module, images, labels, constraint, 30)
    flipped = theirs > np.log(2)
    assert int(flipped.sum()) >= 10
    mean = theirs[flipped].mean().item()

    def ours(search: APGD | PGD) -> float:
        target = RecordingTarget(module, num_classes=4)
        poise.attack(target, CrossEntropy(), search, constraint, images, labels)
        losses = [-Outputs(scores).log_probabilities.gather(1, labels[:, None])[:, 0] for _, _, scores, _ in target.log]
        return torch.stack(losses).amax(dim=0)[flipped].mean().item()

    assert ours(APGD(steps=30, random_start=True)) >= 0.995 * mean
    assert ours(PGD(steps=2, step=constraint.eps / 8, undo=False)) < 0.9 * mean  # a weak attack would be noticed


# --- edges ---


@pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.4)], ids=repr)
@pytest.mark.parametrize("search", [APGD(steps=25), APGD(steps=25, random_start=True)], ids=repr)
def test_contract(search: APGD, constraint: Constraint) -> None:
    check_search(search, constraint=constraint)


@pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.4)], ids=repr)
@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_constant_model_moves_nothing(n: int, classes: int, constraint: Constraint) -> None:
    images = torch.rand(n, 1, 4, 4, generator=generator(0))
    target = RecordingTarget(Constant(classes), num_classes=classes)
    labels = torch.zeros(n, dtype=torch.long)
    result = poise.attack(target, CrossEntropy(), APGD(steps=20), constraint, images, labels)
    assert torch.equal(result.images, images)
    assert all(torch.equal(x, images) for _, x, _, _ in target.log)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: APGD(steps=0), "APGD: steps must be at least 1, got 0"),
        (lambda: APGD(rho=1.5), r"APGD: rho must be in \[0, 1\], got 1.5"),
        (lambda: APGD(momentum=0.0), r"APGD: momentum must be in \(0, 1\], got 0.0"),
        (lambda: APGD(momentum=float("nan")), r"APGD: momentum must be in \(0, 1\], got nan"),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
