"""Proposition 3.1 of Calibration Attacks and the KS error of its configuration."""

from __future__ import annotations

import numpy as np
import pytest
from metric_reference import columns, for_all

from poise.errors import InputError
from poise.metrics import ece, ks_error, mma_bound, mma_ks


def configuration(right: int, wrong: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    confidence = np.concatenate([np.full(right, 1 / classes), np.ones(wrong)])
    return confidence, np.arange(right + wrong) < right


def test_hand_worked_vectors() -> None:
    assert mma_bound(0.7, 10) == pytest.approx(0.93, abs=1e-12)
    assert mma_ks(0.7, 10) == pytest.approx(0.63, abs=1e-12)
    assert mma_bound(0.881, 100) == pytest.approx(0.99119, abs=1e-12)
    assert configuration(7, 3, 10)[0].mean() == pytest.approx(0.37)


@pytest.mark.parametrize(
    ("right", "wrong", "classes"), [(7, 3, 10), (1, 9, 10), (5, 5, 3), (10, 0, 100), (0, 4, 2), (1, 0, 2)]
)
def test_the_configuration_attains_both(right: int, wrong: int, classes: int) -> None:
    c, h = configuration(right, wrong, classes)
    accuracy = right / (right + wrong)
    assert ece(c, h) == pytest.approx(mma_bound(accuracy, classes), abs=1e-12)
    assert ks_error(c, h) == pytest.approx(mma_ks(accuracy, classes), abs=1e-12)


def check_nothing_exceeds(bound) -> None:
    def holds(row: tuple[np.ndarray, np.ndarray]) -> None:
        c, h = row
        assert ece(c, h) <= np.abs(h - c).mean() + 1e-9 <= bound(h.mean(), 4) + 1e-6

    for_all(holds, columns(low=0.25), examples=200)


def test_no_classifier_exceeds_the_bound_and_the_check_can_fail() -> None:
    check_nothing_exceeds(mma_bound)
    with pytest.raises(AssertionError):
        check_nothing_exceeds(lambda q, k: 1 - q)


@pytest.mark.parametrize("metric", [mma_bound, mma_ks])
def test_refuses_nonsense(metric) -> None:
    with pytest.raises(InputError, match=r"accuracy must be in \[0, 1\], got 70"):
        metric(70, 10)
    with pytest.raises(InputError, match=r"accuracy must be in \[0, 1\], got nan"):
        metric(float("nan"), 10)
    with pytest.raises(InputError, match="num_classes must be a whole number of at least 2, got 1"):
        metric(0.7, 1)
    with pytest.raises(InputError, match=r"got 2\.5"):
        metric(0.7, 2.5)
