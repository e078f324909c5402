"""Isotonic regression against the hand-worked vector, pool-adjacent-violators by hand, and its optimality."""

import numpy as np
import pytest
import torch

from poise.checks.defenses import CHECKS, check_defense, draw
from poise.defenses import Isotonic


def scored(scores, hits, classes=20):
    """Logits whose top class, in turn each, has these scores, and labels that make these hits."""
    scores = torch.as_tensor(scores, dtype=torch.float64)
    n, top = len(scores), torch.arange(len(scores)) % classes
    logits = ((1 - scores) / (classes - 1)).log()[:, None].repeat(1, classes)
    logits[torch.arange(n), top] = scores.log()
    return logits, torch.where(torch.as_tensor(hits).bool(), top, (top + 1) % classes)


def pooled(scores, hits):
    """Pool adjacent violators: blocks of (sum, weight), merged while they fall."""
    blocks = []
    for score in np.unique(scores):
        inside = hits[scores == score]
        blocks.append([inside.sum(), len(inside), [score]])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] >= blocks[-1][0] * blocks[-2][1]:
            total, weight, names = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + weight, blocks[-1][2] + names]
    return {score: total / weight for total, weight, names in blocks for score in names}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("defense", [Isotonic(), Isotonic(remainder="proportional")], ids=repr)
def test_promises(defense, check):
    check_defense(defense, only=[check])


def test_vector():
    defense = Isotonic().fit(*scored([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1]))
    asked = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.15, 0.25, 0.35, 0.0, 1.0], dtype=torch.float64)
    expected = [0.0, 0.5, 0.5, 1.0, 0.25, 0.5, 0.75, 0.0, 1.0]
    assert defense.calibrate(asked).tolist() == pytest.approx(expected, abs=1e-12)


def test_the_vectors_ends_are_clipped_so_that_the_label_stays():
    logits, labels = scored([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1])
    confidence = Isotonic().fit(logits, labels)(logits).softmax(1).amax(1)
    assert confidence.tolist() == pytest.approx([1 / 20 + 1e-6, 0.5, 0.5, 1 - 1e-6], abs=1e-12)


def test_equal_scores_are_pooled_first():
    defense = Isotonic().fit(*scored([0.3, 0.3, 0.3, 0.6], [1, 0, 0, 1]))
    assert defense.calibrate(torch.tensor([0.3, 0.6], dtype=torch.float64)).tolist() == pytest.approx([1 / 3, 1])


@pytest.mark.parametrize("seed", range(4))
def test_it_is_pool_adjacent_violators(seed):
    generator = np.random.default_rng(seed)
    scores = generator.choice(np.linspace(0.1, 0.99, 60), 300)
    hits = (generator.random(300) < scores**2).astype(float)
    defense, expected = Isotonic().fit(*scored(scores, hits)), pooled(scores, hits)
    names = np.array(sorted(expected))
    found = defense.calibrate(torch.from_numpy(names))
    np.testing.assert_allclose(found, [expected[name] for name in names], atol=1e-12)


def test_each_block_has_the_accuracy_that_it_claims_and_brier_falls():
    logits, labels = draw(500, 10, seed=3, dtype=torch.float64)
    confidence, top = logits.softmax(1).max(1)
    hits = (top == labels).double()
    new = Isotonic().fit(logits, labels).calibrate(confidence).round(decimals=9)  # ends of blocks, up to rounding
    gaps = [abs(float(hits[new == value].mean() - value)) for value in new.unique()]
    assert len(gaps) > 3
    assert max(gaps) < 1e-8
    assert float((new - hits).square().mean()) < float((confidence - hits).square().mean())
    shuffled = new[torch.randperm(500, generator=torch.Generator().manual_seed(0))]  # a broken fit is seen
    assert max(abs(float(hits[shuffled == value].mean() - value)) for value in new.unique()) > 0.01


def test_inside_a_block_the_gradient_is_zero_and_between_blocks_it_is_the_slope():
    defense = Isotonic().fit(*scored([0.1, 0.2, 0.3, 0.4], [0, 1, 0, 1]))
    at = torch.tensor([0.15, 0.25, 0.35], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(defense.calibrate(at).sum(), at)
    assert gradient.tolist() == pytest.approx([5.0, 0.0, 5.0])
