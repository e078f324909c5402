"""The bounds as pure functions: the spec's vectors, what must hold of every bound, the edges."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import norm

from poise.certify import Scores, cdf_lower, cdf_upper, dkw_epsilon, naive_lower, naive_upper
from poise.errors import InputError

FIVE = Scores.exact([0.2, 0.5, 0.8, 0.9, 1.0])
SIGMA = 0.25
RADII = [0.0, 0.25, 0.5]


def agrees(found: object, printed: str) -> None:
    """`found` rounded to the digits of `printed` is `printed`."""
    places = len(printed.partition(".")[2])
    assert round(float(found), places) == float(printed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bound", "epsilon", "printed"),
    [
        (cdf_lower, 0.0, (".68", ".413195217", ".250547347")),
        (cdf_lower, 0.05, (".63", ".327490180", ".110103764")),
        (naive_lower, 0.05, (".63", ".252019992", ".047643309")),
        (cdf_upper, 0.05, (".72", ".912514358", ".984786983")),
    ],
)
def test_vectors_of_the_spec(bound: Callable, epsilon: float, printed: tuple[str, ...]) -> None:
    for value, digits in zip(bound(FIVE, RADII, sigma=SIGMA, epsilon=epsilon), printed, strict=True):
        agrees(value, digits)


def by_hand(scores: list[float], radius: float, epsilon: float, side: int) -> float:
    """The formula as the spec writes it, one gap after another, with scipy's slow normal distribution."""
    s, n, total = sorted(scores), len(scores), 0.0
    for i in range(n + (side > 0)):
        gap = (s[i] if i < n else 1.0) - (s[i - 1] if i else 0.0)
        share = max(0.0, (n - i) / n - epsilon) if side < 0 else min(1.0, (n - i) / n + epsilon)
        total += gap * norm.cdf(norm.ppf(share) + side * radius / SIGMA)
    return total


@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("radius", [0.0, 0.1, 0.25, 0.5, 1.5])
def test_against_the_formula_written_out(radius: float, epsilon: float) -> None:
    drawn = np.random.default_rng(3).beta(2, 1, 40).tolist()
    drawn[3:6] = [0.5, 0.5, 0.5]
    scores = Scores.exact(drawn)
    for bound, side in ((cdf_lower, -1), (cdf_upper, 1)):
        found = bound(scores, radius, sigma=SIGMA, epsilon=epsilon)
        assert float(found) == pytest.approx(by_hand(drawn, radius, epsilon, side), rel=1e-12)


def test_figures_of_the_upstream_logs() -> None:
    """R = 0 bounds of the released logs, and what the formula makes of them at larger radii."""
    for mean, printed in ((0.704, (".321", ".0716", ".00686", ".000266")), (0.987, (".8899", ".5895", ".2195"))):
        found = naive_lower(Scores.exact([mean]), [0.25, 0.5, 0.75, 1.0], sigma=SIGMA, epsilon=0.0)
        for value, digits in zip(found[: len(printed)], printed, strict=True):
            assert float(value) == pytest.approx(float(digits), rel=0.02)
    agrees(dkw_epsilon(100_000, 0.001), ".005876970")
    agrees(cdf_lower(Scores.exact(np.ones(1000)), 0.0, sigma=SIGMA, epsilon=dkw_epsilon(100_000, 0.001)), ".994123")


def draws(seed: int, low: float = 0.0, n: int = 300) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return low + (1 - low) * rng.beta(*rng.uniform(0.3, 3, 2), n)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("low", [0.0, -1.0])
def test_what_holds_of_every_bound(seed: int, low: float) -> None:
    values = draws(seed, low)
    scores, epsilon, radii = Scores.exact(values, low), dkw_epsilon(300, 0.01), np.linspace(0, 2, 41)
    lower, upper, plain_lower, plain_upper = (
        bound(scores, radii, sigma=0.4, epsilon=epsilon) for bound in (cdf_lower, cdf_upper, naive_lower, naive_upper)
    )
    for bound in (lower, plain_lower):
        assert (np.diff(bound) <= 0).all()
        assert (bound <= values.mean()).all()
        assert (bound >= low - 1e-12).all()
    for bound in (upper, plain_upper):
        assert (np.diff(bound) >= 0).all()
        assert (bound >= values.mean()).all()
        assert (bound <= 1 + 1e-12).all()
    assert (lower >= plain_lower - 1e-12).all()
    assert (upper <= plain_upper + 1e-12).all()


@pytest.mark.parametrize("seed", range(6))
def test_upper_is_the_mirror_image_of_lower(seed: int) -> None:
    values, radii = draws(seed), np.linspace(0, 1, 7)
    mirrored = 1 - cdf_lower(Scores.exact(1 - values), radii, sigma=0.3, epsilon=0.04)
    np.testing.assert_allclose(
        cdf_upper(Scores.exact(values), radii, sigma=0.3, epsilon=0.04), mirrored, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("s", [0.0, 0.3, 1.0])
def test_constant_scores(s: float) -> None:
    scores, epsilon = Scores.exact(np.full(500, s)), dkw_epsilon(500, 0.01)
    for radius in (0.0, 0.2, 1.0):
        lower = cdf_lower(scores, radius, sigma=SIGMA, epsilon=epsilon)
        assert float(lower) == pytest.approx(s * norm.cdf(norm.ppf(1 - epsilon) - radius / SIGMA), abs=1e-14)
        upper = cdf_upper(scores, radius, sigma=SIGMA, epsilon=epsilon)
        assert float(upper) == pytest.approx(s + (1 - s) * norm.cdf(norm.ppf(epsilon) + radius / SIGMA), abs=1e-14)


def test_shares_of_zero_and_one() -> None:
    """Without slack a share of 1 stays 1 and one of 0 stays 0, at any radius; with one of all, nothing is known."""
    ones, zeros = Scores.exact([1.0, 1.0]), Scores.exact([0.0, 0.0])
    assert cdf_lower(ones, [0.0, 9.0], sigma=SIGMA, epsilon=0.0).tolist() == [1.0, 1.0]
    assert cdf_upper(zeros, [0.0, 9.0], sigma=SIGMA, epsilon=0.0).tolist() == [0.0, 0.0]
    assert cdf_lower(FIVE, [0.0, 1e9], sigma=SIGMA, epsilon=0.99).tolist() == pytest.approx([0.002, 0.0])
    assert cdf_upper(FIVE, 1e9, sigma=SIGMA, epsilon=0.99) == pytest.approx(1.0)


@pytest.mark.parametrize("low", [0.0, -1.0])
@pytest.mark.parametrize("bins", [4, 64, 16384])
@pytest.mark.parametrize("seed", range(4))
def test_a_histogram_gives_a_weaker_bound_by_at_most_a_bin(seed: int, bins: int, low: float) -> None:
    values, width = draws(seed, low, 5000), (1 - low) / bins
    counts = np.bincount(np.minimum(np.floor((values - low) / width).astype(int), bins - 1), minlength=bins)
    exact, binned = Scores.exact(values, low), Scores.binned(counts, low)
    assert exact.n == binned.n == 5000
    assert binned.mean_floor <= values.mean() <= binned.mean_ceiling
    radii = [0.0, 0.25, 0.5, 1.0]
    for bound, side in ((cdf_lower, 1), (naive_lower, 1), (cdf_upper, -1), (naive_upper, -1)):
        weaker = side * (bound(exact, radii, sigma=0.5, epsilon=0.03) - bound(binned, radii, sigma=0.5, epsilon=0.03))
        assert (weaker >= -1e-12).all()
        if bound in (cdf_lower, cdf_upper):
            assert (weaker <= width + 1e-12).all()


def test_bins_rounded_the_wrong_way_are_noticed() -> None:
    """The broken twin: scores at the middle of their bins give bounds above those of the scores themselves."""
    values = np.full(100, 0.26)
    middle = Scores.exact(np.full(100, 0.375))
    assert cdf_lower(middle, 0.0, sigma=1.0, epsilon=0.0) > cdf_lower(Scores.exact(values), 0.0, sigma=1.0, epsilon=0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dkw_epsilon(0, 0.1), "dkw_epsilon: n must be at least 1, got 0"),
        (lambda: dkw_epsilon(10, 0.0), "dkw_epsilon: alpha must be in (0, 0.5], got 0.0"),
        (lambda: dkw_epsilon(10, 0.6), "dkw_epsilon: alpha must be in (0, 0.5], got 0.6"),
        (lambda: cdf_lower(FIVE, -0.1, sigma=1, epsilon=0), "radius: must be a number of at least 0, got -0.1"),
        (lambda: cdf_lower(FIVE, math.nan, sigma=1, epsilon=0), "radius: must be a number of at least 0, got nan"),
        (
            lambda: cdf_upper(FIVE, 0, sigma=0, epsilon=0),
            "sigma: must be a number above 0 (without noise nothing is certified), got 0",
        ),
        (
            lambda: naive_lower(FIVE, 0, sigma=1, epsilon=1.2),
            "epsilon: must be in [0, 1), got 1.2 (too few draws for this alpha?)",
        ),
        (lambda: Scores.exact([]), "Scores: scores must be (n,) with n at least 1, got shape (0,)"),
        (lambda: Scores.exact([0.5, 1.5]), "Scores: scores must be in [0, 1], got 0.5 to 1.5"),
        (lambda: Scores.exact([math.nan]), "Scores: scores must be in [0, 1], got nan to nan"),
        (lambda: Scores.exact([0.5], 1.0, 1.0), "Scores: the range must be finite with low < high, got [1.0, 1.0]"),
        (lambda: Scores.binned([0, 0]), "Scores: counts must be at least 0 and not all 0, got 0 to 0"),
        (lambda: Scores.binned([0.5]), "Scores: counts must be (B,) whole numbers, got shape (1,) of float64"),
    ],
)
def test_errors_say_what_is_required_and_what_was_given(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert str(caught.value) == message
