"""The success-fail curve and its bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from metric_reference import columns, for_all

from poise.errors import InputError
from poise.metrics import SuccessFail, success_fail

CLEAN = ([0.9, 0.8, 0.6, 0.4], [1, 1, 0, 1])
ADV = ([0.95, 0.7, 0.45, 0.3], [0, 1, 0, 1])
WRONG = [0.95, 0.3, 0.45, 0.25]


def at(t: float, **options) -> SuccessFail:
    return success_fail(*CLEAN, *ADV, thresholds=[t], **options)


@pytest.mark.parametrize(
    ("t", "success", "failure"),
    [(0.9, 0, 0.25), (0.75, 0.5, 0.25), (0.5, 0.5, 0.25), (0.42, 0.5, 0.5), (0.2, 0.75, 0.5)],
)
def test_hand_worked_vector(t: float, success: float, failure: float) -> None:
    curve = at(t)
    assert (curve.success[0], curve.failure[0]) == (success, failure)


def test_hand_worked_coverage_and_bounds() -> None:
    assert at(0.5).adv_coverage[0] == 0.5
    low = at(0.2, adv_wrong_confidence=WRONG)
    assert (low.adv_coverage[0], low.upper_coverage[0], low.upper_cleverhans[0]) == (1.0, 1.0, 0.75)
    assert low.upper_wrong[0] == 1.0
    assert at(0.28, adv_wrong_confidence=WRONG).upper_wrong[0] == 0.75
    assert success_fail([0.9], [1], [0.5], [1], thresholds=[0.4]).upper_cleverhans[0] == 1


def test_accuracy_at_zero_coverage_is_one() -> None:
    curve = success_fail(*CLEAN, *ADV)
    assert curve.clean_coverage[0] == 0
    assert curve.accuracy[0] == 1
    assert curve.accuracy[-1] == 0.75
    assert at(0.5).accuracy[0] == pytest.approx(2 / 3)


def test_the_threshold_is_strict() -> None:
    assert at(0.95).failure[0] == 0
    assert at(np.nextafter(0.95, 0)).failure[0] == 0.25


def test_default_thresholds_are_the_distinct_confidences_one_half_and_full_coverage() -> None:
    curve = success_fail([0.9, 0.9], [1, 0], [0.9, 0.3], [1, 0])
    assert curve.threshold.tolist() == [0.9, 0.5, 0.3, 0.0]
    assert curve.solid.tolist() == [True, True, False, False]
    with_zero = success_fail([0.0], [1], [0.0], [0])
    assert (with_zero.success[-1], with_zero.failure[-1]) == (1, 1)


def test_the_papers_counterexample_breaks_cleverhans_bound_only() -> None:
    # MaxConfidence returns (.8 right, .2 wrong); an optimal attacker has (.1 right, .11 wrong), which fails at t = .105
    curve = success_fail([0.9], [1], [0.8], [1], adv_wrong_confidence=[0.2], thresholds=[0.105])
    optimum = 1.0
    assert curve.upper_cleverhans[0] == 0 < optimum
    assert curve.upper_wrong[0] >= optimum
    assert curve.upper_coverage[0] >= optimum


def test_an_attack_that_bounds_nothing_has_no_bounds() -> None:
    curve = success_fail(*CLEAN, *ADV, adv_wrong_confidence=WRONG, max_confidence=False)
    assert not curve.solid.any()
    for bound in (curve.upper_coverage, curve.upper_wrong, curve.upper_cleverhans):
        assert np.isnan(bound).all()
    assert np.isnan(success_fail(*CLEAN, *ADV).upper_wrong).all()


def test_staircase_moves_right_then_up() -> None:
    curve = success_fail(*CLEAN, *ADV)
    x, y = curve.staircase()
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 0.5, 0.75)
    for i in range(0, len(x) - 1, 2):
        assert y[i + 1] == y[i]
        assert x[i + 2] == x[i + 1]
    # the corner between t = .95 (0, 0) and t = .9 (.25, 0) and t = .8 (.25, .25)
    points = list(zip(x.tolist(), y.tolist(), strict=True))
    assert points.index((0.25, 0)) < points.index((0.25, 0.25))
    assert curve.staircase(curve.upper_coverage)[0][-1] == 1.0


def rows() -> st.SearchStrategy:
    return st.tuples(columns(), columns())


def check_curve(build) -> None:
    """Ends, monotony, order of the bounds, and agreement with counting row by row."""

    def holds(pair) -> None:
        (c, h), (a, g) = pair
        wrong = np.where(g == 1, np.minimum(a, 1 - a), a)
        curve = build(c, h, a, g, adv_wrong_confidence=wrong)
        assert (curve.success[0], curve.failure[0]) == (0, 0)
        assert curve.success[-1] == pytest.approx(h.mean())
        assert curve.failure[-1] == pytest.approx(1 - g.mean())
        for line in (curve.success, curve.failure, curve.upper_wrong, curve.upper_coverage, -curve.threshold):
            assert (np.diff(line) >= 0).all()
        assert (curve.failure <= curve.upper_wrong).all()
        assert (curve.upper_wrong <= curve.upper_coverage).all()
        assert (curve.upper_wrong[curve.solid] == curve.failure[curve.solid]).all()
        for i, t in enumerate(curve.threshold):
            assert curve.success[i] == pytest.approx(
                sum(ci > t and hi == 1 for ci, hi in zip(c, h, strict=True)) / len(c)
            )
            assert curve.failure[i] == pytest.approx(
                sum(ai > t and gi == 0 for ai, gi in zip(a, g, strict=True)) / len(a)
            )

    for_all(holds, rows())


def without_full_coverage(*args, **options) -> SuccessFail:
    """cleverhans' end point."""
    curve = success_fail(*args, **options)
    return SuccessFail(*(getattr(curve, name)[:-1] for name in curve.__dataclass_fields__))


def not_strict(c, h, a, g, **options) -> SuccessFail:
    shifted = success_fail(np.minimum(np.nextafter(c, 2), 1), h, np.minimum(np.nextafter(a, 2), 1), g, **options)
    return success_fail(c, h, a, g, thresholds=np.clip(shifted.threshold - 0.01, 0, 1), **options)


@pytest.mark.parametrize("broken", [without_full_coverage, not_strict])
def test_properties_hold_and_can_fail(broken) -> None:
    check_curve(success_fail)
    with pytest.raises(AssertionError):
        check_curve(broken)


def test_shape_survives_an_increasing_transform() -> None:
    def same(pair) -> None:
        (c, h), (a, g) = pair
        # above 1/2 on both sides, so that the split at 1/2 adds no point; a quarter keeps order and ties exactly
        before = success_fail(0.5 + c / 4, h, 0.5 + a / 4, g)
        after = success_fail(0.5 + c / 2, h, 0.5 + a / 2, g)
        assert before.success.tolist() == after.success.tolist()
        assert before.failure.tolist() == after.failure.tolist()

    grid = st.lists(st.tuples(st.integers(1, 16), st.integers(0, 1)), min_size=1, max_size=20)
    table = grid.map(lambda r: (np.array([c / 16 for c, _ in r]), np.array([h for _, h in r])))
    for_all(same, st.tuples(table, table))


def test_refuses_nonsense() -> None:
    with pytest.raises(InputError, match="clean: confidence and correct must have the same length, got 1 and 2"):
        success_fail([0.5], [1, 0], [0.5], [1])
    with pytest.raises(InputError, match=r"in correct ones, got 0.9 beside 0.7 in row 1"):
        at(0.5, adv_wrong_confidence=[0.95, 0.9, 0.45, 0.25])
    with pytest.raises(InputError, match=r"got 0.1 beside 0.95 in row 0"):
        at(0.5, adv_wrong_confidence=[0.1, 0.3, 0.45, 0.25])
    with pytest.raises(InputError, match=r"thresholds must be in \[0, 1\], got 2"):
        at(2)
