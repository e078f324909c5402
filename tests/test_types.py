"""Outputs: the views of an answer, exact near saturation, and the errors' texts."""

from __future__ import annotations

import math

import pytest
import torch

from poise.errors import BudgetError, InputError, MissingExtraError, PoiseError, one_of
from poise.types import Access, OutputKind, Outputs, Seen
from toys import outputs


def test_views_of_logits() -> None:
    answer = outputs([0.0, math.log(3), math.log(4)], kind=OutputKind.LOGITS)
    assert answer.probabilities.tolist()[0] == pytest.approx([0.125, 0.375, 0.5])
    assert answer.log_probabilities.tolist()[0] == pytest.approx([-math.log(8), math.log(3 / 8), math.log(0.5)])
    assert answer.labels.tolist() == [2]
    assert answer.confidence.tolist() == pytest.approx([0.5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_views_of_probabilities_with_exact_zero_and_one(dtype: torch.dtype) -> None:
    answer = Outputs(torch.tensor([[1.0, 0.0], [0.25, 0.75]], dtype=dtype), OutputKind.PROBABILITIES)
    assert answer.probabilities.tolist() == [pytest.approx([1.0, 0.0]), pytest.approx([0.25, 0.75])]
    assert torch.isfinite(answer.log_probabilities).all()
    assert answer.confidence.tolist() == pytest.approx([1.0, 0.75])
    assert answer.labels.tolist() == [0, 1]


def test_one_hot_labels_are_certain() -> None:
    answer = Outputs(torch.eye(3), OutputKind.LABELS)
    assert answer.labels.tolist() == [0, 1, 2]
    assert answer.confidence.tolist() == pytest.approx([1.0] * 3)


def test_ties_go_to_the_lowest_index() -> None:
    assert Outputs(torch.zeros(2, 1000)).labels.tolist() == [0, 0]
    assert outputs([0.1, 0.45, 0.45]).labels.tolist() == [1]


def test_views_are_float64_and_tell_apart_what_float32_cannot() -> None:
    """A confidence of 1 - 1e-9 from float32 logits: float32 would call it 1."""
    z = math.log(1e9)
    answer = Outputs(torch.tensor([[z, 0.0]]))
    assert answer.logits.dtype == torch.float64
    assert answer.confidence.item() < 1
    assert 1 - answer.confidence.item() == pytest.approx(1e-9, rel=1e-3)
    assert torch.tensor([[z, 0.0]]).softmax(dim=1).max().item() == 1


def test_views_are_computed_once() -> None:
    answer = outputs([0.5, 0.5])
    assert answer.probabilities is answer.probabilities


def margin_of(answer: Outputs, classes: torch.Tensor) -> torch.Tensor:
    return answer.logits.gather(1, classes[:, None])[:, 0]


def test_a_detached_answer_keeps_what_was_computed() -> None:
    scores = torch.rand(3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    answer, classes, ids = Outputs(scores), torch.tensor([1, 2, 3]), torch.tensor([2, 1, 0])
    figure, known = answer.once(margin_of, classes, ids), answer.log_probabilities
    detached = answer.detached()
    assert not detached.scores.requires_grad
    assert detached.log_probabilities.data_ptr() == known.data_ptr()
    assert not detached.log_probabilities.requires_grad
    with torch.no_grad():
        again = detached.once(margin_of, classes, ids)
    assert again.data_ptr() == figure.data_ptr()
    assert not again.requires_grad
    assert known.requires_grad  # the answer itself is as it was
    assert "probabilities" not in vars(detached)
    assert torch.equal(detached.probabilities, answer.probabilities)


def test_a_tensor_of_inference_mode_is_never_recognised() -> None:
    with torch.inference_mode():
        rows = torch.arange(3)
        assert not Seen(rows).again(rows)


def test_no_rows() -> None:
    answer = Outputs(torch.zeros(0, 3))
    assert answer.confidence.shape == answer.labels.shape == (0,)


def test_a_higher_access_includes_the_lower() -> None:
    assert Access.LABELS < Access.SCORES < Access.GRADIENTS


def test_errors_are_one_family() -> None:
    assert issubclass(InputError, PoiseError)
    assert issubclass(InputError, ValueError)
    assert issubclass(BudgetError, PoiseError)
    error = MissingExtraError("attacking ONNX files", "onnx")
    assert isinstance(error, ImportError)
    assert str(error) == "attacking ONNX files needs the extra 'onnx': pip install 'poise[onnx]'"


def test_unknown_names_are_answered_with_the_nearest() -> None:
    error = one_of("recipe", "sa-uka", ["sa-uca", "pgd"])
    assert isinstance(error, InputError)
    assert str(error) == (
        "recipe: must be one of the known names, got 'sa-uka' (did you mean sa-uca? known: pgd, sa-uca)"
    )
    assert "did you mean" not in str(one_of("recipe", "zzz", ["pgd"]))
