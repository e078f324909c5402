"""Deferral tables and the threshold for the worst case: by hand, against loops, with costs by class."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from metric_reference import columns, for_all

from poise.errors import InputError
from poise.metrics import (
    Costs,
    WorstCase,
    bootstrap,
    deferral,
    expected_cost,
    least_cost_threshold,
    mean_costs,
    operating_point,
    worst_case_threshold,
)

CONFIDENCE, CORRECT, LABELS = [0.95, 0.9, 0.8, 0.6], [1, 0, 1, 0], [2, 0, 0, 2]
COSTS = Costs(wrong_accepted=10, deferred=1, right_accepted=0.5)
BY_CLASS = Costs(10, 1, 0.5, classes={2: Costs(wrong_accepted=100, deferred=3)})


def cost_by_loop(confidence, correct, threshold: float, costs: Costs, labels=None) -> float:
    """Case after case, from the definition alone."""
    total = 0.0
    for row, (c, hit) in enumerate(zip(confidence, correct, strict=True)):
        price = costs if labels is None else costs.classes.get(int(labels[row]), costs)
        accepted = price.right_accepted if hit else price.wrong_accepted
        total += accepted if c > threshold else price.deferred
    return total / len(confidence)


def test_a_table_by_hand() -> None:
    """At 0.9 one case is accepted and right; at 0.7 three, one of them wrong; at 1 none."""
    table = deferral(CONFIDENCE, CORRECT, [1.0, 0.9, 0.7, 0.0], costs=COSTS)
    assert table.coverage.tolist() == [0, 0.25, 0.75, 1]
    assert np.isnan(table.risk[0])
    assert table.risk[1:].tolist() == [0, pytest.approx(1 / 3), 0.5]
    assert table.accepted_right.tolist() == [0, 0.25, 0.5, 0.5]
    assert table.accepted_wrong.tolist() == [0, 0, 0.25, 0.5]
    assert table.deferred.tolist() == [1, 0.75, 0.25, 0]
    assert table.cost.tolist() == [1, (0.5 + 3) / 4, (0.5 + 10 + 0.5 + 1) / 4, (1 + 20) / 4]
    assert np.isnan(deferral(CONFIDENCE, CORRECT, [0.5]).cost).all()


def test_costs_by_class_by_hand() -> None:
    """At 0.7: class 2 accepted and right for nothing, class 0 wrong for 10, class 0 right for 0.5, class 2 deferred."""
    assert expected_cost(CONFIDENCE, CORRECT, 0.7, BY_CLASS, LABELS) == (0 + 10 + 0.5 + 3) / 4
    assert expected_cost(CONFIDENCE, CORRECT, 0.0, BY_CLASS, LABELS) == (0 + 10 + 0.5 + 100) / 4
    assert least_cost_threshold(CONFIDENCE, CORRECT, BY_CLASS, LABELS) == (0.9, (0 + 1 + 1 + 3) / 4)


def test_worst_case_by_hand() -> None:
    """Clean it is cheapest to accept above 0.3, attacked above 0.7; accepting above 0.7 costs 1/3 and 2/3."""
    cases = {"clean": ([0.9, 0.8, 0.3], [1, 1, 0]), "attacked": ([0.6, 0.8, 0.7], [1, 1, 0])}
    costs = Costs(wrong_accepted=9, deferred=1)
    assert least_cost_threshold(*cases["clean"], costs)[0] == 0.3
    found = worst_case_threshold(cases, costs)
    assert (found.threshold, found.cost, found.case) == (0.7, 2 / 3, "attacked")
    assert found.costs == {"clean": 1 / 3, "attacked": 2 / 3}


def test_one_case_is_the_least_cost_threshold() -> None:
    def holds(row) -> None:
        found = worst_case_threshold({"only": row}, COSTS)
        assert (found.threshold, found.cost) == least_cost_threshold(*row, COSTS)

    for_all(holds, columns())


def draw_cases() -> st.SearchStrategy:
    """Three attacks on the same images of three classes, ties and edges among their confidences."""
    number = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
    row = st.tuples(st.integers(0, 2), *[st.tuples(number, st.integers(0, 1))] * 3)
    return st.lists(row, min_size=1, max_size=25)


def check_worst_case(subject) -> None:
    mild = Costs(3, 1, classes={2: Costs(4, 2)})

    def holds(rows) -> None:
        labels = np.array([row[0] for row in rows])
        cases = {
            str(k): (np.array([row[k][0] for row in rows]), np.array([row[k][1] for row in rows])) for k in (1, 2, 3)
        }
        found = subject(cases, mild, labels)
        tried = {0.0, *np.linspace(0, 1, 41).tolist()}.union(*(set(c.tolist()) for c, _ in cases.values()))
        worst = {t: max(cost_by_loop(c, h, t, mild, labels) for c, h in cases.values()) for t in tried}
        assert found.cost == pytest.approx(min(worst.values()), abs=1e-9)
        assert worst[found.threshold] == pytest.approx(found.cost, abs=1e-9)
        assert found.costs[found.case] == found.cost == max(found.costs.values())

    for_all(holds, draw_cases())


def of_the_average(cases, costs, labels) -> WorstCase:
    """The broken twin: the threshold that is best on average, not in the worst case."""
    pooled = [np.concatenate(parts) for parts in zip(*cases.values(), strict=True)]
    at, _ = least_cost_threshold(*pooled, costs, np.tile(labels, len(cases)))
    found = {name: expected_cost(c, h, at, costs, labels) for name, (c, h) in cases.items()}
    worst = max(found, key=lambda name: found[name])
    return WorstCase(at, found[worst], worst, found)


def test_worst_case_agrees_with_trying_every_threshold_and_the_check_can_fail() -> None:
    check_worst_case(worst_case_threshold)
    with pytest.raises(AssertionError):
        check_worst_case(of_the_average)


def test_tables_and_costs_agree_with_loops() -> None:
    def holds(row, fixed: float) -> None:
        c, h = row
        labels = np.arange(len(c)) % 3
        at = np.array([fixed, float(c[0]), 0.0, 1.0])
        table = deferral(c, h, at, costs=BY_CLASS, labels=labels)
        for k, t in enumerate(at):
            point = operating_point(c, h, t)
            assert (table.accepted_right[k], table.accepted_wrong[k], table.deferred[k]) == pytest.approx(
                (point.accepted_right, point.accepted_wrong, point.deferred)
            )
            expected = cost_by_loop(c, h, t, BY_CLASS, labels)
            assert table.cost[k] == pytest.approx(expected)
            assert expected_cost(c, h, t, BY_CLASS, labels) == pytest.approx(expected)

    for_all(holds, columns(), st.sampled_from([0.0, 0.2, 0.5, 1.0]))


def test_a_single_case_and_single_precision() -> None:
    assert deferral([1.0], [0], [1.0, 0.5], costs=COSTS).cost.tolist() == [1, 10]
    assert worst_case_threshold({"clean": ([0.0], [1])}, COSTS).threshold == 0.0
    single = np.float32(0.1)
    assert mean_costs([single], [1], [float(single), 0.0], COSTS).tolist() == [1, 0.5]


def test_costs_can_be_resampled() -> None:
    found = bootstrap(lambda c, h: expected_cost(c, h, 0.7, COSTS), CONFIDENCE, CORRECT, resamples=50)
    assert found.low <= found.value == 3.0 <= found.high


def test_refuses_nonsense() -> None:
    with pytest.raises(InputError, match="at least one case, got none"):
        worst_case_threshold({}, COSTS)
    with pytest.raises(InputError, match="worst_case_threshold: pgd: confidence must be in"):
        worst_case_threshold({"pgd": ([2.0], [1])}, COSTS)
    with pytest.raises(InputError, match="labels must be given where costs differ"):
        expected_cost([0.5], [1], 0.5, BY_CLASS)
    with pytest.raises(InputError, match="confidence and labels must have the same length, got 2 and 1"):
        mean_costs([0.5, 0.6], [1, 1], [0.5], BY_CLASS, [0])
    with pytest.raises(InputError, match=r"deferral: thresholds must be in \[0, 1\], got 90"):
        deferral([0.5], [1], [90])
    with pytest.raises(InputError, match="must not name classes, got some for class 3"):
        Costs(1, 1, classes={3: BY_CLASS})
