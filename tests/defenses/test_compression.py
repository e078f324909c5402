"""Compression scaling against hand-worked vectors, scipy's roots, finite differences and the released loop."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import logsumexp
from torch.autograd.gradcheck import GradcheckError

from poise.checks.defenses import draw
from poise.defenses import CompressionScaling
from poise.errors import InputError

RECORDS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "records"


def wide(rows):
    return torch.tensor(rows, dtype=torch.float64)


def confidence(logits):
    return logits.double().softmax(1).amax(1)


def hostile(n, classes, seed):
    """Logits whose gaps span many orders of magnitude: where a root search would stop short."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    rows = [
        torch.randn(n, classes, generator=generator, dtype=torch.float64) * 10 ** (4 * uniform(n, 1) - 3),
        -(10 ** (14 * uniform(n, classes) - 10)),
        torch.where(
            uniform(n, classes) < uniform(n, 1), -(10 ** (-10 * uniform(n, 1))), -(10 ** (4 * uniform(n, 1) - 3))
        ),
        -torch.arange(classes, dtype=torch.float64) * 10 ** (3 * uniform(n, 1) - 3),
        -torch.log1p(torch.arange(classes, dtype=torch.float64)) * 10 ** (3 * uniform(n, 1) - 2),
    ]
    for row in rows[1:]:
        row[:, 0] = row[:, 1:].amax(1) + 10 ** (-9 * uniform(n))
    return torch.cat(rows)


@pytest.mark.parametrize(
    ("row", "bins", "target", "temperature"),
    [
        ([2.0, 1.0, 0.0], 3, 0.933048191, 0.370431377),
        ([2.0, 1.0, 0.0], 4, 0.910730922, 0.415160471),
        ([0.5, 0.4, 0.3, 0.2], 3, 0.857730281, 0.051346853),
        ([6.0, 0.0, 0.0, 0.0, 0.0], 3, 0.998036467, 0.78767668),
        ([0.2, 0.0], 3, 0.909966799, 0.086459208),
    ],
)
def test_vectors_of_the_exact_map(row, bins, target, temperature):
    logits, defense = wide([row]), CompressionScaling(bins)
    assert defense.target(logits).item() == pytest.approx(target, abs=1e-9)
    assert 1 / defense.scale(logits).item() == pytest.approx(temperature, abs=1e-9)
    out = defense(logits)
    torch.testing.assert_close(out, (logits - logits.amax()) / (1 / defense.scale(logits)), atol=1e-12, rtol=0)
    assert confidence(out).item() == pytest.approx(target, abs=1e-9)


def test_logits_of_the_first_vector():
    out = CompressionScaling(3)(wide([[2.0, 1.0, 0.0]]))
    torch.testing.assert_close(out - out[:, 2:], wide([[5.399110663, 2.699555332, 0.0]]), atol=1e-9, rtol=0)


@pytest.mark.parametrize("bins", [3, 4])
def test_bins_onto_bins_is_one_line(bins):
    """The paper's piecewise map, bin by bin, against the affine one."""
    p = np.linspace(0.5001, 0.9999, 401)
    logits = torch.from_numpy(np.stack([np.log(p), np.log1p(-p)], axis=1))
    index = np.minimum((p * bins).astype(int), bins - 1)
    low_in, low_out = index / bins, 1 - bins / 15 + index / 15
    piecewise = low_out + (p - low_in) * bins / 15
    np.testing.assert_allclose(CompressionScaling(bins).target(logits), piecewise, atol=1e-12)


@pytest.mark.parametrize(
    ("bins", "total", "input_range"), [(3, 15, "unit"), (4, 15, "simplex"), (1, 2, "unit"), (14, 15, "unit")]
)
@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_scale_is_the_root_that_bisection_finds(bins, total, input_range, classes):
    logits, _ = draw(25, classes, seed=classes, dtype=torch.float64)
    logits = logits * torch.logspace(-2, 0.5, 25, dtype=torch.float64)[:, None]
    defense = CompressionScaling(bins, total=total, input_range=input_range)
    ratio = bins / total * (classes / (classes - 1) if input_range == "simplex" else 1)
    for row, scale in zip(logits.numpy(), defense.scale(logits).tolist(), strict=True):
        below = row - row.max()
        goal = -math.log1p(-ratio * -math.expm1(-logsumexp(below)))
        root = brentq(lambda u, below=below, goal=goal: logsumexp(math.exp(u) * below) - goal, -1e-9, 30, xtol=1e-15)
        assert scale == pytest.approx(math.exp(root), rel=1e-9)
        assert abs(logsumexp(scale * 1.001 * below) - goal) > 1e-7 * goal  # the condition sees an error of 0.1 %


@pytest.mark.parametrize(
    ("bins", "classes"), [(3, 2), (3, 3), (4, 10), (5, 1000), (3, 1000), (3, 20000), (12, 3), (14, 10), (12, 1000)]
)
def test_every_row_with_a_unique_top_reaches_its_target(bins, classes):
    logits = hostile(2000 if classes < 100 else 40, classes, seed=bins * classes)
    defense = CompressionScaling(bins)
    out, target = confidence(defense(logits)), defense.target(logits)
    assert not bool(defense.unreachable(logits).any())
    error = float((out - target).abs().amax())
    assert error < 1e-12
    middle = (1 - target) > 1e-3
    relative = ((1 - out) / (1 - target) - 1).abs()[middle]
    assert float(relative.amax()) < 1e-9


def test_simplex_range_maps_chance_to_the_lower_edge():
    defense = CompressionScaling(3, input_range="simplex")
    logits = wide([[1e-7] + [0.0] * 9, [50.0] + [0.0] * 9])
    assert defense.target(logits).tolist() == pytest.approx([0.8, 1.0], abs=1e-7)
    assert confidence(defense(logits)).tolist() == pytest.approx([0.8, 1.0], abs=1e-7)
    half = wide([[math.log(0.55 * 9), *[math.log(0.45)] * 9]])  # p = .55, half-way from 1/10 to 1
    assert defense.target(half).item() == pytest.approx(0.9, abs=1e-12)
    assert CompressionScaling(7, input_range="simplex").target(wide([[0.1, 0.0]])).item() > 0.5
    with pytest.raises(InputError, match=r"'simplex' needs 1 - bins/total >= 1/K, got 8 of 15 bins for 2 classes"):
        CompressionScaling(8, input_range="simplex")(wide([[0.1, 0.0]]))


@pytest.mark.parametrize("bins", [3, 4])
def test_properties(bins):
    logits, _ = draw(3000, 10, seed=1, dtype=torch.float64)
    logits = logits * torch.logspace(-2, 0.5, 3000, dtype=torch.float64)[:, None]
    defense = CompressionScaling(bins)
    before, out = confidence(logits), defense(logits)
    after = confidence(out)
    assert torch.equal(out.argmax(1), logits.argmax(1))
    assert bool((after >= before).all())
    assert float(after.amin()) >= 1 - bins / 15
    assert torch.equal(before.argsort(), after.argsort())  # strictly increasing: AUROC and coverage order stay
    # the gap identity: mean c_new = 1 - (B / 15)(1 - mean c)
    assert float(after.mean()) == pytest.approx(1 - bins / 15 * (1 - float(before.mean())), abs=1e-12)
    assert float(confidence(defense(out)).sub(after).amin()) > 0  # not idempotent, by design
    assert torch.equal(out, defense.fit(logits, torch.zeros(3000, dtype=torch.int64))(logits))


def test_the_published_gap():
    """Accuracy .88 at mean confidence .5 becomes mean confidence .9."""
    p = torch.linspace(0.1, 0.9, 81, dtype=torch.float64)
    logits = torch.cat([p[:, None].log(), ((1 - p) / 99)[:, None].log().expand(-1, 99)], dim=1)
    assert float(confidence(logits).mean()) == pytest.approx(0.5, abs=1e-12)
    assert float(confidence(CompressionScaling(3)(logits)).mean()) == pytest.approx(0.9, abs=1e-12)


@pytest.mark.parametrize("tied", [2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_exact_ties_stay_unchanged_and_are_flagged(tied, dtype):
    rows = torch.tensor([[1.5] * tied + [0.25] * (6 - tied), [0.5, 3.0, 1.0, 0.0, -1.0, 2.0]]).to(dtype)
    rows = rows.flip(1)
    defense = CompressionScaling()
    out = defense(rows)
    assert torch.equal(out[0], rows[0])
    assert defense.unreachable(rows).tolist() == [True, False]
    assert defense.scale(rows)[0].item() == 1
    assert not torch.equal(out[1], rows[1])


@pytest.mark.parametrize("gap", [2e-3, 1e-6, 1e-9, 1e-11])
def test_near_ties_are_reached(gap):
    logits = wide([[0.0, -gap, -2.0]])
    defense = CompressionScaling()
    assert confidence(defense(logits)).item() == pytest.approx(defense.target(logits).item(), abs=1e-13)
    assert not bool(defense.unreachable(logits))


def test_a_gap_that_needs_more_than_the_largest_scale_is_a_tie():
    logits = wide([[0.0, -1e-13, -2.0]])
    defense = CompressionScaling()
    assert torch.equal(defense(logits), logits)
    assert defense.unreachable(logits).tolist() == [True]


def test_one_rounding_step_in_float32_and_float16():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        logits = torch.tensor([[1.0, 1 + torch.finfo(dtype).eps, 0.0]]).to(dtype)
        defense = CompressionScaling()
        out = defense(logits)
        assert bool(out.isfinite().all())
        assert out.argmax().item() == 1
        assert confidence(out).item() == pytest.approx(defense.target(logits).item(), abs=2e-3)


def test_confidence_one_stays_unchanged_and_just_below_one_does_not():
    logits = wide([[1000.0, 0.0, 1.0], [40.0, 0.0, 0.0], [30.0, 0.0, 0.0]])
    defense = CompressionScaling()
    out = defense(logits)
    assert torch.equal(out[:2], logits[:2])
    assert not bool(defense.unreachable(logits).any())
    assert defense.scale(logits)[2].item() == pytest.approx(1 + math.log(5) / 30, rel=1e-9)


def test_all_of_the_range_is_no_change():
    logits, _ = draw(50, 5, seed=2, dtype=torch.float64)
    assert CompressionScaling(15).scale(logits).tolist() == pytest.approx([1.0] * 50, abs=1e-12)


def test_masked_classes_and_nan_stay_in_their_row():
    logits = torch.tensor([[2.0, 1.0, -torch.inf], [torch.nan, 1.0, 0.0], [2.0, 1.0, 0.0]], requires_grad=True)
    defense = CompressionScaling()
    out = defense(logits)
    two = CompressionScaling()(torch.tensor([[2.0, 1.0]]))
    torch.testing.assert_close(out[0].softmax(0)[:2], two[0].softmax(0))
    assert bool(out[0].isfinite().all())
    assert bool(out[1].isnan().any())
    (gradient,) = torch.autograd.grad(out[[0, 2], 1].sum(), logits)
    assert bool(gradient[[0, 2]].isfinite().all())


def test_sizes():
    for n in (0, 1):
        for classes in (2, 1000):
            logits, _ = draw(max(n, 1), classes)
            defense = CompressionScaling()
            assert defense(logits[:n]).shape == (n, classes)
            assert defense.scale(logits[:n]).shape == defense.unreachable(logits[:n]).shape == (n,)
            assert defense.target(logits[:n]).shape == (n,)


@pytest.mark.parametrize(
    "defense", [CompressionScaling(3), CompressionScaling(4, input_range="simplex"), CompressionScaling(12)]
)
def test_gradient_is_that_of_the_exact_map(defense):
    logits, _ = draw(6, 4, seed=3, dtype=torch.float64)
    logits = torch.cat([logits, wide([[0.0, -1e-2, -2.0, -1.0], [25.0, 0.0, 1.0, -1.0]])]).requires_grad_()
    assert torch.autograd.gradcheck(defense, (logits,))
    assert torch.autograd.gradgradcheck(defense, (logits,))


class ScaleHeld(CompressionScaling):
    """Broken on purpose: the gradient forgets that the temperature moves with the logits."""

    def _map(self, logits):
        return self.scale(logits).detach()[:, None] * (logits - logits.amax(1, keepdim=True))


def test_a_gradient_that_forgets_the_temperature_fails_the_same_check():
    logits = draw(6, 4, seed=3, dtype=torch.float64)[0].requires_grad_()
    torch.testing.assert_close(ScaleHeld()(logits), CompressionScaling()(logits))
    with pytest.raises(GradcheckError):
        torch.autograd.gradcheck(ScaleHeld(), (logits,))


def test_implicit_function_theorem_by_hand():
    """K = 2: s = ln(p_new / (1 - p_new)) / d in closed form, so d s / d z is known."""
    gap = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    p = gap.sigmoid()
    closed = torch.log((0.8 + 0.2 * p) / (0.2 * (1 - p))) / gap
    (expected,) = torch.autograd.grad(closed, gap)
    scale = CompressionScaling().scale(torch.stack([gap, torch.zeros_like(gap)], dim=1))
    torch.testing.assert_close(scale, closed, atol=1e-12, rtol=0)
    (found,) = torch.autograd.grad(scale, gap)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_tied_saturated_and_plain_rows_in_one_batch_have_finite_gradients():
    logits = wide([[1.0, 1.0, 0.0], [900.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, 0.0, 0.0]]).requires_grad_()
    weight = wide([[1.0, 2.0, 3.0]])
    (gradient,) = torch.autograd.grad((CompressionScaling()(logits) * weight).sum(), logits)
    assert bool(gradient.isfinite().all())
    torch.testing.assert_close(gradient[[0, 1, 3]], weight.expand(3, -1))  # unchanged rows pass it through
    assert not torch.equal(gradient[2:3], weight)


# The released search


def released_loop(row):
    """The published procedure, sample by sample: its target, and the first of 800 temperatures that is near enough."""
    c = confidence(row[None]).item()
    if c == 1:
        return None, 1.0
    bin_ = sum(c >= edge for edge in (1 / 3, 2 / 3))
    target = (12 + bin_) / 15 + (1 / 15) * (c - bin_ / 3) / (4 / 15)
    for step in range(800):
        t = 1 - 0.00125 * step
        if abs(confidence(row[None] / t).item() - target) <= 0.01:
            return target, t
    return target, None


@pytest.mark.parametrize("classes", [2, 4, 30])
def test_released_mode_is_the_released_loop(classes):
    logits, _ = draw(60, classes, seed=4, dtype=torch.float64)
    logits = logits * torch.logspace(-2.5, 0.7, 60, dtype=torch.float64)[:, None]
    defense = CompressionScaling(mode="released")
    out, scale, missed = defense(logits), defense.scale(logits).tolist(), defense.unreachable(logits).tolist()
    found = [released_loop(row) for row in logits]
    assert missed == [t is None for _, t in found]
    assert 0 < sum(missed) < 60
    for i, (target, t) in enumerate(found):
        assert scale[i] == pytest.approx(1.0 if t is None else 1 / t, rel=1e-12)
        assert defense.target(logits[i : i + 1]).item() == pytest.approx(target, abs=1e-12)
        if t is None:
            assert torch.equal(out[i], logits[i])


def two_classes(p):
    return (
        wide([[math.log(p), math.log1p(-p), *[-40.0] * 2]])
        if p > 0.5
        else wide([[math.log(p), *[math.log((1 - p) / 3)] * 3]])
    )


@pytest.mark.parametrize(("p", "target"), [(0.33, 0.8825), (0.34, 0.868333333), (0.94, 1.001666667)])
def test_released_targets_fall_at_a_third_and_pass_one(p, target):
    assert CompressionScaling(mode="released").target(two_classes(p)).item() == pytest.approx(target, abs=1e-8)


def test_released_search_fails_where_an_attack_aims():
    defense = CompressionScaling(mode="released")
    near_tie, high, certain = wide([[0.0, -0.002, -3.0, -3.0]]), two_classes(0.99), wide([[800.0, 0.0, 0.0, 0.0]])
    for logits in (near_tie, certain):
        assert torch.equal(defense(logits), logits)
    assert defense.unreachable(torch.cat([near_tie, certain])).tolist() == [True, False]
    assert defense.target(high).item() > 1.01
    assert defense.unreachable(high).tolist() == [True]
    assert not CompressionScaling().unreachable(torch.cat([near_tie, high])).any()


def test_released_mode_does_not_promise_what_it_breaks():
    assert CompressionScaling.monotone
    assert CompressionScaling().monotone
    assert not CompressionScaling(mode="released").monotone


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bins": 0}, "must have 1 <= bins <= total, got bins 0 and total 15"),
        ({"bins": 16}, "got bins 16 and total 15"),
        ({"input_range": "simplx"}, "did you mean simplex"),
        ({"mode": "publish"}, "known: exact, released"),
        ({"mode": "released", "bins": 4}, "mode 'released' has bins 3, total 15, input_range 'unit', got bins 4"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        CompressionScaling(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["wideresnet-16-4-cifar-10", "wideresnet-16-4-cifar-100", "lenet-5-cifar-100"])
def test_real_records(name):
    file = RECORDS / f"{name}.npz"
    if not file.is_file():
        pytest.skip("the recorded probabilities in ../shared/data/records are not here")
    with np.load(file, allow_pickle=False) as data:
        logits = torch.from_numpy(data["probabilities"]).clamp_min(torch.finfo(torch.float32).tiny).log()
    defense = CompressionScaling()
    out = defense(logits)
    missed = defense.unreachable(logits)
    unique = logits.topk(2, dim=1).values.diff(dim=1).squeeze(1) != 0
    assert torch.equal(missed, ~unique)
    error = (confidence(out) - defense.target(logits)).abs()[~missed]
    assert float(error.amax()) < 1e-7  # float32 in, float32 out
    assert torch.equal(out.argmax(1), logits.argmax(1))
