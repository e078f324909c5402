"""What the goals share: margins and kept labels, whichever way they are computed."""

from __future__ import annotations

import pytest
import torch

from poise.objectives.base import logit_margin, predicted
from poise.types import OutputKind, Outputs


def answers(kind: OutputKind, classes: int) -> Outputs:
    """Forty rows; in the first five classes 1 and 3 tie for the highest, in the next five 0 and 1."""
    scores = torch.randn(40, classes, generator=torch.Generator().manual_seed(classes))
    scores[:5, [1, 3]] = 9.0
    scores[5:10, [0, 1]] = 9.0
    return Outputs(scores if kind is OutputKind.LOGITS else scores.softmax(dim=1), kind)


KINDS = (OutputKind.LOGITS, OutputKind.PROBABILITIES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("computed_before", [False, True])
def test_the_margin_is_that_of_the_logits(kind: OutputKind, classes: int, computed_before: bool) -> None:
    answer, own = answers(kind, classes), torch.arange(40) % 5
    if computed_before:
        _ = answer.logits
    z = answers(kind, classes).logits
    others = z.masked_fill(torch.nn.functional.one_hot(own, classes).bool(), -torch.inf)
    expected = z[torch.arange(40), own] - others.amax(dim=1)
    assert torch.equal(logit_margin(answer, own), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("ties", [False, True])
def test_predicted_is_the_lowest_of_the_highest(kind: OutputKind, classes: int, ties: bool) -> None:
    answer, ids = answers(kind, classes), torch.arange(39, -1, -1)
    rows = ids if ties else ids[ids >= 10]
    part = Outputs(answer.scores[rows], kind)
    for chosen in (torch.zeros(40).long(), torch.ones(40).long(), answer.scores.argmax(dim=1), torch.full((40,), 3)):
        expected = part.scores.argmax(dim=1) == chosen[rows]
        assert torch.equal(predicted(Outputs(part.scores, kind), chosen, rows), expected)


def test_the_label_of_many_classes_is_not_looked_for() -> None:
    """The margin tells, which the goals ask for anyway."""
    answer, own = Outputs(torch.randn(8, 100, generator=torch.Generator().manual_seed(0))), torch.arange(8)
    predicted(answer, own, own)
    assert "labels" not in vars(answer)
