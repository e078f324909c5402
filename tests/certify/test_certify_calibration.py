"""Certified figures of many images: the spec's vectors, brute force on small cases, and that neither side lies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from poise import metrics
from poise.certify import (
    certified_brier,
    certified_ece,
    mean_with_abstentions_as_zero,
    mean_without_abstentions,
    worst_ece_found,
)
from poise.errors import InputError

LOW, HIGH, HIT = [0.6, 0.3, 0.0], [1.0, 1.0, 0.8], [1, 1, 0]


def test_vectors_of_the_spec() -> None:
    assert certified_brier(LOW, HIGH, HIT) == pytest.approx(0.43, abs=1e-12)
    assert certified_ece(LOW, HIGH, HIT) == pytest.approx((0.4 + 0.7 + 0.8) / 3, abs=1e-12)


def intervals(seed: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.random((n, 2)), axis=1)
    return ends[:, 0], ends[:, 1], rng.integers(0, 2, n)


@pytest.mark.parametrize("seed", range(20))
def test_brier_is_the_maximum_and_the_ece_is_bounded_from_both_sides(seed: int) -> None:
    low, high, hit = intervals(seed, 30)
    found, z = worst_ece_found(low, high, hit)
    assert ((low <= z) & (z <= high)).all()
    assert metrics.ece(z, hit) == found
    for inside in np.random.default_rng(seed).uniform(low, high, (200, 30)):
        assert metrics.top_label_brier(inside, hit) <= certified_brier(low, high, hit) + 1e-12
        assert metrics.ece(inside, hit) <= certified_ece(low, high, hit) + 1e-12
    start = np.where(hit, low, high)
    assert metrics.ece(start, hit) - 1e-12 <= found <= certified_ece(low, high, hit) + 1e-12


@pytest.mark.parametrize("seed", range(8))
def test_the_search_against_every_combination(seed: int) -> None:
    """Four images, three bins: no combination on a fine grid is much better than what a few sweeps find."""
    low, high, hit = intervals(100 + seed, 4)
    grids = [np.linspace(a, b, 13) for a, b in zip(low, high, strict=True)]
    best = max(metrics.ece(np.array(z), hit, bins=3) for z in itertools.product(*grids))
    found, _ = worst_ece_found(low, high, hit, bins=3)
    assert found >= 0.9 * best
    assert found <= certified_ece(low, high, hit) + 1e-12


def test_ends_in_different_bins_reach_the_bound() -> None:
    """Right answers at 1/K, wrong ones at 1: what Proposition 3.1 bounds, attained."""
    hit = np.array([1] * 7 + [0] * 3)
    low, high = np.full(10, 0.1), np.ones(10)
    assert certified_ece(low, high, hit) == pytest.approx(metrics.mma_bound(0.7, 10))
    assert worst_ece_found(low, high, hit)[0] == pytest.approx(0.93)


def test_points_are_the_ece_itself() -> None:
    """Intervals of no width leave nothing to choose, on the edges of bins too."""
    z, hit = np.array([0.0, 0.2, 0.4, 0.95, 1.0]), np.array([0, 1, 0, 1, 1])
    assert worst_ece_found(z, z, hit, bins=5)[0] == metrics.ece(z, hit, bins=5)
    assert certified_brier(z, z, hit) == pytest.approx(metrics.top_label_brier(z, hit))


def test_both_conventions_for_abstentions() -> None:
    values, abstained = [0.9, 0.7, 0.2, 0.4], [False, False, True, True]
    assert mean_with_abstentions_as_zero(values, abstained) == pytest.approx(0.4)
    assert mean_without_abstentions(values, abstained) == pytest.approx(0.8)
    assert np.isnan(mean_without_abstentions(values, [True] * 4))
    assert mean_with_abstentions_as_zero(values, [True] * 4) == 0.0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([0.5], [0.4], [1]), "certified: intervals must satisfy 0 <= lower <= upper <= 1, got one that does not"),
        (([0.5], [0.6], [2]), "certified: hit must be 0 or 1, got 2.0"),
        (
            ([], [], []),
            "certified: lower, upper and hit must be (N,) with N at least 1, got (0,), (0,), (0,)",
        ),
    ],
)
def test_columns_that_make_no_sense(columns: tuple, message: str) -> None:
    with pytest.raises(InputError) as caught:
        certified_brier(*columns)
    assert str(caught.value) == message
