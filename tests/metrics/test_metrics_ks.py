"""The KS calibration error."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import strategies as st
from metric_reference import H10, V10, columns, for_all, ks_by_loop

from poise.metrics import ks_error


def test_hand_worked_vectors() -> None:
    assert ks_error([0.9, 0.6, 0.8, 0.7], [1, 0, 1, 1]) == pytest.approx(0.15, abs=1e-12)
    assert ks_error(V10, H10) == pytest.approx(0.113, abs=1e-12)


@pytest.mark.parametrize("tie_blocks", [True, False])
def test_agrees_with_a_plain_loop(tie_blocks: bool) -> None:
    def same(row: tuple[np.ndarray, np.ndarray]) -> None:
        c, h = row
        assert ks_error(c, h, tie_blocks=tie_blocks) == pytest.approx(ks_by_loop(c, h, tie_blocks), abs=1e-9)

    for_all(same, columns(), examples=150)


def test_within_a_block_of_ties_only_its_end_counts() -> None:
    saturated = np.ones(4)
    assert ks_error(saturated, [0, 0, 1, 1]) == ks_error(saturated, [1, 0, 1, 0]) == 0.5
    half = np.full(4, 0.5)
    assert ks_error(half, [1, 1, 0, 0]) == 0
    assert ks_error(half, [1, 1, 0, 0], tie_blocks=False) == 0.25
    assert ks_error(half, [1, 0, 1, 0], tie_blocks=False) == 0.125


def test_edge_cases() -> None:
    assert ks_error([0.3], [1]) == pytest.approx(0.7)
    assert ks_error([0.0, 1.0], [0, 1]) == 0
    assert ks_error([0.0, 1.0], [1, 0]) == 0.5


def check_between_its_bounds(metric) -> None:
    def holds(row: tuple[np.ndarray, np.ndarray]) -> None:
        c, h = row
        assert abs(h.mean() - c.mean()) - 1e-9 <= metric(c, h) <= np.abs(h - c).mean() + 1e-9

    for_all(holds, columns())


def check_order_does_not_matter(metric) -> None:
    def holds(row: tuple[np.ndarray, np.ndarray], seed: int) -> None:
        c, h = row
        order = np.random.default_rng(seed).permutation(len(c))
        assert metric(c[order], h[order]) == pytest.approx(metric(c, h), abs=1e-9)

    for_all(holds, columns(), st.integers(0, 99))


def leaves_out_the_last(confidence, correct) -> float:
    order = np.argsort(confidence)[:-1]
    return float(np.abs(np.append(0, np.cumsum((correct - confidence)[order]))).max() / len(confidence))


@pytest.mark.parametrize(
    ("check", "broken"),
    [
        (check_between_its_bounds, leaves_out_the_last),
        (check_order_does_not_matter, partial(ks_error, tie_blocks=False)),
    ],
)
def test_properties_hold_and_can_fail(check, broken) -> None:
    check(ks_error)
    with pytest.raises(AssertionError):
        check(broken)
