"""Bootstrap intervals: right limits, the same on every path, and coverage."""

from __future__ import annotations

import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
from metric_reference import FINISHED, P4, QUERIES, Y4, random_columns, random_probabilities

import poise.metrics as m
from poise.errors import InputError
from poise.metrics import resampling
from poise.metrics.resampling import STATISTICS

C, H = random_columns(60, 0)
TIED = np.round(C, 1)
P, Y = random_probabilities(30, 3, seed=2)
Q = np.random.default_rng(4).integers(1, 20, 25)
DONE = (np.arange(25) % 3 == 0).astype(int)
COSTS = m.Costs(wrong_accepted=5, deferred=1)

# every metric with a vectorised twin, on columns with ties and with rare resamples where it is undefined
CASES = {
    m.mean: [(C,), (C[:4], [1, 0, 0, 0])],
    m.average_bin_error: [(C, H), (TIED, H)],
    m.classwise_ece: [(P, Y), (P4, Y4)],
    m.ece: [(C, H), (TIED, H)],
    m.mce: [(C, H), (TIED, H)],
    m.auroc: [(C, H), (TIED, H), ([0.1, 0.2, 0.2, 0.3], [0, 1, 0, 1])],
    m.detection_accuracy: [(C, H), (TIED, H), ([0.1, 0.2, 0.2, 0.3], [0, 1, 0, 1])],
    m.accuracy_at_threshold: [(C, H), (TIED, H)],
    m.false_positive_rate: [(C, H), (TIED, H), ([0.1, 0.2, 0.2, 0.3], [0, 1, 0, 1])],
    m.separation: [(np.column_stack([C, TIED]),), (np.column_stack([C, C[::-1], TIED]),)],
    m.adaptive_ece: [(C, H), (TIED, H)],
    m.debiased_ece: [(C, H), (TIED, H)],
    m.ks_error: [(C, H), (TIED, H)],
    partial(m.expected_cost, threshold=0.5, costs=COSTS): [(C, H), (TIED, H)],
    partial(m.operating_shares, threshold=0.5): [(C, H), (TIED, H)],
    m.brier: [(P, Y)],
    m.nll: [(P, Y)],
    m.top_label_brier: [(C, H)],
    m.mean_all: [(Q, DONE), (QUERIES, FINISHED)],
    m.mean_success: [(Q, DONE), (QUERIES, FINISHED)],
    m.median_success: [(Q, DONE), (QUERIES, FINISHED)],
    m.success_sum_over_all: [(Q, DONE), (QUERIES, FINISHED)],
    m.aurc: [(C, H), (TIED, H)],
    m.smooth_ece: [(C[:20], H[:20])],
}


def name(metric) -> str:
    return getattr(metric, "func", metric).__name__


def test_the_table_covers_every_vectorised_metric() -> None:
    assert {getattr(metric, "func", metric) for metric in CASES} == set(STATISTICS)


def check_vectorised(metric, columns, resamples: int = 40) -> None:
    """All resamples at once give what one after another gives."""
    fast = m.bootstrap(metric, *columns, resamples=resamples, seed=3)
    slow = m.bootstrap(lambda *rows: metric(*rows), *columns, resamples=resamples, seed=3)
    for field in ("value", "low", "high"):
        assert getattr(fast, field) == pytest.approx(getattr(slow, field), abs=1e-9, nan_ok=True)
    assert fast.resamples == slow.resamples


@pytest.mark.parametrize("metric", CASES, ids=name)
def test_vectorised_metrics_agree_with_the_loop(metric) -> None:
    for columns in CASES[metric]:
        check_vectorised(metric, columns)


@pytest.mark.parametrize("metric", [m.ece, m.ks_error, m.mean], ids=name)
def test_the_agreement_check_can_fail(metric, monkeypatch: pytest.MonkeyPatch) -> None:
    def ignores_counts(*columns):
        return lambda counts: STATISTICS[metric](*columns)(np.ones_like(counts))

    monkeypatch.setattr(resampling, "STATISTICS", {metric: ignores_counts})
    with pytest.raises(AssertionError):
        check_vectorised(metric, CASES[metric][0])


def drawn(metric, *columns, **options):
    """The interval, and the value of every resample, seen by a metric that takes notes."""
    notes = []

    def noting(*rows):
        notes.append(metric(*rows))
        return notes[-1]

    interval = m.bootstrap(noting, *columns, **options)
    return interval, np.array(notes[1 : 1 + options.get("resamples", 1000)])


def test_percentile_limits_are_quantiles_of_the_resamples() -> None:
    interval, values = drawn(m.ece, C, H, resamples=200, level=0.9)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(values, [0.05, 0.95])))
    assert (interval.value, interval.level, interval.resamples) == (m.ece(C, H), 0.9, 200)


@pytest.mark.parametrize("statistic", [np.mean, np.var, np.median], ids=lambda s: s.__name__)
def test_bca_agrees_with_scipy_on_the_same_resamples(statistic) -> None:
    x = np.random.default_rng(1).exponential(size=50)
    interval, values = drawn(lambda v: float(statistic(v)), x, resamples=400, method="bca")
    theirs = scipy.stats.bootstrap(
        (x,), statistic, n_resamples=0, method="BCa", bootstrap_result=SimpleNamespace(bootstrap_distribution=values)
    ).confidence_interval
    assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)


def test_bca_of_two_samples_agrees_with_scipy() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.exponential(size=30), rng.normal(size=20)

    def difference(a, b, axis=-1):
        return np.mean(a, axis=axis) - np.mean(b, axis=axis)

    interval, values = drawn(lambda a, b: float(difference(a, b)), x, y, paired=False, resamples=300, method="bca")
    theirs = scipy.stats.bootstrap(
        (x, y), difference, n_resamples=0, method="BCa", bootstrap_result=SimpleNamespace(bootstrap_distribution=values)
    ).confidence_interval
    assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)


def coverage(level: float, method: str) -> float:
    """How often a 95 % interval for a mean of 60 draws contains the truth."""
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(300):
        interval = m.bootstrap(m.mean, rng.random(60) ** 3, resamples=300, level=level, seed=i, method=method)
        hits += interval.low <= 0.25 <= interval.high
    return hits / 300


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_cover_as_often_as_they_say(method: str) -> None:
    assert 0.90 <= coverage(0.95, method) <= 0.99
    assert not 0.90 <= coverage(0.7, method) <= 0.99  # the check can fail


def test_paired_columns_keep_their_rows_together() -> None:
    x = np.random.default_rng(5).random(100)

    def difference(a, b):
        return float(np.mean(a - b)) if len(a) == len(b) else 0.0

    together = m.bootstrap(difference, x, x + 0.1, paired=True)
    assert (together.low, together.high) == pytest.approx((0 - 0.1, -0.1))
    apart = m.bootstrap(difference, x, x + 0.1, paired=False)
    assert apart.high - apart.low > 0.05


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_a_change_is_resampled_by_the_same_rows(method: str) -> None:
    after = np.random.default_rng(6).random(60)
    plan = m.Bootstrap(seed=4, method=method, resamples=200)
    change = plan.change(m.ece, (C, H), (after, H))
    by_hand = plan.interval(lambda b, a, h: m.ece(a, h) - m.ece(b, h), C, after, H)
    assert (change.value, change.low, change.high) == pytest.approx(
        (by_hand.value, by_hand.low, by_hand.high), abs=1e-9
    )
    shares = plan.change(partial(m.operating_shares, threshold=0.5), (C, H), (after, H))
    assert shares.low.shape == (3,)
    assert shares.value.sum() == pytest.approx(0, abs=1e-12)


def test_a_change_needs_the_same_samples() -> None:
    with pytest.raises(InputError, match="must have the same length, got 60 and 59"):
        m.Bootstrap().change(m.ece, (C, H), (C[1:], H[1:]))
    with pytest.raises(InputError, match="at least one column"):
        m.Bootstrap().change(m.mean, (), ())


def test_groups_keep_their_columns_together_only() -> None:
    seen = []

    def note(a, b, c, d):
        seen.append((a == b).all() and (c == d).all() and a.shape == (5,) and c.shape == (7,))
        return 0.0

    m.bootstrap(note, np.arange(5), np.arange(5), np.arange(7), np.arange(7), paired=(0, 0, 1, 1), resamples=30)
    assert len(seen) == 31
    assert all(seen)


def test_success_fail_of_two_sets_as_a_curve() -> None:
    grid = [0.9, 0.5, 0.1]
    interval = m.bootstrap(
        lambda c, h, a, g: m.success_fail(c, h, a, g, thresholds=grid).failure,
        C,
        H,
        *random_columns(40, 9),
        paired=(0, 0, 1, 1),
    )
    assert interval.value.shape == interval.low.shape == (3,)
    assert (interval.low <= interval.value).all()
    assert (interval.value <= interval.high).all()


def test_curves_have_an_interval_per_entry() -> None:
    interval = m.bootstrap(partial(m.operating_shares, threshold=0.5), C, H)
    right = m.bootstrap(m.mean, (C > 0.5) & (H == 1))
    assert (interval.low[0], interval.high[0]) == pytest.approx((right.low, right.high))


def test_undefined_resamples_are_left_out_and_counted() -> None:
    interval = m.bootstrap(m.mean_success, [3, 50, 50], [1, 0, 0])
    assert (interval.value, interval.low, interval.high) == (3, 3, 3)
    assert 600 < interval.resamples < 800  # 1 - (2/3)^3 = 0.704 of them have the success
    never = m.bootstrap(m.mean_success, [50], [0])
    assert np.isnan([never.value, never.low, never.high]).all()
    assert never.resamples == 0


@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize(
    "metric", [m.ece, m.ks_error, m.smooth_ece, lambda c, h: m.ece(c, h)], ids=["ece", "ks", "smooth", "loop"]
)
def test_one_row(metric, method: str) -> None:
    interval = m.bootstrap(metric, [0.3], [1], resamples=20, method=method)
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.7, 0.7, 0.7))


def test_same_seed_same_interval_and_another_seed_another() -> None:
    assert m.bootstrap(m.ece, C, H, seed=7) == m.bootstrap(m.ece, C, H, seed=7)
    assert m.bootstrap(m.ece, C, H, seed=7) != m.bootstrap(m.ece, C, H, seed=8)


def test_global_random_state_is_left_alone() -> None:
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    m.bootstrap(m.ece, C, H)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


@pytest.mark.parametrize("keep", [0, 2**23])
@pytest.mark.parametrize("block", [60, 1000, 2**22])
def test_blocks_do_not_show(block: int, keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [m.bootstrap(m.ece, C, H, method="bca"), m.bootstrap(lambda c: float(c.mean()), C, resamples=50)]
    monkeypatch.setattr(resampling, "_BLOCK", block)
    monkeypatch.setattr(resampling, "_KEEP", keep)
    plan = m.Bootstrap(method="bca")
    for _ in range(2):
        ours = plan.interval(m.ece, C, H)
        assert (ours.low, ours.high) == pytest.approx((expected[0].low, expected[0].high), abs=1e-12)
    assert m.bootstrap(lambda c: float(c.mean()), C, resamples=50) == expected[1]


def test_kept_resamples_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "_KEEP", 3000)
    plan = m.Bootstrap(resamples=100)
    for n in range(5, 30):
        plan.interval(m.mean, np.arange(n))
        assert 0 < sum(kept.size for kept in plan._kept.values()) <= 3000


def test_one_plan_serves_many_metrics_and_samples() -> None:
    plan = m.Bootstrap(seed=2)
    a = plan.interval(m.ece, C, H)
    plan.interval(m.mean, C[:10])
    plan.interval(lambda x, y: float(np.mean(x) - np.mean(y)), C, H, paired=False)
    assert a == plan.interval(m.ece, C, H) == m.bootstrap(m.ece, C, H, seed=2)


def test_speed() -> None:
    c, h = random_columns(1000, 1)
    start = time.perf_counter()
    m.bootstrap(m.ece, c, h, resamples=1000)
    assert time.perf_counter() - start < 1  # about 0.01 s


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: m.bootstrap(m.ece), "at least one column must be given, got none"),
        (lambda: m.bootstrap(m.ece, [], []), r"at least one row, got shape \(0,\)"),
        (lambda: m.bootstrap(m.ece, [0.5], [1, 0]), "must have the same length, got 1 and 2"),
        (lambda: m.bootstrap(m.ece, [0.5], [2]), "correct must be 0 or 1, got 2"),
        (lambda: m.bootstrap(m.ece, [0.5], [1], resamples=0), "resamples must be a whole number of at least 1, got 0"),
        (lambda: m.bootstrap(m.ece, [0.5], [1], level=95), r"level must be in \(0, 1\), got 95"),
        (lambda: m.bootstrap(m.ece, [0.5], [1], seed=-1), "seed must be at least 0, got -1"),
        (lambda: m.bootstrap(m.ece, [0.5], [1], method="percentil"), "did you mean percentile"),
        (lambda: m.bootstrap(m.ece, [0.5], [1], paired=(0,)), "a number for each of 2 columns"),
        (lambda: m.bootstrap(np.unique, C), "always return the same shape"),
    ],
)
def test_refuses(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
