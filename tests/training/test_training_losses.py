"""The losses of training: the specification's vectors, loops in numpy, bounds, gradients, and twins that must fail."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from training_cases import cross_entropy, divergence, log_softmax

from poise.training import losses
from toys import generator

NATURAL = torch.tensor([[2.0, 1, 0], [0, 1, 3]], dtype=torch.float64)
OTHER = torch.tensor([[1.0, 1, 0], [0, 2, 2]], dtype=torch.float64)
THIRD = torch.tensor([[0.0, 0, 0], [1, 0, 0]], dtype=torch.float64)
Y = torch.tensor([0, 1])
"""The logits of specification R2, R3, R7 and R10: row 0 is right, row 1 is wrong."""


def answers(seed: int, n: int = 40, classes: int = 4, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    draws = generator(seed)
    z = scale * torch.randn(n, classes, generator=draws, dtype=torch.float64)
    return z, torch.randint(classes, (n,), generator=draws)


def slope(loss: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    leaf = z.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(leaf), leaf)
    return found


# --- label smoothing (R11) ---

Smoothed = Callable[[Tensor, Tensor, float, str], Tensor]


def implied(loss: Smoothed, classes: int, e: float, convention: str) -> Tensor:
    """The target distribution that a loss follows: its gradient in z is p - t."""
    z, y = answers(1, 1, classes)
    return z.softmax(dim=1)[0] - slope(lambda leaf: loss(leaf, y, e, convention), z)[0], int(y)


def the_table_of_the_specification(loss: Smoothed) -> None:
    """K = 10: d = .3 leaves .7 and gives .0333; e = .3 leaves .73 and gives .03."""
    for convention, true, rest in (("others", 0.7, 0.3 / 9), ("uniform", 0.73, 0.03)):
        t, y = implied(loss, 10, 0.3, convention)
        assert t[y].item() == pytest.approx(true, abs=1e-12)
        assert np.delete(t.numpy(), y) == pytest.approx([rest] * 9, abs=1e-12)


def the_conventions_are_related(loss: Smoothed) -> None:
    """d = e (K - 1) / K."""
    for classes, e in itertools.product((2, 3, 10), (0.1, 0.5, 0.98)):
        z, y = answers(classes, 7, classes)
        by_e, by_d = loss(z, y, e, "uniform"), loss(z, y, e * (classes - 1) / classes, "others")
        assert by_e.item() == pytest.approx(by_d.item(), abs=1e-12)


def a_loop_over_rows(loss: Smoothed) -> None:
    for classes, e in itertools.product((2, 5), (0.0, 0.3, 1.0)):
        z, y = answers(classes + 20, 9, classes)
        for convention, own, each in (
            ("uniform", 1 - e + e / classes, e / classes),
            ("others", 1 - e, e / (classes - 1)),
        ):
            expected = 0.0
            for log_p, label in zip(log_softmax(z.numpy()), y.tolist(), strict=True):
                expected -= sum((own if k == label else each) * value for k, value in enumerate(log_p)) / 9
            assert loss(z, y, e, convention).item() == pytest.approx(expected, abs=1e-12)


SMOOTHING = [the_table_of_the_specification, the_conventions_are_related, a_loop_over_rows]


@pytest.mark.parametrize("check", SMOOTHING, ids=lambda check: check.__name__)
def test_smoothed_cross_entropy(check: Callable[[Smoothed], None]) -> None:
    check(losses.smoothed_cross_entropy)


@pytest.mark.parametrize("check", SMOOTHING, ids=lambda check: check.__name__)
def test_one_convention_for_both_is_noticed(check: Callable[[Smoothed], None]) -> None:
    with pytest.raises(AssertionError):
        check(lambda z, y, e, convention: losses.smoothed_cross_entropy(z, y, e, "uniform"))


def test_smoothing_by_hand_and_by_torch() -> None:
    z = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)
    assert losses.smoothed_cross_entropy(z, Y[:1], 0.98).item() == pytest.approx(1.387605964, abs=1e-9)
    some, y = answers(3)
    for e in (0.0, 0.1, 1.0):
        theirs = F.cross_entropy(some, y, label_smoothing=e)
        assert losses.smoothed_cross_entropy(some, y, e).item() == pytest.approx(theirs.item(), abs=1e-12)


def test_the_lowest_smoothed_loss_is_the_entropy_of_the_target() -> None:
    """R6: e = .98, K = 10 -> 2.300873177, at the target itself."""
    t = torch.full((1, 10), 0.098, dtype=torch.float64)
    t[0, 4] = 0.118
    value = losses.smoothed_cross_entropy(t.log(), torch.tensor([4]), 0.98).item()
    assert value == pytest.approx(2.300873177, abs=1e-9)
    assert losses.smoothed_cross_entropy(torch.zeros(1, 10), torch.tensor([4]), 0.98).item() > value


def test_soft_cross_entropy() -> None:
    z, _ = answers(5, 6, 3)
    t = torch.rand(6, 3, generator=generator(0), dtype=torch.float64)
    expected = -(t.numpy() * log_softmax(z.numpy())).sum() / 6
    assert losses.soft_cross_entropy(z, t).item() == pytest.approx(expected, abs=1e-12)
    hard = F.one_hot(Y, 3).double()
    assert losses.soft_cross_entropy(NATURAL, hard).item() == pytest.approx(1.288725992, abs=1e-9)


# --- divergences (R2, R3) ---

Divergence = Callable[[Tensor, Tensor], Tensor]


def kl_of_the_specification(kl: Divergence) -> None:
    assert kl(NATURAL, OTHER).item() == pytest.approx(0.219003493, abs=1e-9)


def kl_of_a_loop(kl: Divergence) -> None:
    for classes in (2, 7):
        (p, _), (q, _) = answers(1, 30, classes), answers(2, 30, classes)
        assert kl(p, q).item() == pytest.approx(divergence(p.numpy(), q.numpy()), abs=1e-12)


def kl_pulls_at_both(kl: Divergence) -> None:
    """d/dz_q = (q - p) / B; d/dz_p = p (log p/q - KL) / B."""
    p, q = NATURAL.softmax(1), OTHER.softmax(1)
    torch.testing.assert_close(slope(lambda z: kl(NATURAL, z), OTHER), (q - p) / 2, rtol=0, atol=1e-12)
    ratio = (p / q).log()
    expected = p * (ratio - (p * ratio).sum(dim=1, keepdim=True)) / 2
    torch.testing.assert_close(slope(lambda z: kl(z, OTHER), NATURAL), expected, rtol=0, atol=1e-12)


KL = [kl_of_the_specification, kl_of_a_loop, kl_pulls_at_both]


@pytest.mark.parametrize("check", KL, ids=lambda check: check.__name__)
def test_kl_divergence(check: Callable[[Divergence], None]) -> None:
    check(losses.kl_divergence)


@pytest.mark.parametrize(
    ("check", "twin"),
    [
        (kl_of_the_specification, lambda p, q: losses.kl_divergence(q, p)),
        (kl_of_a_loop, lambda p, q: losses.kl_divergence(p, q) * len(p)),
        (
            kl_pulls_at_both,
            lambda p, q: losses.kl_divergence(p.detach() + 0 * p, q),
        ),
    ],
    ids=["turned round", "summed", "no gradient for the clean answer"],
)
def test_broken_divergences_are_noticed(check: Callable[[Divergence], None], twin: Divergence) -> None:
    with pytest.raises(AssertionError):
        check(twin)


Shannon = Callable[[Sequence[Tensor]], Tensor]


def jsd_of_the_specification(jsd: Shannon) -> None:
    assert jsd([NATURAL, OTHER]).item() == pytest.approx(0.058064209, abs=1e-9)
    assert jsd([NATURAL, OTHER, THIRD]).item() == pytest.approx(0.146213241, abs=1e-9)


def jsd_is_symmetric(jsd: Shannon) -> None:
    values = [jsd(list(order)).item() for order in itertools.permutations([NATURAL, OTHER, THIRD])]
    assert values == pytest.approx([values[0]] * 6, abs=1e-12)


def jsd_is_bounded(jsd: Shannon) -> None:
    """0 for equal answers; ln V, which answers that are sure of different classes reach."""
    assert jsd([NATURAL, NATURAL, NATURAL]).item() == pytest.approx(0, abs=1e-12)
    sure = 200 * torch.eye(3, dtype=torch.float64)
    assert jsd([sure[:1], sure[1:2]]).item() == pytest.approx(math.log(2), abs=1e-9)
    assert jsd([sure[:1], sure[1:2], sure[2:]]).item() == pytest.approx(math.log(3), abs=1e-9)
    for seed in range(20):
        some = [answers(3 * seed + i, 5, 4, scale=8)[0] for i in range(3)]
        assert 0 < jsd(some[:2]).item() < math.log(2)
        assert 0 < jsd(some).item() < math.log(3)


JSD = [jsd_of_the_specification, jsd_is_symmetric, jsd_is_bounded]


@pytest.mark.parametrize("check", JSD, ids=lambda check: check.__name__)
def test_jensen_shannon(check: Callable[[Shannon], None]) -> None:
    check(losses.jensen_shannon)


def summed_over_views(given: Sequence[Tensor]) -> Tensor:
    return len(given) * losses.jensen_shannon(given)


def from_the_first(given: Sequence[Tensor]) -> Tensor:
    """KL to the first answer, not to the mean."""
    return torch.stack([losses.kl_divergence(other, given[0]) for other in given[1:]]).mean()


@pytest.mark.parametrize(
    ("check", "twin"),
    [
        (jsd_of_the_specification, summed_over_views),
        (jsd_is_bounded, summed_over_views),
        (jsd_is_symmetric, from_the_first),
    ],
)
def test_broken_jensen_shannons_are_noticed(check: Callable[[Shannon], None], twin: Shannon) -> None:
    with pytest.raises(AssertionError):
        check(twin)


# --- calibration penalties (R7, R10) ---

Penalty = Callable[[Tensor, Tensor], Tensor]


def top(z: Tensor) -> tuple[list[float], list[int]]:
    """Confidence and prediction, row by row."""
    p = np.exp(log_softmax(z.numpy()))
    return [float(row.max()) for row in p], [int(row.argmax()) for row in p]


def dca_of_the_specification(penalty: Penalty) -> None:
    assert penalty(NATURAL, Y).item() == pytest.approx(0.254517845, abs=1e-9)


def dca_of_a_loop(penalty: Penalty) -> None:
    for seed in range(5):
        z, y = answers(seed)
        confidence, predicted = top(z)
        hits = sum(a == b for a, b in zip(predicted, y.tolist(), strict=True)) / len(y)
        assert penalty(z, y).item() == pytest.approx(abs(hits - sum(confidence) / len(y)), abs=1e-12)


def dca_pulls_at_the_confidence_alone(penalty: Penalty) -> None:
    """Confidence .7545 above accuracy .5: down, by the softmax's own slope c (1[k = top] - p_k) / B."""
    found = slope(lambda z: penalty(z, Y), NATURAL)
    for row, (p, a) in enumerate(zip(np.exp(log_softmax(NATURAL.numpy())), (0, 2), strict=True)):
        expected = [p[a] * ((k == a) - p[k]) / 2 for k in range(3)]
        assert found[row].tolist() == pytest.approx(expected, abs=1e-12)
    below = slope(lambda z: penalty(z, torch.tensor([0, 2])), NATURAL)  # accuracy 1: up
    torch.testing.assert_close(below, -found, rtol=0, atol=1e-12)


DCA = [dca_of_the_specification, dca_of_a_loop, dca_pulls_at_the_confidence_alone]


@pytest.mark.parametrize("check", DCA, ids=lambda check: check.__name__)
def test_calibration_gap(check: Callable[[Penalty], None]) -> None:
    check(losses.calibration_gap)


def gap_of_the_true_class(z: Tensor, y: Tensor) -> Tensor:
    hits = (z.argmax(dim=1) == y).double().mean()
    return (hits - z.softmax(dim=1).gather(1, y[:, None]).mean()).abs()


def gap_with_soft_hits(z: Tensor, y: Tensor) -> Tensor:
    """Accuracy as a differentiable guess: the same value, another gradient."""
    soft = z.softmax(dim=1).gather(1, y[:, None]).mean()
    hits = (z.argmax(dim=1) == y).double().mean() + soft - soft.detach()
    return (hits - z.softmax(dim=1).amax(dim=1).mean()).abs()


@pytest.mark.parametrize(
    ("check", "twin"),
    [
        (dca_of_the_specification, gap_of_the_true_class),
        (dca_of_a_loop, gap_of_the_true_class),
        (dca_pulls_at_the_confidence_alone, gap_with_soft_hits),
    ],
)
def test_broken_gaps_are_noticed(check: Callable[[Penalty], None], twin: Penalty) -> None:
    with pytest.raises(AssertionError):
        check(twin)


def kernel(a: float, b: float) -> float:
    return math.exp(-2.5 * abs(a - b))


def unweighted(z: Tensor, y: Tensor) -> float:
    """sqrt of the mean over pairs of (h_i - c_i)(h_j - c_j) k(c_i, c_j), in two loops."""
    confidence, predicted = top(z)
    off = [(a == b) - c for a, b, c in zip(predicted, y.tolist(), confidence, strict=True)]
    pairs = itertools.product(zip(off, confidence, strict=True), repeat=2)
    return math.sqrt(math.fsum(a * b * kernel(c, d) for (a, c), (b, d) in pairs) / len(y) ** 2)


def weighted(z: Tensor, y: Tensor) -> float:
    """sqrt(A + B - 2 C): wrong pairs, right pairs, mixed pairs, each with its own mean; an empty group gives 0."""
    confidence, predicted = top(z)
    hit = [a == b for a, b in zip(predicted, y.tolist(), strict=True)]
    wrong = [c for c, h in zip(confidence, hit, strict=True) if not h]
    right = [c for c, h in zip(confidence, hit, strict=True) if h]

    def mean(left: list[float], other: list[float], value: Callable[[float, float], float]) -> float:
        pairs = [value(a, b) * kernel(a, b) for a in left for b in other]
        return math.fsum(pairs) / len(pairs) if pairs else 0.0

    a = mean(wrong, wrong, lambda c, d: c * d)
    b = mean(right, right, lambda c, d: (1 - c) * (1 - d))
    c = mean(right, wrong, lambda c, d: (1 - c) * d)
    return math.sqrt(max(a + b - 2 * c, 0.0))


def mmce_m_of_the_specification(penalty: Penalty) -> None:
    assert penalty(NATURAL, Y).item() == pytest.approx(0.340047581, abs=1e-9)


def mmce_m_of_a_loop(penalty: Penalty) -> None:
    for seed in range(4):
        z, y = answers(seed, 12)
        assert penalty(z, y).item() == pytest.approx(unweighted(z, y), abs=1e-8)


def mmce_w_of_the_specification(penalty: Penalty) -> None:
    assert penalty(NATURAL, Y).item() == pytest.approx(0.680095162, abs=1e-9)


def mmce_w_of_a_loop(penalty: Penalty) -> None:
    for seed in range(4):
        z, y = answers(seed, 12)
        assert penalty(z, y).item() == pytest.approx(weighted(z, y), abs=1e-8)


def mmce_w_of_one_group_alone(penalty: Penalty) -> None:
    z, _ = answers(8, 12)
    right = z.argmax(dim=1)
    for y in (right, (right + 1) % 4):
        assert penalty(z, y).item() == pytest.approx(weighted(z, y), abs=1e-8)


UNWEIGHTED = [mmce_m_of_the_specification, mmce_m_of_a_loop]
WEIGHTED = [mmce_w_of_the_specification, mmce_w_of_a_loop, mmce_w_of_one_group_alone]


@pytest.mark.parametrize("check", UNWEIGHTED + WEIGHTED, ids=lambda check: check.__name__)
def test_mmce(check: Callable[[Penalty], None]) -> None:
    check(lambda z, y: losses.mmce(z, y, weighted=check in WEIGHTED))


@pytest.mark.parametrize("check", UNWEIGHTED + WEIGHTED[:2], ids=lambda check: check.__name__)
def test_the_other_mmce_is_noticed(check: Callable[[Penalty], None]) -> None:
    with pytest.raises(AssertionError):
        check(lambda z, y: losses.mmce(z, y, weighted=check not in WEIGHTED))


def test_a_group_that_counts_although_it_is_empty_is_noticed() -> None:
    """One group alone is where the two forms agree, so its twin is another: nothing unless both groups are there."""

    def twin(z: Tensor, y: Tensor) -> Tensor:
        hits = z.argmax(dim=1) == y
        return losses.mmce(z, y) * (hits.any() & ~hits.all())

    mmce_w_of_a_loop(twin)
    with pytest.raises(AssertionError):
        mmce_w_of_one_group_alone(twin)


@pytest.mark.parametrize("is_weighted", [True, False])
def test_mmce_has_finite_slopes_where_it_is_zero(is_weighted: bool) -> None:
    """Sure and right, sure and wrong, one row, and a batch that is calibrated by symmetry."""
    sure = 60 * torch.eye(3, dtype=torch.float64)
    half = torch.zeros(2, 2, dtype=torch.float64)
    cases = [(sure, torch.arange(3)), (sure, torch.tensor([1, 2, 0])), (sure[:1], Y[:1]), (half, torch.tensor([0, 1]))]
    for z, y in cases:
        assert bool(torch.isfinite(slope(lambda leaf, y=y: losses.mmce(leaf, y, weighted=is_weighted), z)).all())
    assert losses.mmce(sure, torch.arange(3), weighted=is_weighted).item() == pytest.approx(1e-5, rel=1e-6)
    assert losses.mmce(half, torch.tensor([0, 1]), weighted=is_weighted).item() == pytest.approx(1e-5, rel=1e-3)


@pytest.mark.parametrize(
    "loss",
    [
        lambda z: losses.smoothed_cross_entropy(z, torch.tensor([0, 1, 1, 3, 2]), 0.3, "others"),
        lambda z: losses.jensen_shannon([z, 2 * z, 0.1 * z]),
        lambda z: losses.mmce(z, torch.tensor([0, 1, 1, 3, 2])),
        lambda z: losses.mmce(z, torch.tensor([0, 1, 1, 3, 2]), weighted=False),
        lambda z: losses.calibration_gap(z, torch.tensor([0, 1, 1, 3, 2])),
    ],
    ids=["smoothed", "jsd", "mmce_w", "mmce_m", "dca"],
)
def test_gradients_are_those_of_the_value(loss: Callable[[Tensor], Tensor]) -> None:
    z = answers(4, 5)[0].requires_grad_()
    assert torch.autograd.gradcheck(loss, (z,))


def test_references_agree_with_each_other() -> None:
    """The helpers of these tests on the specification's own numbers."""
    assert cross_entropy(NATURAL.numpy(), Y.numpy()) == pytest.approx(1.288725992, abs=1e-9)
    assert divergence(NATURAL.numpy(), OTHER.numpy()) == pytest.approx(0.219003493, abs=1e-9)
    assert unweighted(NATURAL, Y) == pytest.approx(0.340047581, abs=1e-9)
    assert weighted(NATURAL, Y) == pytest.approx(0.680095162, abs=1e-9)
