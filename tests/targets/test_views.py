"""Views: what each leaves of an answer, against the same thing done by hand for one row at a time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

import poise
from poise import ModuleTarget
from poise.checks.targets import check_target
from poise.errors import AccessError, InputError
from poise.objectives import UCA, KeepLabel
from poise.targets import DifferentiableTarget, Target
from poise.targets.views import LabelsOnly, Probabilities, Rounded, TopK, view
from poise.types import Access, OutputKind
from toys import Fixed, SmallCNN, Softmax, generator, linear_case

IMAGES = torch.rand(6, 1, 8, 8, generator=generator(0))
IDS = torch.arange(6)


def cnn(**declared: object) -> ModuleTarget:
    return ModuleTarget(SmallCNN(), num_classes=4, **declared)


def fixed(rows: list[list[float]] | Tensor) -> ModuleTarget:
    """A target that answers these probabilities, whatever it is asked."""
    scores = torch.as_tensor(rows, dtype=torch.float64)
    module = Fixed(lambda x: scores[: len(x)])
    return ModuleTarget(module, num_classes=scores.shape[1], outputs="probabilities", batch_size=1000)


def shown(seen: Target, rows: int) -> np.ndarray:
    return seen.query(torch.zeros(rows, 1, 2, 2), torch.arange(rows)).scores.numpy()


def drawn(n: int, classes: int, seed: int, sharp: float = 3.0) -> Tensor:
    return (sharp * torch.randn(n, classes, generator=generator(seed), dtype=torch.float64)).softmax(dim=1)


VIEWS: dict[str, Callable[[Target], Target]] = {
    "labels": LabelsOnly,
    "probabilities": Probabilities,
    "round:1": lambda target: Rounded(target, 1),
    "round:3": lambda target: Rounded(target, 3),
    "top:1": lambda target: TopK(target, 1),
    "top:2": lambda target: TopK(target, 2),
    "top:4": lambda target: TopK(target, 4),
    "top:2,round:2": lambda target: Rounded(TopK(target, 2), 2),
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("inner", [Access.SCORES, Access.GRADIENTS])
def test_every_view_is_a_target_without_gradients(name: str, inner: Access) -> None:
    for outputs, module in (("logits", SmallCNN()), ("probabilities", Softmax(SmallCNN()))):
        target = ModuleTarget(module, num_classes=4, outputs=outputs, access=inner, batch_size=5, bounds=(0.0, 2.0))
        for seen in (VIEWS[name](target), view(target, name)):
            check_target(seen, IMAGES)
            assert not isinstance(seen, DifferentiableTarget)
            assert (seen.bounds, seen.batch_size, seen.num_classes) == ((0.0, 2.0), 5, 4)
            assert seen.device == torch.device("cpu")
            labels = name == "labels"
            assert seen.kind is (OutputKind.LABELS if labels else OutputKind.PROBABILITIES)
            assert seen.access is (Access.LABELS if labels else Access.SCORES)


@pytest.mark.parametrize("name", ["labels", "probabilities", "top:1", "top:2", "top:4"])
def test_the_label_stays_the_targets(name: str) -> None:
    rows = torch.cat([drawn(200, 4, 1), torch.full((1, 4), 0.25), torch.tensor([[0.2, 0.4, 0.4, 0.0]])])
    rows = torch.cat([rows, torch.eye(4, dtype=torch.float64), torch.tensor([[0.0, 1 / 3, 1 / 3, 1 / 3]])])
    target = fixed(rows)
    assert np.array_equal(shown(view(target, name), len(rows)).argmax(axis=1), rows.numpy().argmax(axis=1))


def test_rounding_keeps_the_label_but_for_a_tie_which_the_lowest_class_wins() -> None:
    rows = drawn(300, 4, 2, sharp=1.0)
    rounded = rows.numpy().round(1)
    seen = shown(Rounded(fixed(rows), 1), 300).argmax(axis=1)
    assert np.array_equal(seen, rounded.argmax(axis=1))  # numpy's argmax: the lowest of a tie
    moved = seen != rows.numpy().argmax(axis=1)
    assert 0 < moved.sum() < 100
    top = np.sort(rounded, axis=1)[:, ::-1]
    assert np.array_equal(top[moved, 0], top[moved, 1])
    assert shown(Rounded(fixed([[0.31, 0.33, 0.36]]), 1), 1).argmax() == 2
    assert shown(Rounded(fixed([[0.36, 0.24, 0.40]]), 1), 1).argmax() == 0  # 0.4 and 0.4


@pytest.mark.parametrize(("classes", "digits"), [(2, 1), (3, 1), (10, 1), (10, 2), (100, 2), (1000, 2), (10, 6)])
def test_rounded_is_the_distribution_nearest_to_the_rounded_numbers(classes: int, digits: int) -> None:
    rows = drawn(20, classes, 3 + classes)
    rounded = rows.numpy().round(digits)
    seen = shown(Rounded(fixed(rows), digits), 20)
    for numbers, found in zip(rounded, seen, strict=True):
        shift = brentq(lambda t, v=numbers: np.maximum(v - t, 0).sum() - 1, -1.0, 1.0, xtol=1e-15)
        np.testing.assert_allclose(found, np.maximum(numbers - shift, 0), atol=1e-12)
        order = np.argsort(numbers, kind="stable")
        for low, high in pairwise(order):  # ties stay ties, bit by bit
            assert (found[low] == found[high]) if numbers[low] == numbers[high] else (found[low] < found[high])
    np.testing.assert_allclose(seen.sum(axis=1), 1, atol=1e-12)
    assert np.abs(seen - rounded).max() <= 0.5 * 10.0**-digits + 1e-12


def test_rounded_tells_no_more_than_the_numbers() -> None:
    """Two answers that round alike are shown alike, and one that does not is not."""
    pair = [[0.6401, 0.1799, 0.18], [0.6399, 0.1801, 0.18], [0.66, 0.17, 0.17]]
    seen = shown(Rounded(fixed(pair), 2), 3)
    assert np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[0], seen[2])


def test_a_long_tail_that_rounds_to_nothing_does_not_make_the_model_sure() -> None:
    """Dividing by the sum of the rounded numbers, the broken twin, would."""
    rows = torch.full((1, 1000), 0.4 / 999, dtype=torch.float64)
    rows[0, 7] = 0.6
    answer = Rounded(fixed(rows), 2).query(torch.zeros(1, 1, 2, 2), torch.arange(1))
    assert float(answer.confidence) == pytest.approx(0.6, abs=0.005)
    numbers = rows[0].numpy().round(2)
    assert (numbers / numbers.sum()).max() == 1.0


def test_rounded_of_nothing_but_zeros_is_uniform() -> None:
    rows = drawn(2, 1000, 5, sharp=0.1)
    np.testing.assert_allclose(shown(Rounded(fixed(rows), 1), 2), 1e-3, rtol=1e-9)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 9, 10])
def test_top_k_by_hand(k: int) -> None:
    rows = torch.cat([drawn(30, 10, 6), drawn(5, 10, 7, sharp=8.0), torch.full((1, 10), 0.1, dtype=torch.float64)])
    for p, found in zip(rows.numpy(), shown(TopK(fixed(rows), k), len(rows)), strict=True):
        known = sorted(range(10), key=lambda c: (-p[c], c))[:k]
        expected = np.full(10, (1 - p[known].sum()) / max(10 - k, 1))
        expected[known] = p[known]
        np.testing.assert_allclose(found, expected, atol=1e-12)
        rest = [c for c in range(10) if c not in known]
        assert all(found[c] < found[known].min() for c in rest)
        assert np.allclose(found[known], p[known], rtol=1e-12, atol=1e-30)


def test_what_a_view_hides_cannot_be_attacked() -> None:
    case, square = linear_case(3), poise.searches.Square()
    arguments = square, poise.constraints.Linf(0.1), case.images.float(), case.labels
    target = ModuleTarget(case.module(), num_classes=3)
    with pytest.raises(AccessError, match="needs access 'scores', the target gives 'labels'"):
        poise.attack(LabelsOnly(target), KeepLabel(UCA()), *arguments, budget=5)
    with pytest.raises(AccessError, match="needs access 'gradients', the target gives 'scores'"):
        poise.run_recipe("pgd-uca", TopK(target, 2), case.images.float(), case.labels, eps=0.1, budget=5)
    found = poise.attack(Rounded(target, 2), KeepLabel(UCA()), *arguments, budget=5)
    assert (found.table["prediction_before"] == found.table["prediction_after"]).all()


def test_the_session_is_the_targets() -> None:
    module = SmallCNN().train()
    seen = TopK(Rounded(ModuleTarget(module, num_classes=4), 3), 2)
    with seen.session(3):
        assert not module.training
    assert module.training


@pytest.mark.parametrize("text", ["round:2", "top:2", "probabilities"])
def test_labels_cannot_be_looked_at_more_closely(text: str) -> None:
    for target in (LabelsOnly(cnn()), cnn(access=Access.LABELS)):
        with pytest.raises(AccessError, match=r"^\w+: needs a target that gives scores, this one gives labels$"):
            view(target, text)
    assert view(cnn(access=Access.LABELS), "labels").access is Access.LABELS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "view: must be one of labels, probabilities, round:DIGITS, top:K, got ''"),
        ("label", "view: must be one of .* got 'label'"),
        ("labels:2", "view: must be one of .* got 'labels:2'"),
        ("top:2,", "view: must be one of .* got ''"),
        ("top", "view: 'top:' must be followed by a whole number, got 'top'"),
        ("round:", "view: 'round:' must be followed by a whole number, got 'round:'"),
        ("round:-1", "view: 'round:' must be followed by a whole number, got 'round:-1'"),
        ("top:2.5", "view: 'top:' must be followed by a whole number, got 'top:2.5'"),
        ("top:5", "TopK: k must be an integer in 1..4, got 5"),
        ("top:0", "TopK: k must be an integer in 1..4, got 0"),
        ("round:0", "Rounded: digits must be an integer in 1..15, got 0"),
        ("round:16", "Rounded: digits must be an integer in 1..15, got 16"),
    ],
)
def test_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        view(cnn(), text)


def test_views_are_named_with_spaces_too_and_applied_from_left_to_right() -> None:
    target = cnn()
    expected = Rounded(TopK(target, 2), 2).query(IMAGES, IDS).scores
    assert torch.equal(view(target, "top:2, round:2").query(IMAGES, IDS).scores, expected)
    assert not torch.equal(view(target, "round:2,top:2").query(IMAGES, IDS).scores, expected)
