"""Risk-coverage curves and their area."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import strategies as st
from metric_reference import columns, for_all

from poise.metrics import aurc, risk_coverage


def aurc_in_order(wrong: list[int]) -> float:
    return sum(sum(wrong[:i]) / i for i in range(1, len(wrong) + 1)) / len(wrong)


def test_by_hand() -> None:
    curve = risk_coverage([0.9, 0.8, 0.8, 0.3], [1, 1, 0, 0])
    assert curve.threshold.tolist() == [0.9, 0.8, 0.3]
    assert curve.coverage.tolist() == [0.25, 0.75, 1.0]
    assert curve.risk == pytest.approx([0, 1 / 3, 0.5])
    # two orders of the tie: (0, 0, 1/3, 1/2) and (0, 1/2, 1/3, 1/2), on average
    assert curve.aurc == pytest.approx((0 + 0.25 + 1 / 3 + 0.5) / 4)


def test_ties_are_the_mean_over_all_their_orders() -> None:
    confidence, correct = [0.9, 0.7, 0.7, 0.7, 0.2], [1, 1, 0, 0, 0]
    orders = [aurc_in_order([0, *(1 - correct[i] for i in middle), 1]) for middle in permutations([1, 2, 3])]
    assert aurc(confidence, correct) == pytest.approx(np.mean(orders))


def test_agrees_with_a_plain_loop_where_nothing_ties() -> None:
    def same(seed: int, n: int) -> None:
        rng = np.random.default_rng(seed)
        c, h = rng.permutation(n) / n, rng.integers(0, 2, n)
        wrong = [int(1 - h[i]) for i in sorted(range(n), key=lambda i: -c[i])]
        assert aurc(c, h) == pytest.approx(aurc_in_order(wrong))

    for_all(same, st.integers(0, 999), st.integers(1, 30))


def test_edge_cases() -> None:
    assert aurc([0.3], [1]) == 0
    assert aurc([0.3], [0]) == 1
    assert aurc(np.ones(4), [0, 1, 0, 1]) == 0.5
    assert risk_coverage([0.0, 1.0], [1, 0]).risk.tolist() == [1.0, 0.5]


def check_order_does_not_matter(metric) -> None:
    def holds(row, seed: int) -> None:
        c, h = row
        order = np.random.default_rng(seed).permutation(len(c))
        assert metric(c[order], h[order]) == pytest.approx(metric(c, h), abs=1e-9)

    for_all(holds, columns(), st.integers(0, 99))


def stable_order_only(c: np.ndarray, h: np.ndarray) -> float:
    return aurc_in_order([int(1 - x) for x in h[np.argsort(-c, kind="stable")]])


def test_order_does_not_matter_and_the_check_can_fail() -> None:
    check_order_does_not_matter(aurc)
    with pytest.raises(AssertionError):
        check_order_does_not_matter(stable_order_only)


def test_the_curve_ends_at_full_coverage_with_the_error_rate() -> None:
    def holds(row) -> None:
        c, h = row
        curve = risk_coverage(c, h)
        assert curve.coverage[-1] == 1
        assert curve.risk[-1] == pytest.approx(1 - h.mean())
        assert (np.diff(curve.coverage) > 0).all()
        assert 0 <= curve.aurc <= 1

    for_all(holds, columns())
