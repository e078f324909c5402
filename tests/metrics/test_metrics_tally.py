"""Streams that are added up: the same as one stream of all rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from metric_reference import columns, for_all

from poise.errors import InputError
from poise.metrics import Bootstrap, Streamed
from poise.metrics.streamed import Tally


def test_streams_in_parts_add_up_to_one() -> None:
    def check(data: tuple[np.ndarray, np.ndarray], at: int) -> None:
        confidence, correct = data
        at = min(at, len(confidence) - 1)
        whole, sum_of_parts = Streamed(3, cells=12).add(confidence, correct), Streamed(3, cells=12)
        for part in (slice(None, at), slice(at, None)):
            if len(confidence[part]):
                sum_of_parts.add_tally(Streamed(3, cells=12).add(confidence[part], correct[part]).tally)
        assert sum_of_parts.n == whole.n
        assert sum_of_parts.ece() == pytest.approx(whole.ece(), abs=1e-12)
        assert sum_of_parts.ks_error() == pytest.approx(whole.ks_error(), abs=1e-12)
        assert sum_of_parts.ks_slack == pytest.approx(whole.ks_slack, abs=1e-12)
        plan = Bootstrap(resamples=20)
        assert sum_of_parts.intervals(plan).ece.low == pytest.approx(whole.intervals(plan).ece.low, abs=1e-12)

    for_all(check, columns(), st.integers(0, 20))


def test_a_tally_is_a_copy() -> None:
    stream = Streamed(1, cells=2).add([0.4, 0.9], [0, 1])
    kept = stream.tally
    stream.add([0.9], [1])
    assert kept.count.sum() == 2
    kept.count[:] = 0
    assert stream.n == 3


def test_rows_may_follow_a_tally_and_nothing_adds_nothing() -> None:
    stream = Streamed(2, cells=4).add_tally(Streamed(2, cells=4).tally)
    with pytest.raises(InputError, match="at least one row must be added"):
        stream.ece()
    stream.add_tally(Streamed(2, cells=4).add([0.7], [1]).tally).add([0.2], [0])
    assert stream.ece() == pytest.approx(Streamed(2, cells=4).add([0.7, 0.2], [1, 0]).ece())


def test_another_grid_is_refused() -> None:
    with pytest.raises(InputError, match=r"^Streamed: the other stream must have 5 rows of counts, got 9$"):
        Streamed(2, cells=4).add_tally(Streamed(2, cells=8).tally)
    assert isinstance(Streamed().tally, Tally)
