"""ECE and its relatives over equal-width bins."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import strategies as st
from metric_reference import H10, P4, V10, Y4, columns, ece_by_loop, for_all, gaps_by_loop, random_probabilities

from poise.metrics import average_bin_error, classwise_ece, ece, mce

EDGES = ["right", "left", "torchmetrics"]


def test_hand_worked_vectors() -> None:
    assert ece(V10, H10) == pytest.approx(0.277, abs=1e-12)
    assert ece(V10, H10, 5) == pytest.approx(0.091, abs=1e-12)
    assert mce(V10, H10, bins=5) == pytest.approx(0.31, abs=1e-12)
    assert average_bin_error(V10, H10, bins=5) == pytest.approx(0.116875, abs=1e-12)
    assert abs(H10.mean() - V10.mean()) == pytest.approx(0.087)


def test_vector_that_separates_left_from_right() -> None:
    assert ece([0.5, 0.6], [0, 1], bins=4) == pytest.approx(0.45)
    assert ece([0.5, 0.6], [0, 1], bins=4, edges="left") == pytest.approx(0.05)


def test_torchmetrics_puts_exactly_one_in_a_bin_of_its_own() -> None:
    assert ece([1, 0.99], [1, 0]) == pytest.approx(0.495)
    assert ece([1, 0.99], [1, 0], edges="torchmetrics") == pytest.approx(0.495)
    assert ece([1, 0.99], [0, 1]) == pytest.approx(0.495)
    assert ece([1, 0.99], [0, 1], edges="torchmetrics") == pytest.approx(0.505)


def test_classwise_vector() -> None:
    each = [ece(P4[:, k], k == Y4, bins=5) for k in range(3)]
    assert each == pytest.approx([0.325, 0.15, 0.025], abs=1e-12)
    assert classwise_ece(P4, Y4, bins=5) == pytest.approx(1 / 6, abs=1e-9)


def test_classwise_counts_a_class_without_a_label() -> None:
    p = np.column_stack([P4 * 0.5, np.full(4, 0.5)])
    assert classwise_ece(p, Y4) == pytest.approx(np.mean([ece(p[:, k], k == Y4) for k in range(4)]))
    assert classwise_ece(p, Y4) != pytest.approx(np.mean([ece(p[:, k], k == Y4) for k in range(3)]))


def test_two_classes() -> None:
    p, y = random_probabilities(200, 2, seed=3)
    assert classwise_ece(p, y) == pytest.approx((ece_by_loop(p[:, 0], y == 0) + ece_by_loop(p[:, 1], y == 1)) / 2)


@pytest.mark.parametrize("edges", EDGES)
def test_agrees_with_a_plain_loop(edges: str) -> None:
    def same(row: tuple[np.ndarray, np.ndarray], bins: int) -> None:
        c, h = row
        gaps = gaps_by_loop(c, h, bins, edges)
        assert ece(c, h, bins, edges=edges) == pytest.approx(ece_by_loop(c, h, bins, edges), abs=1e-9)
        assert mce(c, h, bins, edges=edges) == pytest.approx(max(g for _, g in gaps), abs=1e-9)
        mean = sum(g for _, g in gaps) / len(gaps)
        assert average_bin_error(c, h, bins, edges=edges) == pytest.approx(mean, abs=1e-9)

    for_all(same, columns(), st.integers(1, 20), examples=150)


@pytest.mark.parametrize("edges", EDGES)
def test_confidence_exactly_zero_and_one_are_counted(edges: str) -> None:
    assert ece([0.0, 1.0], [1, 0], edges=edges) == 1.0
    assert ece([0.0, 1.0], [0, 1], edges=edges) == 0.0


@pytest.mark.parametrize("metric", [ece, mce, average_bin_error])
def test_one_row_and_one_bin(metric) -> None:
    assert metric([0.3], [1]) == pytest.approx(0.7)
    assert metric(V10, H10, bins=1) == pytest.approx(0.087)


def test_edges_are_compared_in_the_type_given() -> None:
    on_edges = np.array([0.2, 0.4, 0.6], dtype=np.float32)
    # Each of the three fills a bin (lo, hi] of its own; compared in float64 all lie above their edge.
    assert ece(on_edges, [1, 1, 0], bins=5) == pytest.approx((0.8 + 0.6 + 0.6) / 3, abs=1e-6)
    beside = np.array([0.2, 0.21], dtype=np.float32)
    assert ece(beside, [0, 1], bins=5) == pytest.approx((0.2 + 0.79) / 2, abs=1e-6)
    assert ece(beside.astype(np.float64), [0, 1], bins=5) == pytest.approx((0.8 - 0.21) / 2, abs=1e-6)


def check_at_least_the_overall_gap(metric) -> None:
    def holds(row: tuple[np.ndarray, np.ndarray]) -> None:
        c, h = row
        assert metric(c, h) >= abs(h.mean() - c.mean()) - 1e-9

    for_all(holds, columns())


def check_order_does_not_matter(metric) -> None:
    def holds(row: tuple[np.ndarray, np.ndarray], seed: int) -> None:
        c, h = row
        order = np.random.default_rng(seed).permutation(len(c))
        assert metric(c[order], h[order]) == pytest.approx(metric(c, h), abs=1e-9)

    for_all(holds, columns(), st.integers(0, 99))


def check_zero_where_confidence_is_accuracy(metric) -> None:
    for right in range(1, 10):
        assert metric(np.full(10, right / 10), np.arange(10) < right) == pytest.approx(0, abs=1e-12)


def drops_zero(confidence, correct) -> float:
    """The papers' bins without the closed first one."""
    keep = confidence > 0
    return ece(confidence[keep], correct[keep]) * keep.mean() if keep.any() else 0.0


def forgets_last(confidence, correct) -> float:
    return ece(confidence[:-1], correct[:-1]) if len(confidence) > 1 else ece(confidence, correct)


def bin_middles(confidence, correct) -> float:
    """Takes the middle of a bin for its confidence."""
    return ece((np.floor(confidence * 15).clip(0, 14) + 0.5) / 15, correct)


@pytest.mark.parametrize(
    ("check", "broken"),
    [
        (check_at_least_the_overall_gap, drops_zero),
        (check_order_does_not_matter, forgets_last),
        (check_zero_where_confidence_is_accuracy, bin_middles),
    ],
)
def test_properties_hold_and_can_fail(check, broken) -> None:
    for edges in EDGES:
        check(partial(ece, edges=edges))
    with pytest.raises(AssertionError):
        check(broken)
