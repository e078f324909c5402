"""check_target accepts ours and refuses a twin for every promise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from poise import ModuleTarget
from poise.checks.targets import CheckError, check_target
from poise.errors import InputError
from poise.types import Access, OutputKind, Outputs
from toys import Fixed, Linear, Noisy, SmallCNN, Softmax, generator, linear_case

CASE = linear_case(4)
IMAGES = torch.rand(5, 1, 8, 8, generator=generator(0))


@pytest.mark.parametrize(
    ("target", "images"),
    [
        (lambda: CASE.target(), CASE.images),
        (lambda: CASE.target(batch_size=3, access=Access.SCORES), CASE.images),
        (lambda: ModuleTarget(Softmax(CASE.module()), num_classes=3, outputs="probabilities"), CASE.images),
        (lambda: ModuleTarget(SmallCNN().train(), num_classes=4), IMAGES),
        (lambda: ModuleTarget(SmallCNN(), num_classes=4, mean=[0.1], std=[3.0], bounds=(-1.0, 1.0)), 2 * IMAGES - 1),
        (lambda: ModuleTarget(Fixed(lambda x: 0 * x.flatten(1)[:, :3]), num_classes=3), IMAGES),
    ],
)
def test_accepts(target: Callable[[], ModuleTarget], images: Tensor) -> None:
    check_target(target(), images)


def test_accepts_a_random_model_that_says_so() -> None:
    check_target(ModuleTarget(Noisy(SmallCNN()), num_classes=4), IMAGES, stochastic=True)


class Remade(ModuleTarget):
    """A target whose every answer is passed through a function."""

    remake: Callable[[Outputs], Outputs]

    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        return self.remake(super().query(x, ids))


def remade(function: Callable[[Outputs], Outputs]) -> ModuleTarget:
    target = Remade(SmallCNN(), num_classes=4)
    target.remake = function
    return target


def scored(function: Callable[[Tensor], Tensor]) -> ModuleTarget:
    return remade(lambda answer: Outputs(function(answer.scores), answer.kind))


class Pulled(ModuleTarget):
    """A target whose gradient is passed through a function."""

    change: Callable[[Tensor], Tensor]

    def gradient(self, x: Tensor, ids: Tensor, loss: Callable[[Outputs], Tensor]) -> tuple[Outputs, Tensor]:
        answer, gradient = super().gradient(x, ids, loss)
        return answer, self.change(gradient)


def pulled(function: Callable[[Tensor], Tensor]) -> ModuleTarget:
    target = Pulled(SmallCNN(), num_classes=4)
    target.change = function
    return target


class Scribbler(ModuleTarget):
    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        answer = super().query(x, ids)
        x.add_(1e-3)
        return answer


class Gambler(ModuleTarget):
    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        torch.rand(1)
        return super().query(x, ids)


class Forgetful(ModuleTarget):
    """Answers with another image's scores every second time."""

    turn = 0

    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        self.turn += 1
        return super().query(x + 0.01 * (self.turn % 3), ids)


class OtherPoint(ModuleTarget):
    def gradient(self, x: Tensor, ids: Tensor, loss: Callable[[Outputs], Tensor]) -> tuple[Outputs, Tensor]:
        return super().gradient(x * 0.9, ids, loss)


class MeanLoss(ModuleTarget):
    def gradient(self, x: Tensor, ids: Tensor, loss: Callable[[Outputs], Tensor]) -> tuple[Outputs, Tensor]:
        return super().gradient(x, ids, lambda answer: loss(answer) / len(ids))


class Graph(ModuleTarget):
    def gradient(self, x: Tensor, ids: Tensor, loss: Callable[[Outputs], Tensor]) -> tuple[Outputs, Tensor]:
        answer, gradient = super().gradient(x, ids, loss)
        return Outputs(answer.scores.requires_grad_(), answer.kind), gradient


def declared(**changes: object) -> ModuleTarget:
    target = ModuleTarget(SmallCNN(), num_classes=4)
    for name, value in changes.items():
        setattr(target, name, value)
    return target


def of(kind: type[ModuleTarget]) -> ModuleTarget:
    return kind(SmallCNN(), num_classes=4)


class NoGradient:
    """Declares gradients, and has none."""

    kind, access, bounds, num_classes, batch_size = OutputKind.LOGITS, Access.GRADIENTS, (0.0, 1.0), 4, 8
    device = torch.device("cpu")

    def __init__(self) -> None:
        inner = ModuleTarget(SmallCNN(), num_classes=4)
        self.query, self.session = inner.query, inner.session


TWINS: dict[str, tuple[Callable[[], object], str]] = {
    "kind": (lambda: declared(kind="logits"), "kind must be an OutputKind"),
    "access": (lambda: declared(access="scores"), "access must be an Access"),
    "bounds": (lambda: declared(bounds=(1.0, 0.0)), "bounds must be"),
    "classes": (lambda: declared(num_classes=1), "num_classes must be at least 2"),
    "batch": (lambda: declared(batch_size=0), "batch_size must be at least 1"),
    "no gradient": (NoGradient, "so gradient.x, ids, loss. must exist"),
    "another kind": (lambda: remade(lambda a: Outputs(a.scores, OutputKind.LABELS)), "answers must be logits as"),
    "shape": (lambda: scored(lambda s: s[:, :3]), r"scores must be \(5, 4\), got \(5, 3\)"),
    "integers": (lambda: scored(lambda s: s.long()), "scores must be floats"),
    "NaN": (lambda: scored(lambda s: s / 0 * 0), "scores must be finite"),
    "a graph": (lambda: scored(lambda s: s.requires_grad_()), "scores must carry no autograd graph"),
    "writes": (lambda: of(Scribbler), "query must not write into the points"),
    "global draws": (lambda: of(Gambler), "global random generators must stay untouched"),
    "mixes rows": (lambda: scored(lambda s: s - s.mean(dim=0)), "must not depend on the number of the rows"),
    "order": (lambda: scored(lambda s: s + torch.arange(len(s))[:, None]), "must not depend on the order"),
    "changes": (lambda: of(Forgetful), "must"),
    "sign": (lambda: pulled(lambda g: -g), "must rise along its gradient by the gradient's length .* got -1"),
    "noise": (lambda: pulled(lambda g: g.flip(-1)), "must rise along its gradient"),
    "no slope": (lambda: pulled(lambda g: g / 0 * 0), "gradients must be finite"),
    "type": (lambda: pulled(lambda g: g.double()), "gradients must be"),
    "leaks": (lambda: pulled(lambda g: g + g.mean(dim=0) * 0.5), "that of its own loss"),
    "batch mean": (lambda: of(MeanLoss), "that of its own loss"),
    "other point": (lambda: of(OtherPoint), "gradient must answer as query does"),
    "keeps the graph": (lambda: of(Graph), "gradients and their answers must carry no autograd graph"),
}


@pytest.mark.parametrize("twin", TWINS)
def test_refuses(twin: str) -> None:
    make, message = TWINS[twin]
    with pytest.raises(CheckError, match=message) as caught:
        check_target(make(), IMAGES)
    assert "\n" not in str(caught.value)


class Lies(ModuleTarget):
    """Declares probabilities without looking at them."""

    def __init__(self, shift: float) -> None:
        super().__init__(SmallCNN(), num_classes=4)
        self.kind, self.shift = OutputKind.PROBABILITIES, shift

    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        self.kind = OutputKind.LOGITS
        scores = super().query(x, ids).scores.softmax(dim=1) + self.shift
        self.kind = OutputKind.PROBABILITIES
        return Outputs(scores, self.kind)


def test_refuses_probabilities_that_are_none() -> None:
    with pytest.raises(CheckError, match="probabilities must be non-negative rows of sum 1"):
        check_target(Lies(0.01), IMAGES)


def test_refuses_a_random_model_that_does_not_say_so() -> None:
    with pytest.raises(CheckError, match=r"same answer|must not depend"):
        check_target(ModuleTarget(Noisy(SmallCNN()), num_classes=4), IMAGES)


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (5, 8, 8)])
def test_refuses_images_it_cannot_use(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"check_target: images must be \(n, C, H, W\) with n at least 2, got"):
        check_target(ModuleTarget(Linear(torch.ones(2, 1, 8, 8)), num_classes=2), torch.zeros(shape))
