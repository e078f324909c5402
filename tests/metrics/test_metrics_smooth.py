"""The smooth calibration error, against a direct integration and against the authors' relplot."""

from __future__ import annotations

import numpy as np
import pytest
from metric_reference import H10, V10, columns, for_all, random_columns
from scipy.integrate import trapezoid
from scipy.stats import norm

from poise.metrics import smooth_ece


def error_at(c: np.ndarray, h: np.ndarray, sigma: float) -> float:
    """smECE at one bandwidth, from the Gaussian and its mirror images on a fine grid."""
    t = np.linspace(0, 1, 8001)
    places, place = np.unique(c, return_inverse=True)
    mass = np.bincount(place, c - h) / len(c)
    kernel = np.zeros((len(t), len(places)))
    for shift in range(-4, 5):
        kernel += norm.pdf(t[:, None], places + 2 * shift, sigma) + norm.pdf(t[:, None], -places + 2 * shift, sigma)
    return float(trapezoid(np.abs(kernel @ mass), t))


def nearly_calibrated(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows at 32 confidences, `size` at each, of which one more or one fewer than due is right, in turns."""
    places = (np.arange(32) + 0.5) / 32
    due = np.rint(places * size) + np.where(np.arange(32) % 2, 1, -1)
    return np.repeat(places, size), (np.arange(size) < due[:, None]).astype(int).ravel()


def by_integration(c: np.ndarray, h: np.ndarray) -> float:
    """The smallest multiple of 1/1024, from 2/1024 on, that is not below the error there; by bisection."""
    low, high = 1, 1024
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle / 1024 < error_at(c, h, middle / 1024) else (low, middle)
    return error_at(c, h, high / 1024)


def test_constant_confidence_gives_the_gap_at_any_bandwidth() -> None:
    assert smooth_ece(np.full(5, 0.8), [1, 1, 1, 0, 0]) == pytest.approx(0.2, abs=1e-9)
    assert smooth_ece([0.3], [1]) == pytest.approx(0.7, abs=1e-9)
    assert smooth_ece([0.0, 1.0], [1, 0]) > 0.4


@pytest.mark.parametrize(
    ("c", "h"),
    [
        (V10, H10),
        random_columns(40, 1),
        random_columns(60, 2, power=4.0),
        (np.array([0.0, 1.0, 1.0]), np.array([0, 1, 0])),
    ],
)
def test_agrees_with_direct_integration(c: np.ndarray, h: np.ndarray) -> None:
    assert smooth_ece(c, h) == pytest.approx(by_integration(c, h), abs=2e-6)


@pytest.mark.parametrize("size", [64, 256])
def test_agrees_with_direct_integration_at_narrow_bandwidths(size: int) -> None:
    c, h = nearly_calibrated(size)
    assert smooth_ece(c, h) == pytest.approx(by_integration(c, h), abs=5e-6)
    assert 0.5 / size < smooth_ece(c, h) < 1.5 / size


@pytest.mark.parametrize(("n", "seed", "power"), [(200, 0, 1.0), (1000, 1, 1.0), (500, 2, 3.0), (3000, 3, 0.3)])
def test_agrees_with_relplot(n: int, seed: int, power: float) -> None:
    from relplot.metrics import smECE

    c, h = random_columns(n, seed, power)
    # relplot adds 1e-4 to a density of total mass n and works on a grid: it is exact to about 1e-3
    assert smooth_ece(c, h) == pytest.approx(smECE(c, h.astype(float)), abs=1.5e-3)


def test_small_where_calibration_is_perfect() -> None:
    few, many = smooth_ece(*random_columns(500, 5)), smooth_ece(*random_columns(20000, 5))
    assert many < 0.015
    assert many < few / 2


def check_bounds(metric) -> None:
    def holds(row: tuple[np.ndarray, np.ndarray]) -> None:
        c, h = row
        assert abs(h.mean() - c.mean()) - 1e-6 <= metric(c, h) <= np.abs(h - c).mean() + 1e-6

    for_all(holds, columns(), examples=40)


def test_bounds_hold_and_the_check_can_fail() -> None:
    check_bounds(smooth_ece)
    with pytest.raises(AssertionError):
        check_bounds(lambda c, h: 0.9 * smooth_ece(c, h))
