"""Histogram binning against the hand-worked vector, a plain loop and its defining property."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from poise.checks.defenses import CHECKS, check_defense, draw
from poise.defenses import HistogramBinning
from poise.errors import InputError


def scored(scores, hits, classes=20):
    """Logits whose top class, in turn each, has these scores, and labels that make these hits."""
    scores = torch.as_tensor(scores, dtype=torch.float64)
    n, top = len(scores), torch.arange(len(scores)) % classes
    logits = ((1 - scores) / (classes - 1)).log()[:, None].repeat(1, classes)
    logits[torch.arange(n), top] = scores.log()
    return logits, torch.where(torch.as_tensor(hits).bool(), top, (top + 1) % classes)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    "defense", [HistogramBinning(), HistogramBinning(1), HistogramBinning(5, equal="mass", remainder="proportional")]
)
def test_promises(defense, check):
    check_defense(defense, only=[check])


def test_vector():
    logits, labels = scored([0.2, 0.4, 0.6, 0.9], [0, 1, 1, 1])
    defense = HistogramBinning(bins=2).fit(logits, labels)
    assert defense.calibrate(torch.tensor([0.2, 0.4, 0.6, 0.9])).tolist() == [0.5, 0.5, 1.0, 1.0]
    assert defense.counts.tolist() == [2, 2]
    out = defense(logits).softmax(1)
    assert out.amax(1).tolist() == pytest.approx([0.5, 0.5, 1 - 1e-6, 1 - 1e-6], abs=1e-12)
    assert torch.equal(out.argmax(1), logits.argmax(1))


def test_bins_are_closed_on_the_right_and_the_first_on_the_left():
    defense = HistogramBinning(bins=4).fit(*scored([0.2, 0.3, 0.6, 0.9], [0, 1, 0, 1]))
    assert defense.edges.tolist() == [0.25, 0.5, 0.75]
    asked = torch.tensor([0.0, 0.25, 0.25 + 1e-12, 0.5, 0.75, 1.0], dtype=torch.float64)
    assert defense.calibrate(asked).tolist() == [0.0, 0.0, 1.0, 1.0, 0.0, 1.0]


def test_an_empty_bin_keeps_its_centre():
    defense = HistogramBinning(bins=4).fit(*scored([0.6, 0.9, 0.9], [0, 1, 1]))
    assert defense.accuracies.tolist() == [0.125, 0.375, 0.0, 1.0]
    assert defense.counts.tolist() == [0, 0, 1, 2]


def test_equal_mass_keeps_equal_scores_together():
    defense = HistogramBinning(bins=3, equal="mass").fit(
        *scored([0.3, 0.3, 0.3, 0.3, 0.6, 0.7, 0.8], [1, 0, 0, 0, 1, 0, 1])
    )
    # groups of 3, 2, 2: the first two end at .3 and .6
    assert defense.edges.tolist() == pytest.approx([0.45, 0.65])
    assert defense.counts.tolist() == [4, 1, 2]
    assert defense.accuracies.tolist() == [0.25, 1.0, 0.5]
    one = HistogramBinning(bins=3, equal="mass").fit(*scored([0.3] * 6, [1, 0, 0, 0, 1, 1]))
    assert one.accuracies.tolist() == [0.5]


@pytest.mark.parametrize("equal", ["width", "mass"])
@pytest.mark.parametrize("bins", [1, 2, 15, 1000])
def test_each_bin_has_the_accuracy_that_it_claims(bins, equal):
    logits, labels = draw(400, 10, seed=5, dtype=torch.float64)
    confidence, top = logits.softmax(1).max(1)
    hits = (top == labels).double().numpy()
    defense = HistogramBinning(bins, equal=equal).fit(logits, labels)
    new, edges = defense.calibrate(confidence).numpy(), [0.0, *defense.edges.tolist(), 1.0]
    assert len(edges) == len(defense.counts) + 1
    error, filled = 0.0, 0
    for low, high in pairwise(edges):
        inside = (confidence.numpy() > low) & (confidence.numpy() <= high)
        if inside.any():
            filled += 1
            error += abs(hits[inside].sum() - new[inside].sum())  # the ECE in these very bins
    assert error / 400 < 1e-12
    assert filled == min(bins, 400) or equal == "width"
    assert int(defense.counts.sum()) == 400
    if bins > 1:
        assert np.abs(hits.mean() - new).max() > 0.05  # not one constant, which would pass as well


def test_no_promise_that_a_staircase_cannot_keep():
    defense = HistogramBinning(bins=2).fit(*scored([0.2, 0.4, 0.6, 0.9], [1, 1, 1, 0]))
    assert float(defense.accuracies[0]) > float(defense.accuracies[1])
    assert not HistogramBinning.monotone
    assert not HistogramBinning.differentiable
    logits = draw(3, 10)[0].requires_grad_()
    assert not defense(logits).requires_grad


def test_bad_options():
    with pytest.raises(InputError, match="HistogramBinning: bins must be at least 1, got 0"):
        HistogramBinning(0)
    with pytest.raises(InputError, match=r"HistogramBinning: equal: .* got 'masses' \(did you mean mass"):
        HistogramBinning(equal="masses")
