"""FunctionTarget: any callable; what it declares is checked, what it raises is one line, what it draws repeats."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import poise
from poise import ModuleTarget
from poise.checks.targets import check_target
from poise.errors import AccessError, BudgetError, InputError, TargetError
from poise.objectives import MMA, KeepLabel
from poise.targets import DifferentiableTarget
from poise.targets.function import FunctionTarget
from poise.types import Access, OutputKind
from toys import generator, linear_case, random_states, untouched_generators

CASE = linear_case(6)
WEIGHT, BIAS = CASE.module().weight.detach().numpy(), CASE.module().bias.detach().numpy()
IDS = torch.arange(6)


def linear(images: np.ndarray) -> np.ndarray:
    """Each row by itself, so that no bit of it depends on the others."""
    return np.stack([(WEIGHT * image.reshape(1, -1)).sum(axis=1) + BIAS for image in images])


def probabilities(images: np.ndarray) -> np.ndarray:
    z = np.exp(linear(images))
    return z / z.sum(axis=1, keepdims=True)


def target(function: Callable[..., object] = linear, **declared: object) -> FunctionTarget:
    return FunctionTarget(function, **({"num_classes": 3} | declared))


ANSWERS: dict[str, Callable[[np.ndarray], object]] = {
    "array": linear,
    "float32": lambda x: linear(x).astype(np.float32),
    "big-endian": lambda x: linear(x).astype(">f8"),
    "columns first": lambda x: np.asfortranarray(linear(x)),
    "lists": lambda x: linear(x).tolist(),
    "a list of arrays": lambda x: list(linear(x)),
    "a tensor": lambda x: torch.from_numpy(linear(x)),
    "a tensor with a graph": lambda x: torch.from_numpy(linear(x)).requires_grad_(),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_of_every_type(name: str) -> None:
    expected = torch.stack([CASE.module()(image[None].float().double())[0] for image in CASE.images]).detach()
    found = target(ANSWERS[name], batch_size=4)
    scores = found.query(CASE.images, IDS).scores
    torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-5)
    check_target(found, CASE.images)


def test_tensors_where_the_function_wants_them() -> None:
    given: list[object] = []

    def function(x: Tensor) -> Tensor:
        given.append(x)
        return x.flatten(1)[:, :3]

    target(function, tensors=True).query(CASE.images, IDS)
    assert isinstance(given[0], Tensor)
    assert given[0].dtype is torch.float32
    target(lambda x: given.append(x) or linear(x)).query(CASE.images, IDS)
    assert isinstance(given[1], np.ndarray)
    assert given[1].dtype == np.float32


@pytest.mark.parametrize("outputs", ["logits", "probabilities", "labels"])
def test_kinds(outputs: str) -> None:
    functions = {"logits": linear, "probabilities": probabilities, "labels": lambda x: linear(x).argmax(axis=1)}
    found = target(functions[outputs], outputs=outputs)
    check_target(found, CASE.images)
    assert found.kind is OutputKind(outputs)
    assert found.access is (Access.LABELS if outputs == "labels" else Access.SCORES)
    assert not isinstance(found, DifferentiableTarget)
    assert torch.equal(found.query(CASE.images, IDS).labels, CASE.target().query(CASE.images, IDS).labels)


def test_labels_as_lists_and_small_integers() -> None:
    for answer in ([2, 0, 1, 1, 0, 2], np.array([2, 0, 1, 1, 0, 2], np.uint8), torch.tensor([2, 0, 1, 1, 0, 2])):
        found = target(lambda x, answer=answer: answer, outputs="labels").query(CASE.images, IDS)
        assert found.labels.tolist() == [2, 0, 1, 1, 0, 2]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_batches_of_the_given_size(batch_size: int) -> None:
    sizes: list[int] = []
    found = target(lambda x: sizes.append(len(x)) or linear(x), batch_size=batch_size)
    assert torch.equal(found.query(CASE.images, IDS).scores, target().query(CASE.images, IDS).scores)
    assert (max(sizes), sum(sizes)) == (min(batch_size, 6), 6)


def test_a_function_may_write_into_its_images_and_reuse_its_answer() -> None:
    buffer = np.zeros((3, 3))

    def function(x: np.ndarray) -> np.ndarray:
        buffer[: len(x)] = linear(x)
        x[:] = -1
        return buffer[: len(x)]

    images = CASE.images.float()
    found = target(function, batch_size=3)
    before = images.clone()
    torch.testing.assert_close(found.query(images, IDS).scores, target().query(images, IDS).scores)
    assert torch.equal(images, before)


def test_no_rows_ask_nothing() -> None:
    def never(x: np.ndarray) -> np.ndarray:
        raise AssertionError

    assert target(never).query(CASE.images[:0], IDS[:0]).scores.shape == (0, 3)


def test_an_attack_is_that_on_a_module() -> None:
    """The linear toy adds in a fixed order: the same table, to the bit of its columns."""
    module = CASE.module().float()
    arguments = (
        KeepLabel(MMA()),
        poise.searches.Square(),
        poise.constraints.Linf(0.1),
        CASE.images.float(),
        CASE.labels,
    )
    with torch.no_grad():
        here = poise.attack(target(module, tensors=True), *arguments, budget=30)
    there = poise.attack(ModuleTarget(module, num_classes=3), *arguments, budget=30)
    assert here.table.drop("seconds").equals(there.table.drop("seconds"))
    assert torch.equal(here.images, there.images)
    with pytest.raises(AccessError, match="needs access 'scores', the target gives 'labels'"):
        poise.attack(target(access=Access.LABELS), *arguments, budget=3)


@pytest.mark.parametrize("draw", ["torch", "numpy", "python"])
def test_a_random_function_repeats_itself_with_the_seed_and_leaves_no_trace(draw: str) -> None:
    draws: dict[str, Callable[[], float]] = {
        "torch": lambda: float(torch.rand(())),
        "numpy": lambda: np.random.rand(),  # noqa: NPY002
        "python": random.random,
    }
    noisy = target(lambda x: linear(x) + draws[draw]())
    answers = []
    with untouched_generators():
        for seed in (1, 1, 2):
            with noisy.session(seed):
                first = noisy.query(CASE.images, IDS).scores
                with noisy.session(seed):  # an inner one does not start again
                    second = noisy.query(CASE.images, IDS).scores
                assert not torch.equal(first, second)
                answers.append((first, second))
        noisy.query(CASE.images, IDS)
    assert all(torch.equal(a, b) for a, b in zip(answers[0], answers[1], strict=True))
    assert not torch.equal(answers[0][0], answers[2][0])
    check_target(noisy, CASE.images, stochastic=True)


def test_the_generators_are_put_back_after_an_error() -> None:
    def function(x: np.ndarray) -> np.ndarray:
        np.random.rand()  # noqa: NPY002
        raise ValueError("no\nmodel")

    before = random_states()
    broken = target(function)
    for _ in range(2):
        with pytest.raises(TargetError, match=r"^FunctionTarget: the function raised ValueError: no model$") as caught:
            broken.query(CASE.images, IDS)
        assert isinstance(caught.value.__cause__, ValueError)
    assert random_states() == before


def raises(error: BaseException) -> Callable[[object], object]:
    def function(x: object) -> object:
        raise error

    return function


def test_what_the_function_raises() -> None:
    with pytest.raises(TargetError, match=r"^FunctionTarget: the function raised StopIteration$"):
        target(raises(StopIteration())).query(CASE.images, IDS)
    with pytest.raises(TargetError, match=r"raised ValueError: x+…$") as caught:
        target(raises(ValueError("x" * 10_000))).query(CASE.images, IDS)
    assert len(str(caught.value)) < 300
    for error in (BudgetError("ours"), KeyboardInterrupt()):  # nothing of ours, and no wish to stop, is wrapped
        with pytest.raises(type(error)):
            target(raises(error)).query(CASE.images, IDS)


@pytest.mark.parametrize(
    ("answer", "declared", "message"),
    [
        (np.zeros((6, 4)), {}, r"answers must be \(6, 3\) scores for 6 images, got \(6, 4\)"),
        (np.zeros((5, 3)), {}, r"answers must be \(6, 3\) scores for 6 images, got \(5, 3\)"),
        (np.zeros(6), {}, r"answers must be \(6, 3\) scores for 6 images, got \(6,\)"),
        (np.zeros((6, 3), int), {"outputs": "labels"}, r"answers must be \(6,\) integer labels for 6 images, got \(6"),
        (np.zeros(6), {"outputs": "labels"}, r"answers must be \(6,\) integer labels .* got \(6,\) torch.float64"),
        (torch.ones(6) > 0, {"outputs": "labels"}, r"answers must be \(6,\) integer labels .* got \(6,\) torch.bool"),
        ([0, 1, 2, 3, 0, 0], {"outputs": "labels"}, r"labels must be in 0\.\.2, got values in 0\.\.3"),
        ([0, -1, 2, 2, 0, 0], {"outputs": "labels"}, r"labels must be in 0\.\.2, got values in -1\.\.2"),
        (np.full((6, 3), np.nan), {}, r"scores must be finite, got 18 NaN or infinite values"),
        (np.full((6, 3), np.inf), {"outputs": "probabilities"}, r"scores must be finite, got 18 NaN or infinite"),
        (np.full((6, 3), 1 / 3), {}, r"declared to answer logits, but its rows are probabilities .*'probabilities'"),
        (np.full((6, 3), 0.5), {"outputs": "probabilities"}, r"declared to answer probabilities.* sum is off by 0\.5"),
        ([[1.5, -0.5, 0]] * 6, {"outputs": "probabilities"}, r"declared to answer probabilities.* value is -0\.5"),
        ([[1.0, 2.0], [1.0]], {}, r"answers must be an array, a tensor or nested lists of numbers, got ValueError"),
        (None, {}, r"answers must be an array, .* got NoneType of type object"),
        ("cat", {}, r"answers must be an array, .* got str of type <U3"),
        ({"a": 1}, {}, r"answers must be an array, .* got dict of type object"),
        (np.zeros((6, 3), complex), {}, r"answers must be an array, .* got ndarray of type complex128"),
    ],
)
def test_answers_that_contradict_the_declaration(answer: object, declared: dict[str, object], message: str) -> None:
    with pytest.raises(TargetError, match=rf"^FunctionTarget: .*{message}") as caught:
        target(lambda x: answer, **declared).query(CASE.images, IDS)
    assert "\n" not in str(caught.value)


def test_probabilities_of_a_few_digits_are_accepted_and_logits_after_the_first_answer_may_be_anything() -> None:
    p = torch.rand(6, 3, generator=generator(3)).softmax(dim=1).numpy()
    found = target(lambda x: p.round(4), outputs="probabilities")
    assert torch.allclose(found.query(CASE.images, IDS).scores, torch.from_numpy(p), atol=1e-4)
    replies = iter([np.full((6, 3), 2.0), p])
    logits = target(lambda x: next(replies))
    logits.query(CASE.images, IDS)
    logits.query(CASE.images, IDS)


@pytest.mark.parametrize(
    ("function", "declared", "message"),
    [
        (3, {}, "function must be callable, got int"),
        (linear, {"num_classes": 1}, "num_classes must be at least 2, got 1"),
        (linear, {"outputs": "scores"}, "outputs must be 'logits', 'probabilities' or 'labels', got 'scores'"),
        (linear, {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (linear, {"bounds": (1.0, 0.0)}, r"bounds must be \(low, high\) with low < high, got \(1.0, 0.0\)"),
        (linear, {"access": Access.GRADIENTS}, "access must be Access.LABELS or Access.SCORES, got <Access.GRADIENTS"),
    ],
)
def test_arguments_that_make_no_sense(function: object, declared: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=f"^FunctionTarget: {message}"):
        target(function, **declared)
