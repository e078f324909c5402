"""Averages of query counts and the papers' ways to count."""

from __future__ import annotations

import math
from statistics import median

import numpy as np
import pytest
from hypothesis import strategies as st
from metric_reference import FINISHED, QUERIES, for_all

from poise.errors import InputError
from poise.metrics import (
    QUERY_VIEWS,
    QueryStatistics,
    mean_all,
    mean_success,
    median_success,
    query_statistics,
    success_sum_over_all,
)


def test_hand_worked_vector() -> None:
    assert query_statistics(QUERIES, FINISHED) == QueryStatistics(3.0, 3.0, 31.5, 1.5, 4)


def test_without_success() -> None:
    s = query_statistics([100, 100], [0, 0])
    assert math.isnan(s.mean_success)
    assert math.isnan(s.median_success)
    assert (s.mean_all, s.success_sum_over_all) == (100, 0)


def test_one_sample() -> None:
    assert query_statistics([1], [1]) == QueryStatistics(1, 1, 1, 1, 1)


def test_agree_with_plain_python() -> None:
    def same(rows: list[tuple[int, int]]) -> None:
        q, s = [a for a, _ in rows], [b for _, b in rows]
        done = [a for a, b in rows if b]
        assert mean_all(q, s) == pytest.approx(sum(q) / len(q))
        assert success_sum_over_all(q, s) == pytest.approx(sum(done) / len(q))
        if done:
            assert mean_success(q, s) == pytest.approx(sum(done) / len(done))
            assert median_success(q, s) == median(done)

    for_all(same, st.lists(st.tuples(st.integers(0, 50), st.integers(0, 1)), min_size=1, max_size=30))


def test_views_count_as_their_papers_do() -> None:
    queries, success, right = [4, 9, 1, 100], [1, 1, 1, 0], [1, 1, 0, 1]
    assert QUERY_VIEWS["calibration"].statistics(queries, success, right) == query_statistics(queries, success)
    assert QUERY_VIEWS["aaa"].statistics(queries, success, right).mean_all == pytest.approx(114 / 4)
    square = QUERY_VIEWS["square"].statistics(queries, success, right)
    assert square == QueryStatistics(5.5, 5.5, (3 + 8 + 99) / 3, 11 / 3, 3)


def test_the_views_of_estimates_count_probes_alone() -> None:
    """After the clean pass a step of NES asks for 20 pairs of probes and the new point, one of Bandits for one pair."""
    steps = np.array([0, 1, 2, 24])
    everyone = [1] * len(steps)
    for view, probes in (("nes", 40), ("bandits", 2)):
        found = QUERY_VIEWS[view].statistics(1 + steps * (probes + 1), everyone, everyone)
        assert found.mean_all == pytest.approx(probes * steps.mean())
        assert found.median_success == probes * 1.5
    assert QUERY_VIEWS["simba"].statistics([1, 4], [1, 1], [1, 1]).mean_all == 1.5
    assert QUERY_VIEWS["signhunter"].statistics([3], [1], [1]).mean_success == 4  # clean, all ones, first flip


def test_a_view_that_nobody_enters() -> None:
    assert QUERY_VIEWS["square"].statistics([1], [1], [0]).samples == 0


def test_the_average_of_calibration_attacks_may_lie_below_the_median() -> None:
    queries, success = [200] * 5 + [1000] * 5, [1] * 5 + [0] * 5
    assert success_sum_over_all(queries, success) < median_success(queries, success)


def test_refuses_nonsense() -> None:
    with pytest.raises(InputError, match="queries must be at least 0, got -1"):
        mean_all([-1], [1])
    with pytest.raises(InputError, match="success must be 0 or 1, got 2 in row 1"):
        mean_success([1, 1], [1, 2])
    with pytest.raises(InputError, match=r"^mean_success: queries and success must have the same length, got 2 and 1$"):
        mean_success([1, 1], [1])
    with pytest.raises(InputError, match="queries must be finite, got NaN or infinity in row 0"):
        median_success([np.nan], [1])
    with pytest.raises(InputError, match="queries must be at least 1, got 0"):
        QUERY_VIEWS["square"].statistics([0], [1], [1])
