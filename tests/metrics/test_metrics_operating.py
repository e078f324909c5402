"""Accepted, deferred, and what it costs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from metric_reference import columns, for_all

from poise.errors import InputError
from poise.metrics import (
    Costs,
    OperatingPoint,
    expected_cost,
    least_cost_threshold,
    mean,
    operating_point,
    operating_shares,
)

CONFIDENCE, CORRECT = [0.95, 0.9, 0.99, 0.2, 0.91], [1, 1, 0, 1, 1]
COSTS = Costs(wrong_accepted=10, deferred=1, right_accepted=-0.5)


def test_by_hand_with_a_strict_threshold() -> None:
    assert operating_point(CONFIDENCE, CORRECT, 0.9) == OperatingPoint(0.9, 0.4, 0.2, 0.4)
    assert expected_cost(CONFIDENCE, CORRECT, 0.9, COSTS) == pytest.approx(-0.5 * 0.4 + 10 * 0.2 + 0.4)


def test_nothing_and_everything_accepted() -> None:
    assert operating_point([1.0, 1.0], [0, 1], 1.0) == OperatingPoint(1.0, 0, 0, 1)
    assert operating_point([0.1, 1.0], [0, 1], 0.0) == OperatingPoint(0.0, 0.5, 0.5, 0)
    assert operating_point([0.0], [1], 0.0).deferred == 1


def check_shares(shares) -> None:
    def holds(row, fixed: float) -> None:
        c, h = row
        for t in (fixed, float(c[0])):  # a tie with the threshold in every case, whatever is drawn
            right, wrong, deferred = shares(c, h, t)
            assert right == pytest.approx(sum(ci > t and hi == 1 for ci, hi in zip(c, h, strict=True)) / len(c))
            assert wrong == pytest.approx(sum(ci > t and hi == 0 for ci, hi in zip(c, h, strict=True)) / len(c))
            assert right + wrong + deferred == pytest.approx(1)

    for_all(holds, columns(), st.sampled_from([0.0, 0.2, 0.5, 2 / 3, 0.9, 1.0]))


def not_strict(c, h, t) -> np.ndarray:
    return operating_shares(c, h, np.nextafter(t, 0))


def test_shares_agree_with_counting_and_the_check_can_fail() -> None:
    check_shares(operating_shares)
    with pytest.raises(AssertionError):
        check_shares(not_strict)


def test_least_cost_is_the_least_of_all_thresholds() -> None:
    def holds(row) -> None:
        c, h = row
        threshold, cost = least_cost_threshold(c, h, COSTS)
        assert cost == pytest.approx(expected_cost(c, h, threshold, COSTS), abs=1e-9)
        tried = {t: expected_cost(c, h, t, COSTS) for t in {*c.tolist(), *np.linspace(0, 1, 21).tolist()}}
        assert cost <= min(tried.values()) + 1e-9
        assert all(tried[t] > cost + 1e-12 for t in c if t > threshold)

    for_all(holds, columns())


def test_mean_of_chosen_rows() -> None:
    assert mean(CONFIDENCE) == pytest.approx(0.79)
    assert mean(CONFIDENCE, where=CORRECT) == pytest.approx((0.95 + 0.9 + 0.2 + 0.91) / 4)
    assert np.isnan(mean([0.5], where=[0]))
    assert mean([-3.0, 5.0]) == 1


def test_refuses_nonsense() -> None:
    by_class = Costs(wrong_accepted=2, deferred=1, classes={0: Costs(wrong_accepted=1, deferred=1)})
    with pytest.raises(
        InputError, match=r"^expected_cost: confidence and labels must have the same length, got 1 and 2$"
    ):
        expected_cost([0.5], [1], 0.5, by_class, [1, 0])
    with pytest.raises(InputError, match=r"threshold must be in \[0, 1\], got 90"):
        operating_point(CONFIDENCE, CORRECT, 90)
    with pytest.raises(InputError, match="deferred must be finite, got inf"):
        Costs(wrong_accepted=1, deferred=float("inf"))
    with pytest.raises(InputError, match="values and where must have the same length, got 2 and 1"):
        mean([1, 2], where=[1])
