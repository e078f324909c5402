"""Bootstrap intervals: one set of resamples for every metric, and one matrix product per metric where it can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Generic, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from poise.errors import InputError, one_of
from poise.metrics import (
    averages,
    binned,
    detection,
    equal_mass,
    ks,
    operating,
    proper,
    query_counts,
    selective,
    smooth,
)
from poise.metrics._columns import FloatArray, Statistic, positive_integer
from poise.metrics._limits import METHODS, limits

Value = TypeVar("Value", float, FloatArray)
Metric = Callable[..., Value]
"""A function of columns that returns a number or a curve (m,)."""

Counts = dict[int, FloatArray]
"""For each group of columns, how often each of its n rows occurs in each of b resamples: (b, n)."""

Run = Callable[[Counts], FloatArray]
"""A metric of fixed columns as a function of counts: values (b,) or curves (b, m)."""

_BLOCK = 2**22  # counts held at once: 32 MiB
_KEEP = 2**23  # counts kept for the next metric: 64 MiB

STATISTICS: Mapping[Callable[..., Any], Callable[..., Statistic]] = MappingProxyType(
    {
        averages.mean: averages.mean_statistic,
        binned.average_bin_error: binned.average_bin_error_statistic,
        binned.classwise_ece: binned.classwise_ece_statistic,
        binned.ece: binned.ece_statistic,
        binned.mce: binned.mce_statistic,
        detection.accuracy_at_threshold: detection.accuracy_at_threshold_statistic,
        detection.auroc: detection.auroc_statistic,
        detection.detection_accuracy: detection.detection_accuracy_statistic,
        detection.false_positive_rate: detection.false_positive_rate_statistic,
        detection.separation: detection.separation_statistic,
        equal_mass.adaptive_ece: equal_mass.adaptive_ece_statistic,
        equal_mass.debiased_ece: equal_mass.debiased_ece_statistic,
        ks.ks_error: ks.ks_error_statistic,
        operating.expected_cost: operating.expected_cost_statistic,
        operating.operating_shares: operating.operating_shares_statistic,
        proper.brier: proper.brier_statistic,
        proper.nll: proper.nll_statistic,
        proper.top_label_brier: proper.top_label_brier_statistic,
        query_counts.mean_all: query_counts.mean_all_statistic,
        query_counts.mean_success: query_counts.mean_success_statistic,
        query_counts.median_success: query_counts.median_success_statistic,
        query_counts.success_sum_over_all: query_counts.success_sum_over_all_statistic,
        selective.aurc: selective.aurc_statistic,
        smooth.smooth_ece: smooth.smooth_ece_statistic,
    }
)
"""The metrics that take all resamples at once; any other callable is called once per resample."""


@dataclass(frozen=True, slots=True)
class Interval(Generic[Value]):
    """A metric with its confidence interval.

    Args:
        value: the metric of the rows themselves; a number or a curve (m,).
        low: lower limit; NaN where the value is undefined, or was in every resample.
        high: upper limit.
        level: nominal coverage, such as 0.95.
        resamples: from how many resamples the limits come: those where the metric is defined (of a curve: its entry
            that is defined least often).

    >>> from poise.metrics import bootstrap, mean
    >>> found = bootstrap(mean, [0.0, 1.0] * 50, resamples=200)
    >>> found.value, found.low < 0.5 < found.high
    (0.5, True)
    """

    value: Value
    low: Value
    high: Value
    level: float
    resamples: int


@dataclass(frozen=True)
class Bootstrap:
    """Resampling of rows with a seed; keeps its resamples, so that further metrics of as many rows cost little.

    Args:
        resamples: number of resamples, at least 1.
        level: nominal coverage of the intervals, in (0, 1).
        seed: at least 0. Resamples are a function of it, of the group's number and of its number of rows.
        method: `percentile` (quantiles of the resampled values) or `bca` (Efron 1987: corrected for median bias and
            skewness, with a jackknife). Binned calibration errors are biased upwards by sampling, and resampling adds
            that bias a second time: near 0 a percentile interval lies too high and may not contain the value itself.

    Raises:
        InputError: resamples, level, seed or method is not so.

    >>> from poise.metrics import ece, ks_error
    >>> confidence, correct = [0.9, 0.8, 0.7, 0.6] * 25, [1, 1, 1, 0] * 25
    >>> plan = Bootstrap(seed=1)
    >>> for metric in (ece, ks_error):
    ...     i = plan.interval(metric, confidence, correct)
    ...     print(f"{metric.__name__} {i.value:.2f} [{i.low:.2f}, {i.high:.2f}]")
    ece 0.30 [0.26, 0.34]
    ks_error 0.15 [0.10, 0.20]
    """

    resamples: int = 1000
    level: float = 0.95
    seed: int = 0
    method: str = "percentile"
    _kept: dict[tuple[int, int], FloatArray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        positive_integer(self.resamples, "Bootstrap: resamples")
        if not 0 < self.level < 1:
            raise InputError(f"Bootstrap: level must be in (0, 1), got {self.level}")
        if self.seed < 0:
            raise InputError(f"Bootstrap: seed must be at least 0, got {self.seed}")
        if self.method not in METHODS:
            raise one_of("Bootstrap: method", self.method, list(METHODS))

    def interval(
        self, metric: Metric[Value], *columns: ArrayLike, paired: bool | Sequence[int] = True
    ) -> Interval[Value]:
        """A metric of some columns with its interval.

        Args:
            metric: a function of the columns, or a `functools.partial` of one. Metrics of this package that have a
                place in `STATISTICS` take all resamples at once; any other is called once per resample, and a
                resample that it refuses with `InputError` or answers with NaN counts as undefined.
            columns: arrays (n, ...), one row per sample.
            paired: True: the columns describe the same n samples, and every resample takes the same rows of all of
                them, as for the clean and attacked confidences of the same images. False: each column is a sample of
                its own. Or one number per column, equal for columns that belong together: (0, 0, 1, 1).

        Returns:
            The value and its limits.

        Raises:
            InputError: no column, no rows, columns that belong together differ in length, or the metric refuses them.
        """
        data = [np.asarray(column) for column in columns]
        groups = _groups(data, paired)
        value = np.asarray(metric(*data), dtype=np.float64)
        return cast("Interval[Value]", self._around(value, _runner(metric, data, groups, value.shape), data, groups))

    def change(self, metric: Metric[Value], before: Sequence[ArrayLike], after: Sequence[ArrayLike]) -> Interval[Value]:
        """metric(*after) - metric(*before) with its interval, both on the same rows in every resample.

        Args:
            metric: as in `interval`.
            before: its columns before the attack, each (n, ...).
            after: its columns after the attack, of the same n samples in the same order.

        Returns:
            The change and its limits. Narrower than the two intervals suggest: what the samples share cancels.

        Raises:
            InputError: as `interval`.

        >>> from poise.metrics import mean
        >>> i = Bootstrap().change(mean, before=[[0.9, 0.5, 0.7]], after=[[0.8, 0.4, 0.6]])
        >>> round(i.value, 3), round(i.low, 3), round(i.high, 3)
        (-0.1, -0.1, -0.1)
        """
        old: list[NDArray[Any]] = [np.asarray(column) for column in before]
        new: list[NDArray[Any]] = [np.asarray(column) for column in after]
        groups = _groups([*old, *new], paired=True)
        value = np.asarray(metric(*new), dtype=np.float64) - np.asarray(metric(*old), dtype=np.float64)
        first, second = (_runner(metric, data, groups, value.shape) for data in (old, new))

        def run(counts: Counts) -> FloatArray:
            return second(counts) - first(counts)

        return cast("Interval[Value]", self._around(np.asarray(value), run, [*old, *new], groups))

    def _around(self, value: FloatArray, run: Run, data: list[NDArray[Any]], groups: list[int]) -> object:
        """The interval of a value whose resamples `run` computes."""
        sizes = {group: len(column) for group, column in zip(groups, data, strict=True)}
        draws = np.concatenate([run(counts) for counts in self._blocks(sizes)])
        low, high = limits(value, draws, self.level, self.method, partial(_leave_one_out, run, sizes))
        used = int(np.isfinite(draws).sum(axis=0).min(initial=self.resamples))
        if value.ndim:
            return Interval(value, low, high, self.level, used)
        return Interval(float(value), float(low), float(high), self.level, used)

    def _blocks(self, sizes: dict[int, int]) -> Iterator[Counts]:
        """The resamples of all groups, as many at a time as memory allows."""
        step = max(1, _BLOCK // max(sizes.values()))
        each = [self._resamples(group, n, step) for group, n in sizes.items()]
        for blocks in zip(*each, strict=True):
            yield dict(zip(sizes, blocks, strict=True))

    def _resamples(self, group: int, n: int, step: int) -> Iterator[FloatArray]:
        """The resamples of one group, `step` at a time; those of few rows are kept for the next metric."""
        stream = np.random.default_rng([self.seed, group, n])
        starts = range(0, self.resamples, step)
        if self.resamples * n > _KEEP:
            for start in starts:
                yield _draw(stream, n, min(step, self.resamples - start))
            return
        known = self._kept.get((group, n))
        if known is None:
            known = _draw(stream, n, self.resamples)
            if known.size + sum(kept.size for kept in self._kept.values()) > _KEEP:
                self._kept.clear()
            self._kept[group, n] = known
        for start in starts:
            yield known[start : start + step]


def bootstrap(
    metric: Metric[Value],
    *columns: ArrayLike,
    paired: bool | Sequence[int] = True,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    method: str = "percentile",
) -> Interval[Value]:
    """A metric with a bootstrap confidence interval; see `Bootstrap` for the arguments, and to share resamples.

    >>> from poise.metrics import ece
    >>> change = lambda before, after, correct: ece(after, correct) - ece(before, correct)
    >>> before, after, correct = [0.9, 0.8, 0.7] * 30, [0.4, 0.4, 0.5] * 30, [1, 1, 0] * 30
    >>> i = bootstrap(change, before, after, correct, paired=True)
    >>> print(f"{i.value:.2f} [{i.low:.2f}, {i.high:.2f}]")
    0.23 [0.17, 0.30]
    """
    plan = Bootstrap(resamples=resamples, level=level, seed=seed, method=method)
    return plan.interval(metric, *columns, paired=paired)


def _draw(stream: np.random.Generator, n: int, rows: int) -> FloatArray:
    """How often each of n rows occurs in each of `rows` resamples of n rows: (rows, n)."""
    picks = stream.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
    counts = np.bincount(picks.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
    counts.flags.writeable = False
    return counts


def _groups(data: list[NDArray[Any]], paired: bool | Sequence[int]) -> list[int]:
    """The group of each column, checked."""
    if not data:
        raise InputError("bootstrap: at least one column must be given, got none")
    together = [0] * len(data) if paired is True else range(len(data)) if paired is False else paired
    groups = [int(group) for group in together]
    if len(groups) != len(data) or min(groups) < 0:
        raise InputError(f"bootstrap: paired must give a number for each of {len(data)} columns, got {paired}")
    sizes: dict[int, int] = {}
    for group, column in zip(groups, data, strict=True):
        if column.ndim == 0 or len(column) == 0:
            raise InputError(f"bootstrap: every column must have at least one row, got shape {column.shape}")
        if sizes.setdefault(group, len(column)) != len(column):
            raise InputError(
                f"bootstrap: columns resampled together must have the same length, got {sizes[group]} and {len(column)}"
            )
    return groups


def _runner(metric: Metric[Value], data: list[NDArray[Any]], groups: list[int], shape: tuple[int, ...]) -> Run:
    """How to get the values of many resamples: all at once if the metric can, else one after another."""
    base, bound = (metric.func, metric) if isinstance(metric, partial) else (metric, partial(metric))
    known = next((build for name, build in STATISTICS.items() if name is base), None)
    if known is not None and len(set(groups)) == 1:
        statistic = known(*bound.args, *data, **bound.keywords)
        return lambda counts: statistic(counts[groups[0]])

    def one(counts: Counts, b: int) -> FloatArray:
        rows = {group: np.repeat(np.arange(c.shape[1]), c[b].astype(np.intp)) for group, c in counts.items()}
        try:
            value = metric(*(column[rows[group]] for group, column in zip(groups, data, strict=True)))
        except InputError:
            return np.full(shape, np.nan)
        if np.shape(value) != shape:
            raise InputError(f"bootstrap: metric must always return the same shape, got {shape} and {np.shape(value)}")
        return np.asarray(value, dtype=np.float64)

    return lambda counts: np.stack([one(counts, b) for b in range(len(counts[groups[0]]))])


def _leave_one_out(run: Run, sizes: dict[int, int]) -> list[FloatArray]:
    """Values without each row in turn, one array per group; a group of one row has none."""
    values: dict[int, list[FloatArray]] = {}
    for group, n in sizes.items():
        step = max(1, _BLOCK // max(sizes.values()))
        for start in range(0, n if n > 1 else 0, step):
            left_out = np.arange(start, min(start + step, n))
            counts = {other: np.ones((len(left_out), size)) for other, size in sizes.items()}
            counts[group][np.arange(len(left_out)), left_out] = 0
            values.setdefault(group, []).append(run(counts))
    return [np.concatenate(blocks) for blocks in values.values()]
