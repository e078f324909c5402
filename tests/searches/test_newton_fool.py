"""NewtonFool: steps that aim at the floor and never pass it, a loop from the text, ART, and the label it keeps."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import poise
from poise.checks.searches import check_search
from poise.constraints import L2, Box, Constraint, Linf
from poise.errors import InputError
from poise.objectives import KeepLabel
from poise.objectives.base import Bound, LabelKeeping, downwards, of_class
from poise.rng import Rng
from poise.searches import Ask, Reply
from poise.searches.newton_fool import NewtonFool
from poise.types import Access, Outputs
from toys import Case, Constant, RecordingTarget, SmallCNN, Softmax, by_hand, drive, generator, linear_case, problem

WIDE = Box(-100.0, 100.0)


@dataclass(frozen=True, kw_only=True)
class _AboveFloor(Bound):
    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return of_class(outputs.log_probabilities, self.k[ids]).exp() - 1 / outputs.scores.shape[1]


class _AboveFloorKept(_AboveFloor, LabelKeeping):
    """The same, with results that keep the label."""


@dataclass(frozen=True)
class AboveFloor:
    """p_k - 1/K, the loss that the paper follows."""

    access: ClassVar[Access] = Access.SCORES
    keep: bool = False

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        kind = _AboveFloorKept if self.keep else _AboveFloor
        return kind(k=clean.labels, over=downwards(clean))


# --- a linear probability ---


def linear_run(search: NewtonFool, slope: float, start: float = 0.4) -> list[tuple[Tensor, float]]:
    """Points and losses where L = start + slope * (sum of the changes of 4 pixels of 0.5, so ||x_0|| = 1)."""
    clean = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    seen = []

    def answer(ask: Ask, number: int) -> Reply:
        loss = start + slope * (ask.x - clean).flatten(1).sum(dim=1)
        seen.append((ask.x[0], float(loss)))
        yes = torch.ones(1, dtype=torch.bool)
        return Reply(loss, yes, yes, torch.full_like(ask.x, slope))

    by_hand(search.run(problem(clean, L2(50.0), box=WIDE)), answer)
    return seen


def test_a_linear_probability_reaches_its_floor_in_one_step_and_stays() -> None:
    seen = linear_run(NewtonFool(steps=4, eta=10.0), slope=0.3)
    assert [loss for _, loss in seen] == pytest.approx([0.4, 0, 0, 0, 0], abs=1e-12)


@pytest.mark.parametrize("slope", [0.3, 1e-3, 1e-20, 1e-200])
def test_steps_are_bounded_by_eta_times_the_clean_length(slope: float) -> None:
    """Also where the gradient is so small that its square vanishes, and ART's floor would freeze it."""
    points = [x for x, _ in linear_run(NewtonFool(steps=3, eta=0.01), slope=slope)]
    lengths = [float((b - a).norm()) for a, b in pairwise(points)]
    assert lengths == pytest.approx([0.01] * 3, rel=1e-6)


def test_a_loss_at_or_below_its_floor_does_not_move() -> None:
    for start in (0.0, -0.2):
        seen = linear_run(NewtonFool(steps=3), slope=0.3, start=start)
        assert all(torch.equal(x, seen[0][0]) for x, _ in seen)


# --- a loop from the text ---


def by_the_text(case: Case, row: int, search: NewtonFool, constraint: Constraint, *, floor: float) -> list[np.ndarray]:
    """All points of one sample of a linear softmax model, in numpy; stops before the label flips."""
    weight, bias = case.weight.flatten(1).numpy(), case.bias.numpy()
    x0 = x = case.images[row].flatten().numpy()

    def softmax(x: np.ndarray) -> np.ndarray:
        z = weight @ x + bias
        return np.exp(z - z.max()) / np.exp(z - z.max()).sum()

    k, points = int(softmax(x).argmax()), [x0]
    for _ in range(search.steps):
        p = softmax(x)
        g = p[k] * (weight[k] - p @ weight)
        d = min(search.eta * np.sqrt((x0**2).sum()) * np.sqrt((g**2).sum()), p[k] - floor)
        change = x - d * g / (g**2).sum() - x0
        if isinstance(constraint, Linf):
            change = np.clip(change, -constraint.eps, constraint.eps)
        else:
            change = change * min(1.0, constraint.eps / np.sqrt((change**2).sum()))
        points.append(np.clip(x0 + change, 0, 1))
        if softmax(points[-1]).argmax() != k:
            break
        x = points[-1]
    return points


def same_points(case: Case, search: NewtonFool, constraint: Constraint, floor: float) -> None:
    target = case.target()
    drive(case, AboveFloor(keep=True), search, constraint, target=target)
    for row in range(len(case.ids)):
        asked = torch.cat([x[ids == case.ids[row]] for ids, x, _, _ in target.log])
        expected = torch.from_numpy(np.stack(by_the_text(case, row, search, constraint, floor=floor)))
        torch.testing.assert_close(asked.flatten(1), expected, rtol=0, atol=1e-9)


CASE = linear_case(6, shape=(1, 5, 4), classes=4)


@pytest.mark.parametrize("constraint", [L2(3.0), L2(0.3), Linf(0.04)], ids=repr)
@pytest.mark.parametrize("search", [NewtonFool(steps=12, eta=0.02), NewtonFool(steps=12, eta=0.3)], ids=repr)
def test_points_are_those_of_a_loop_written_from_the_text(search: NewtonFool, constraint: Constraint) -> None:
    same_points(CASE, search, constraint, floor=1 / 4)


def test_another_floor_is_noticed() -> None:
    with pytest.raises(AssertionError):
        same_points(CASE, NewtonFool(steps=12, eta=0.3), L2(3.0), floor=0.0)


def test_stops_before_the_label_flips() -> None:
    """The refused step is the sample's last query, and the result keeps the label."""
    run = drive(CASE, AboveFloor(keep=True), NewtonFool(steps=90, eta=0.05), L2(10.0))
    after = Outputs(run.best.scores).labels
    assert after.tolist() == run.clean.labels.tolist()
    assert bool((run.meter.queries < 91).any()), "nobody came to the boundary"
    free = drive(CASE, AboveFloor(), NewtonFool(steps=90, eta=0.05), L2(10.0))
    assert free.meter.queries.tolist() == [91] * 6
    assert Outputs(free.best.scores).labels.tolist() != free.clean.labels.tolist()


# --- ART ---


def test_iterates_equal_arts() -> None:
    """Where its floor on ||g||^2 and its clip at the end do nothing: gradients above 3e-4, images away from 0 and 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evasion = importlib.import_module("art.attacks.evasion")
        estimators = importlib.import_module("art.estimators.classification")
    images = 0.3 + 0.4 * torch.rand(12, 1, 8, 8, generator=generator(1))
    module = Softmax(SmallCNN(classes=4, size=8)).eval()
    classifier = estimators.PyTorchClassifier(
        module,
        loss=nn.CrossEntropyLoss(),
        input_shape=(1, 8, 8),
        nb_classes=4,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = evasion.NewtonFool(classifier, max_iter=5, eta=0.01, verbose=False).generate(images.numpy().copy())
    target = RecordingTarget(module, num_classes=4, outputs="probabilities")
    labels = torch.zeros(12, dtype=torch.long)
    poise.attack(target, AboveFloor(), NewtonFool(steps=5, eta=0.01), L2(100.0), images, labels)
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module(leaf).amax(dim=1).sum(), leaf)
    steep = gradient.flatten(1).norm(dim=1) > 1e-2
    assert int(steep.sum()) >= 4
    ours = target.log[-1][1]
    assert float((ours - images).abs().amax()) > 0.01
    torch.testing.assert_close(ours[steep], torch.from_numpy(theirs)[steep], rtol=0, atol=1e-5)


# --- edges ---


@pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.4)], ids=repr)
@pytest.mark.parametrize("search", [NewtonFool(steps=20), NewtonFool(steps=20, eta=0.5)], ids=repr)
def test_contract(search: NewtonFool, constraint: Constraint) -> None:
    check_search(search, constraint=constraint)


@pytest.mark.parametrize("constraint", [Linf(0.1), L2(0.4)], ids=repr)
@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_constant_model_moves_nothing(n: int, classes: int, constraint: Constraint) -> None:
    images = torch.rand(n, 1, 4, 4, generator=generator(0))
    target = RecordingTarget(Constant(classes), num_classes=classes)
    for goal in (AboveFloor(), KeepLabel(AboveFloor())):
        result = poise.attack(target, goal, NewtonFool(steps=3), constraint, images, torch.zeros(n, dtype=torch.long))
        assert torch.equal(result.images, images)
    assert all(torch.equal(x, images[: len(x)]) for _, x, _, _ in target.log)


def test_black_images_do_not_move() -> None:
    """||x_0|| = 0 allows no step."""
    case = linear_case(2)
    target = case.target()
    poise.attack(target, AboveFloor(), NewtonFool(steps=3), L2(1.0), torch.zeros_like(case.images), case.labels)
    assert all(bool((x == 0).all()) for _, x, _, _ in target.log)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NewtonFool(steps=0), "NewtonFool: steps must be at least 1, got 0"),
        (lambda: NewtonFool(eta=0.0), "NewtonFool: eta must be a positive number, got 0.0"),
        (lambda: NewtonFool(eta=float("nan")), "NewtonFool: eta must be a positive number, got nan"),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
