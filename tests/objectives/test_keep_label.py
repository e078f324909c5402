"""KeepLabel: margins and ties."""

from __future__ import annotations

import pytest
import torch

from poise.errors import InputError
from poise.objectives import MMA, OCA, RCA, UCA, ConfSmooth, CrossEntropy, KeepLabel, Misclassify
from poise.types import Access, OutputKind, Outputs
from toys import bind, outputs

CLEAN = outputs([0.6, 0.3, 0.1])
ONE = torch.tensor([0])


def accepted(margin: float, answer: list[float], clean: Outputs = CLEAN) -> bool:
    return bind(KeepLabel(UCA(), margin), clean, [1]).accept(outputs(answer), ONE).item()


@pytest.mark.parametrize(
    ("margin", "answer", "expected"),
    [
        (0.0, [0.4, 0.35, 0.25], True),
        (0.0, [0.35, 0.4, 0.25], False),
        (0.0, [0.4, 0.4, 0.2], True),  # a tie goes to the lowest index, which is k
        (0.0, [0.2, 0.4, 0.4], False),
        (0.1, [0.45, 0.34, 0.21], True),
        (0.1, [0.42, 0.34, 0.24], False),  # kept, but by .08 only
        (1e-4, [0.4, 0.4, 0.2], False),
        (1e-4, [0.40005, 0.39996, 0.19999], False),
        (1e-4, [0.4001, 0.3999, 0.2], True),
    ],
)
def test_margin(margin: float, answer: list[float], expected: bool) -> None:
    assert accepted(margin, answer) is expected


def test_the_margin_must_be_exceeded_not_met() -> None:
    """Probabilities 5/8 and 3/8: the gap is 1/4 up to one rounding step of a logarithm."""
    assert accepted(0.25 - 1e-12, [0.625, 0.375, 0.0])
    assert not accepted(0.25 + 1e-12, [0.625, 0.375, 0.0])


def test_ties_of_the_clean_prediction_go_to_the_lowest_index() -> None:
    tied = outputs([0.2, 0.4, 0.4])
    assert bind(KeepLabel(UCA()), tied, [2]).k.tolist() == [1]
    assert accepted(0.0, [0.2, 0.41, 0.39], tied)
    assert not accepted(0.0, [0.2, 0.39, 0.41], tied)


def test_the_label_is_the_clean_prediction_not_the_true_one() -> None:
    bound = bind(KeepLabel(OCA()), outputs([0.6, 0.4], [0.6, 0.4]), [0, 1])
    assert bound.accept(outputs([0.9, 0.1], [0.9, 0.1]), torch.tensor([0, 1])).tolist() == [True, True]


def test_default_margin_survives_float32_arithmetic() -> None:
    """1e-4 in probability is far above what another batch shape does to a float32 logit."""
    logits = torch.tensor([[10.0, 10.0 - 3e-4, -10.0]])
    assert bind(KeepLabel(UCA()), Outputs(logits), [0]).accept(Outputs(logits), ONE).item()
    shaken = logits + 1e-5 * torch.tensor([[-1.0, 1.0, 0.0]])
    assert shaken.argmax().item() == 0


@pytest.mark.parametrize("goal", [UCA(), OCA(), MMA(), RCA(), ConfSmooth(), CrossEntropy(stop=True)])
def test_everything_else_is_the_wrapped_goals(goal: object) -> None:
    clean, later = outputs([0.6, 0.3, 0.1], [0.2, 0.5, 0.3]), outputs([0.502, 0.498, 0.0], [0.001, 0.998, 0.001])
    ids = torch.tensor([0, 1])
    plain, kept = bind(goal, clean, [0, 2]), bind(KeepLabel(goal), clean, [0, 2])
    assert torch.equal(plain.k, kept.k)
    assert torch.equal(plain.over, kept.over)
    for reading in ("loss", "merit", "done"):
        assert torch.equal(getattr(plain, reading)(later, ids), getattr(kept, reading)(later, ids))


def test_access_is_the_wrapped_goals_and_scores_for_a_margin() -> None:
    assert KeepLabel(Misclassify(), 0.0).access is Access.LABELS
    assert KeepLabel(Misclassify()).access is Access.SCORES
    assert KeepLabel(UCA(), 0.0).access is Access.SCORES


@pytest.mark.parametrize("margin", [-0.1, 1.0, float("nan")])
def test_refusals(margin: float) -> None:
    with pytest.raises(InputError, match=r"KeepLabel: label_margin must be in \[0, 1\), got"):
        KeepLabel(UCA(), margin)


def test_labels_only_outputs_are_enough_without_a_margin() -> None:
    labels = outputs([1.0, 0.0], [0.0, 1.0], kind=OutputKind.LABELS)
    bound = bind(KeepLabel(Misclassify(), 0.0), labels, [0, 0])
    assert bound.accept(outputs([1.0, 0.0], [1.0, 0.0], kind=OutputKind.LABELS), torch.tensor([0, 1])).tolist() == [
        True,
        False,
    ]
