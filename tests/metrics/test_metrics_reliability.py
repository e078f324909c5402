"""The arrays of a reliability diagram."""

from __future__ import annotations

import numpy as np
import pytest
from metric_reference import H10, V10, bins_by_loop, columns, for_all

from poise.metrics import ece, reliability


def test_counts_and_means_by_hand() -> None:
    r = reliability(V10, H10, bins=5)
    assert r.edges == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert r.count.tolist() == [0, 1, 2, 3, 4]
    assert r.right.tolist() == [0, 0, 1, 2, 3]
    assert r.wrong.tolist() == [0, 1, 1, 1, 1]
    assert r.accuracy[1:] == pytest.approx([0, 0.5, 2 / 3, 0.75])
    assert r.confidence[1:] == pytest.approx([0.31, 0.49, 2.03 / 3, 3.55 / 4])


def test_an_empty_bin_is_not_a_bin_of_wrong_answers() -> None:
    r = reliability([0.9], [0], bins=2)
    assert r.count.tolist() == [0, 1]
    assert np.isnan([r.accuracy[0], r.confidence[0]]).all()
    assert r.accuracy[1] == 0


@pytest.mark.parametrize("edges", ["right", "left", "torchmetrics"])
def test_agrees_with_a_plain_loop_and_gives_the_ece(edges: str) -> None:
    def same(row: tuple[np.ndarray, np.ndarray]) -> None:
        c, h = row
        r = reliability(c, h, edges=edges)
        content = bins_by_loop(c, h, 15, edges)
        assert r.count.tolist() == [len(b) for b in content]
        assert r.right.tolist() == [sum(hit for _, hit in b) for b in content]
        assert len(r.edges) == len(r.count) + 1
        some = r.count > 0
        gaps = np.abs(r.accuracy[some] - r.confidence[some])
        assert (r.count[some] * gaps).sum() / len(c) == pytest.approx(ece(c, h, edges=edges), abs=1e-9)

    for_all(same, columns())


def test_all_mass_on_zero_or_one() -> None:
    assert reliability([0.0, 0.0], [0, 1]).count[0] == 2
    assert reliability([1.0, 1.0], [0, 1]).count[-1] == 2
    assert reliability([1.0, 0.999], [0, 1], bins=15, edges="torchmetrics").count.tolist()[-2:] == [1, 1]
