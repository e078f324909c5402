"""AAA's exact solver against hand-worked vectors, a dense search over pairs, scipy and finite differences."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize

from poise.defenses import AAA
from poise.defenses.posthoc import aaa_exact

VARIANTS = ["linear", "sine"]


def wide(rows):
    return torch.tensor(rows, dtype=torch.float64)


def mixed(n, classes, seed, *, dtype=torch.float64):
    """Logits whose scale spans three orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    scale = 10 ** (3 * torch.rand(n, 1, generator=generator, dtype=torch.float64) - 1.5)
    return (torch.randn(n, classes, generator=generator, dtype=torch.float64) * scale).to(dtype)


def pair_of(logits, top):
    """Margin and confidence of the class top (n,) in plain numpy."""
    z = logits.double().numpy()
    own = np.take_along_axis(z, top.numpy()[:, None], 1)
    rest = z - own
    np.put_along_axis(rest, top.numpy()[:, None], -np.inf, 1)
    return -rest.max(1), 1 / (1 + np.exp(rest).sum(1))


def wanted(z, defense):
    """t(m) and p* from the paper's equations, in plain numpy."""
    z, tau = z.double().numpy(), defense.tau
    high = np.sort(z, axis=1)
    m = high[:, -1] - high[:, -2]
    attractor = (np.floor(m / tau) + 0.5) * tau
    target = attractor - (m - attractor)
    if defense.variant == "sine":
        target = m - 0.7 * tau * np.sin(np.pi * (1 - 2 * (m - attractor) / tau))
    scaled = (z - high[:, -1:]) / float(defense.used_temperature)
    return target, 1 / np.exp(scaled).sum(1)


def test_no_rows_have_no_targets():
    none, defense = torch.zeros(0, 3), AAA(temperature=1.0)
    assert defense.target(none).shape == defense.feasible(none).shape == defense.objective(none, none).shape == (0,)


@pytest.mark.parametrize(
    ("variant", "tau", "expected"),
    [
        ("linear", 6.0, [6, 5, 3.1, 3, 1.5, 0.1, 12, 10.5, 16.8]),
        ("sine", 6.0, [0, 4.637306696, 3.339019546, 3, 0.3, 5.460980454, 6, 11.7, 17.194437368]),
        ("linear", 4.0, [4, 3, 1.1, 1, 7.5, 6.1, 6, 4.5, 14.8]),
    ],
)
def test_target_vectors(variant, tau, expected):
    margins = wide([0, 1, 2.9, 3, 4.5, 5.9, 6, 7.5, 13.2])
    logits = torch.stack([margins, torch.zeros_like(margins), torch.full_like(margins, -3.0)], dim=1)
    target = AAA(variant, tau=tau).target(logits)
    torch.testing.assert_close(target, wide(expected), atol=1e-8, rtol=0)


def test_the_sine_needs_no_attractor():
    logits = mixed(500, 3, 0)
    target, _ = wanted(logits, AAA("sine", temperature=1.0))
    np.testing.assert_allclose(AAA("sine").target(logits).numpy(), target, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize(("variant", "safe", "unsafe"), [("linear", 1.0, 1.01), ("sine", 0.7326, 0.733)])
def test_published_strengths_give_no_negative_target(variant, safe, unsafe):
    margins = torch.linspace(0, 6, 60_001, dtype=torch.float64)[:-1]
    logits = torch.stack([margins, torch.zeros_like(margins)], dim=1)
    assert float(AAA(variant, alpha=safe).target(logits).min()) >= 0
    assert float(AAA(variant, alpha=unsafe).target(logits).min()) < 0


@pytest.mark.parametrize(
    ("p", "stretch", "expected"),
    [
        (0.8, 0.442900908, [3.797221635, 1.797221635, 0.911419818, 0.46851891, 0.025618002]),
        (0.7, 0.109801358, [3.197642445, 1.197642445, 0.978039728, 0.86823837, 0.758437011]),
    ],
)
def test_vectors_of_the_rebuilt_logits(p, stretch, expected):
    logits, margin = wide([[4.0, 3.0, 1.0, 0.0, -1.0]]), wide([[2.0]])
    rows, tail = aaa_exact.read(logits), margin + math.log(1 / p - 1)
    torch.testing.assert_close(aaa_exact.rebuild(rows, logits, margin, tail), wide([expected]), atol=1e-8, rtol=0)
    assert aaa_exact._stretch_and_shift(rows.gaps, tail)[0].item() == pytest.approx(stretch, abs=1e-9)


@pytest.mark.parametrize(
    ("classes", "margin", "low", "high"),
    [
        (5, 2.0, 0.648785644, 0.880797078),
        (10, 0.1, 0.109366871, 0.524979187),
        (10, 6.0, 0.978178051, 0.997527377),
        (100, 6.0, 0.802957153, 0.9975273768),
        (2, 2.0, 0.880797078, 0.880797078),
    ],
)
def test_a_margin_allows_an_interval_of_confidences(classes, margin, low, high):
    for wish, expected in ((1e-9, low), (1 - 1e-12, high)):
        doubt = wide([math.log(1 / wish - 1)])
        m, tail = aaa_exact.nearest_pair(wide([margin]), doubt, classes=classes, beta=4.0)
        assert m.item() == margin
        assert (m - tail).sigmoid().item() == pytest.approx(expected, abs=1e-8)


PAIRS = [
    (0.1, 0.94, 10, 5.0, 0.962424, 0.723607, 1.94439),
    (0.1, 0.6, 10, 5.0, 0.405465, 0.6, 0.305465),
    (0.1, 0.94, 10, 3.0, 0.1, 0.524979, 1.24506),
    (6.0, 0.3, 10, 5.0, 6.0, 0.978178, 3.39089),
    (2.0, 0.2, 10, 5.0, 1.234801, 0.276393, 1.147165),
    (1.5, 0.31, 3, 5.0, 0.001, 1 / (1 + 2 * math.exp(-1e-3)), 1.616777963),
]


def solve(target, p, classes, beta):
    m, tail = aaa_exact.nearest_pair(wide([target]), wide([math.log(1 / p - 1)]), classes=classes, beta=beta)
    confidence = (m - tail).sigmoid().item()
    return m.item(), confidence, abs(m.item() - target) + beta * abs(confidence - p)


@pytest.mark.parametrize(("target", "p", "classes", "beta", "m", "confidence", "objective"), PAIRS)
def test_vectors_of_infeasible_pairs(target, p, classes, beta, m, confidence, objective):
    assert solve(target, p, classes, beta) == pytest.approx((m, confidence, objective), abs=1e-5)


def dense(target, p, classes, beta):
    """Least objective over a fine grid of margins, each with its best confidence."""
    m = np.concatenate([np.linspace(1e-3, 25, 25_001), [target]])
    low, high = 1 / (1 + (classes - 1) * np.exp(-m)), 1 / (1 + np.exp(-m))
    return (np.abs(m - target) + beta * np.abs(np.clip(p, low, high) - p)).min()


def test_the_pair_is_the_minimum_of_a_dense_search():
    generator = np.random.default_rng(0)
    cases = [
        (generator.uniform(1e-3, 15), 1 / (1 + np.exp(-generator.normal(0, 3))), classes, beta)
        for classes in (2, 3, 10, 1000)
        for beta in (0.0, 4.0, 4.5, 5.0, 30.0)
        for _ in range(12)
    ]
    for case in cases:
        assert solve(*case)[2] <= dense(*case) + 1e-8, case  # never worse
        assert solve(*case)[2] >= dense(*case) - 5e-3, case  # nor better than possible: the grid's step is 1e-3
    worse = [abs(np.clip(0.94, *[1 / (1 + k * math.exp(-0.1)) for k in (9, 1)]) - 0.94) * 5]  # staying at t: a twin
    assert worse[0] > solve(0.1, 0.94, 10, 5.0)[2] + 0.1


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("classes", "temperature"), [(2, 1.0), (3, 0.5), (10, 2.0), (100, 1.0), (1000, 2.0)])
def test_the_output_has_the_least_objective_of_its_row(variant, classes, temperature):
    logits = mixed(200 if classes < 1000 else 40, classes, seed=classes)
    defense = AAA(variant, temperature=temperature)
    out, top = defense(logits), logits.argmax(1)
    margin, confidence = pair_of(out, top)
    target, p = wanted(logits, defense)
    far = np.abs(margin - target) + 5 * np.abs(confidence - p)
    np.testing.assert_allclose(defense.objective(logits, out).numpy(), far, atol=1e-8 * (1 + np.abs(target).max()))
    for i in range(0, len(far), 5):
        assert far[i] <= dense(target[i], p[i], classes, 5.0) + 1e-7 or target[i] > 24
    reachable = defense.feasible(logits).numpy()
    assert reachable.any() or classes == 2
    assert (far[reachable] < 1e-7).all()
    assert (far[~reachable] > 1e-3).any()
    np.testing.assert_allclose(out.mean(1).numpy(), logits.mean(1).numpy(), atol=1e-9 * np.abs(logits.numpy()).max())


def test_no_general_minimiser_finds_less():
    """Nelder-Mead on the logits themselves, from three starts, for rows of 4 classes."""
    logits = mixed(6, 4, seed=5).clamp(-8, 8)
    defense = AAA(temperature=2.0)
    ours = defense.objective(logits, defense(logits)).numpy()
    for i, row in enumerate(logits):
        top = row.argmax().reshape(1)
        target, p = (part[0] for part in wanted(row[None], defense))

        def far(z, top=top, target=target, p=p):
            margin, confidence = pair_of(torch.from_numpy(z)[None], top)
            return abs(margin[0] - target) + 5 * abs(confidence[0] - p) + 100 * max(0, 1e-3 - margin[0])

        starts = (row.numpy(), defense(row[None])[0].numpy(), np.linspace(1, 0, 4))
        found = min(minimize(far, z, method="Nelder-Mead", options={"maxiter": 800}).fun for z in starts)
        assert ours[i] <= found + 1e-6
        assert far(starts[1]) == pytest.approx(ours[i], abs=1e-9)


@pytest.mark.parametrize("classes", [3, 5, 10, 300])
def test_others_are_stretched_or_shifted_in_their_order(classes):
    logits = mixed(100, classes, seed=9)
    defense = AAA(temperature=2.0)
    rows = aaa_exact.read(logits)
    pair = defense._pair(rows.margin, aaa_exact.doubt(rows, 0.5), classes)
    stretch, shift = aaa_exact._stretch_and_shift(rows.gaps, pair[1])
    order = logits.argsort(dim=1)
    assert float(defense(logits).gather(1, order).diff(dim=1).min()) >= -1e-12
    for gaps, s, t, rho in zip(rows.gaps.numpy(), stretch, shift, pair[1].expm1(), strict=True):
        d = gaps[gaps < 1e29]
        assert len(d) == classes - 2
        if np.exp(-d).sum() >= rho.item():
            assert s.item() == 1
            assert t.item() == pytest.approx(math.log(np.exp(-d).sum() / rho.item()), abs=1e-9)
        elif rho.item() < classes - 2 - 1e-9:
            goal = rho.item()
            root = brentq(lambda x, d=d, goal=goal: np.exp(-x * d).sum() - goal, 0, 1, xtol=1e-14)
            assert s.item() == pytest.approx(root, rel=1e-4)
        assert t.item() > -1e-12


def test_rows_whose_root_is_not_reached_still_meet_margin_and_confidence():
    """Gaps over ten orders of magnitude: the shift makes up what the steps leave."""
    others = -(10 ** torch.linspace(-4, 6, 30, dtype=torch.float64))
    logits = torch.cat([wide([4.0, 3.0]), 3 + others])[None]
    rows, margin = aaa_exact.read(logits), wide([[2.0]])
    shifts = []
    for p in torch.linspace(0.25, 0.88, 40, dtype=torch.float64):
        tail = margin + torch.log(1 / p - 1)
        out = aaa_exact.rebuild(rows, logits, margin, tail)
        found = pair_of(out - out.amax(), torch.tensor([0]))
        assert (found[0][0], found[1][0]) == pytest.approx((2.0, p.item()), abs=1e-9)
        s, t = aaa_exact._stretch_and_shift(rows.gaps, tail)
        shifts.append(t.item() if s.item() < 1 else 0.0)
    assert max(shifts) > 1e-3  # such rows were among them


def test_the_margin_runs_backwards_inside_an_interval():
    margins = torch.linspace(6.1, 11.9, 30, dtype=torch.float64)
    logits = torch.stack([margins, torch.zeros(30).double(), torch.full((30,), -2.0).double()], dim=1)
    after, _ = pair_of(AAA(temperature=1.0)(logits), torch.zeros(30, dtype=torch.int64))
    np.testing.assert_allclose(after, 18 - margins.numpy(), atol=1e-9)  # t(m) + m = 2 A
