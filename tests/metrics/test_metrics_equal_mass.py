"""Adaptive and debiased ECE."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from metric_reference import H10, V10, columns, for_all

from poise.metrics import adaptive_ece, debiased_ece


def adaptive_by_loop(c: np.ndarray, h: np.ndarray, bins: int) -> float:
    order = sorted(range(len(c)), key=lambda i: c[i])
    groups = [g for g in np.array_split(order, bins) if len(g)]
    return sum(len(g) * abs(h[g].mean() - c[g].mean()) for g in groups) / len(c)


def debiased_by_loop(c: np.ndarray, h: np.ndarray, bins: int, debias: bool) -> float:
    order = sorted(range(len(c)), key=lambda i: c[i])
    total = 0.0
    for g in np.array_split(order, bins):
        size = len(g)
        if size == 0 or (debias and size < 2):
            continue
        accuracy = h[g].mean()
        square = (c[g].mean() - accuracy) ** 2 - (accuracy * (1 - accuracy) / (size - 1) if debias else 0)
        total += size / len(c) * square
    return np.sqrt(max(0.0, total))


def test_hand_worked_vectors() -> None:
    assert adaptive_ece(V10, H10, bins=5) == pytest.approx(0.229, abs=1e-12)
    assert debiased_ece(V10, H10, bins=2, debias=False) == pytest.approx(0.090520716, abs=1e-9)
    assert debiased_ece(V10, H10, bins=2) == 0


def test_debiased_is_positive_where_the_error_is_large() -> None:
    c, h = np.full(40, 0.9), np.arange(40) % 2
    # one group: (.9 - .5)^2 - .25 / 39
    assert debiased_ece(c, h, bins=1) == pytest.approx(np.sqrt(0.16 - 0.25 / 39))


def test_agree_with_plain_loops() -> None:
    def same(row: tuple[np.ndarray, np.ndarray], bins: int) -> None:
        c, h = row
        assert adaptive_ece(c, h, bins) == pytest.approx(adaptive_by_loop(c, h, bins), abs=1e-9)
        for debias in (True, False):
            # the root is steep at 0: compare squares
            ours, theirs = debiased_ece(c, h, bins, debias=debias), debiased_by_loop(c, h, bins, debias)
            assert ours**2 == pytest.approx(theirs**2, abs=1e-9)

    for_all(same, columns(), st.integers(1, 20), examples=150)


def test_one_row_and_more_groups_than_rows() -> None:
    assert adaptive_ece([0.3], [1]) == pytest.approx(0.7)
    assert debiased_ece([0.3], [1]) == 0
    assert debiased_ece([0.3], [1], debias=False) == pytest.approx(0.7)
    assert adaptive_ece([0.0, 1.0], [1, 0], bins=15) == 1.0


def bias_at_perfect_calibration(metric) -> float:
    rng = np.random.default_rng(0)
    squares = []
    for _ in range(200):
        c = rng.uniform(0.5, 1, 150)
        squares.append(metric(c, (rng.random(150) < c).astype(int)) ** 2)
    return float(np.median(squares))


def check_debiasing_helps(debiased) -> None:
    plug_in = bias_at_perfect_calibration(lambda c, h: debiased_ece(c, h, debias=False))
    assert bias_at_perfect_calibration(debiased) < plug_in / 4


def test_debiasing_helps_and_the_check_can_fail() -> None:
    check_debiasing_helps(debiased_ece)
    with pytest.raises(AssertionError):
        check_debiasing_helps(lambda c, h: debiased_ece(c, h, debias=False))
