"""Metrics of a stream of answers: any number of rows in the memory of a fine grid, with bootstrap intervals.

What is kept of the rows is, for each cell of a grid on [0, 1] and each of right and wrong, how many there were and the
sum of their confidences. Every bin of the ECE is a whole number of cells, and every cell is right-closed, as the bins
and "covered iff confidence > t" are. So the ECE, and the success-fail curve at the edges of cells, are exact; the KS
error is exact but for what happens inside a cell, for which there is a bound (`Streamed.ks_slack`).

A bootstrap draws how many rows of each cell and kind a resample has: a multinomial draw, which is what drawing n rows
with replacement does to these numbers, exactly. Only the confidences of the rows drawn from a cell are replaced by
their mean in that cell, right and wrong apart. With cells of width w this moves the ECE of no resample by more than w;
its variance lacks at most w^2 / (4 n), a share of about w^2 of what it is. The cost of a resample is that of the cells
that are not empty, however many rows there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from poise.errors import InputError
from poise.metrics._columns import AnyFloatArray, FloatArray, IntArray, answers, positive_integer, unit
from poise.metrics._limits import limits
from poise.metrics.resampling import Bootstrap, Interval
from poise.metrics.success_fail_curve import BELOW_ZERO, SuccessFail

_BLOCK = 2**20  # counts of resamples held at once: 8 MiB, and a few times that while they are summed


@dataclass(frozen=True, slots=True)
class StreamedIntervals:
    """What `Streamed.intervals` returns, all from the same resamples.

    Args:
        ece: expected calibration error.
        ks_error: Kolmogorov-Smirnov calibration error, evaluated at the edges of cells.
        threshold: (m,) thresholds of the two curves, from the highest to the lowest, on edges of cells.
        right: (m,) share of rows that are covered and right: the success rate of a success-fail curve.
        wrong: (m,) share of rows that are covered and wrong: its failure rate. Both intervals hold at each threshold
            apart, and not for the whole curve at once.

    >>> from poise.metrics import Streamed
    >>> found = Streamed().add([0.95, 0.9, 0.3] * 20, [1, 1, 0] * 20).intervals(thresholds=[0.8])
    >>> found.right.value.round(3).tolist(), found.ece.low <= found.ece.value <= found.ece.high
    ([0.667], True)
    """

    ece: Interval[float]
    ks_error: Interval[float]
    threshold: FloatArray
    right: Interval[FloatArray]
    wrong: Interval[FloatArray]


@dataclass(frozen=True, slots=True)
class Tally:
    """What a `Streamed` keeps of its rows: numbers that add up over chunks, files and processes.

    Args:
        count: (cells + 1, 2) int64, rows in each cell, wrong and right.
        total: (cells + 1, 2) sums of their confidences.
        low, high: (cells + 1,) lowest and highest confidence in each cell; inf and -inf where there is none.

    >>> Streamed(bins=1, cells=2).add([0.4, 0.9], [0, 1]).tally.count.tolist()
    [[0, 0], [1, 0], [0, 1]]
    """

    count: IntArray
    total: FloatArray
    low: FloatArray
    high: FloatArray


class Streamed:
    """Calibration and coverage of answers that come in chunks; the memory does not grow with the rows.

    For columns that fit in memory and fewer than about a million rows, use `ece`, `ks_error`, `success_fail` and
    `Bootstrap`, which resample the rows themselves and can pair two sets of columns; this class cannot pair: of the
    difference between two streams of the same images it gives no interval.

    Args:
        bins: number M of bins of the ECE, with edges as its `right` convention has them.
        cells: at least so many cells; each bin has an even number of them, so that 1/2 is an edge. Memory is 64 bytes a
            cell, time of a resample up to 0.2 microseconds a cell.

    Raises:
        InputError: bins or cells is not a whole number of at least 1.

    >>> stream = Streamed(bins=5)
    >>> for confidence, correct in (([0.95, 0.92], [1, 1]), ([0.87, 0.81], [1, 0])):
    ...     _ = stream.add(confidence, correct)
    >>> stream.n, round(stream.ece(), 4), round(stream.ks_error(), 4)
    (4, 0.1375, 0.2025)
    """

    def __init__(self, bins: int = 15, *, cells: int = 2**14) -> None:
        self.bins = positive_integer(bins, "Streamed: bins")
        self._per_bin = 2 * -(-positive_integer(cells, "Streamed: cells") // (2 * self.bins))
        cells = self.bins * self._per_bin
        self._edges: AnyFloatArray | None = None  # (cells + 1,) in the type of the first chunk
        # Cell 0 holds confidences of exactly 0, cell i those in (edge i - 1, edge i]; columns: wrong, right.
        self._count: IntArray = np.zeros((cells + 1, 2), dtype=np.int64)
        self._sum: FloatArray = np.zeros((cells + 1, 2))
        self._low: FloatArray = np.full(cells + 1, np.inf)
        self._high: FloatArray = np.full(cells + 1, -np.inf)

    @property
    def n(self) -> int:
        """How many rows were added."""
        return int(self._count.sum())

    @property
    def width(self) -> float:
        """Width of a cell."""
        return 1 / (self.bins * self._per_bin)

    def add(self, confidence: ArrayLike, correct: ArrayLike) -> Self:
        """Adds rows; returns itself.

        Args:
            confidence: (n,) in [0, 1], float64, or float32 in every chunk: edges are compared in that type.
            correct: (n,) in {0, 1}.

        Raises:
            InputError: columns empty, out of range or of different lengths; another type than the first chunk's, or one
                that cannot hold the edges.
        """
        scores, hits = answers(confidence, correct, "Streamed")
        edges = self._grid(scores.dtype)
        cell = np.searchsorted(edges, scores, side="left")
        key, size = 2 * cell + (hits == 1), self._count.size
        self._count += np.bincount(key, minlength=size).reshape(-1, 2)
        self._sum += np.bincount(key, scores.astype(np.float64, copy=False), minlength=size).reshape(-1, 2)
        np.minimum.at(self._low, cell, scores)
        np.maximum.at(self._high, cell, scores)
        return self

    @property
    def tally(self) -> Tally:
        """A copy of what is kept, for `add_tally` of another stream with as many bins and cells."""
        return Tally(self._count.copy(), self._sum.copy(), self._low.copy(), self._high.copy())

    def add_tally(self, other: Tally) -> Self:
        """Adds the rows that another stream kept, of float64 confidences where this one has none yet; returns itself.

        Raises:
            InputError: the other grid has another number of cells.
        """
        if other.count.shape != self._count.shape:
            raise InputError(
                f"Streamed: the other stream must have {len(self._low)} rows of counts, got {len(other.count)}"
            )
        if self._edges is None and other.count.any():
            self._grid(np.dtype(np.float64))
        self._count += other.count
        self._sum += other.total
        np.minimum(self._low, other.low, out=self._low)
        np.maximum(self._high, other.high, out=self._high)
        return self

    def ece(self) -> float:
        """`poise.metrics.ece` of all rows, to rounding.

        Raises:
            InputError: no rows were added.
        """
        gap = self._residuals().sum(axis=1)
        return float(np.abs(np.add.reduceat(gap, self._bin_starts())).sum() / self._rows())

    def ks_error(self) -> float:
        """`poise.metrics.ks_error` of all rows, evaluated at the edges of cells: at most `ks_slack` too small.

        Raises:
            InputError: no rows were added.
        """
        return float(np.abs(np.cumsum(self._residuals().sum(axis=1))).max() / self._rows())

    @property
    def ks_slack(self) -> float:
        """How much larger than `ks_error()` the KS error of the rows can be, at most.

        Inside a cell the running sum cannot rise above what its right rows add, nor fall below what its wrong rows
        take, in whatever order they come. Where all rows of a cell have the same confidence there is no inside.
        """
        gap = self._residuals()
        before = np.cumsum(gap.sum(axis=1)) - gap.sum(axis=1)
        inside = self._low < self._high
        reach = np.maximum(before + gap[:, 1], -(before + gap[:, 0]))[inside]
        return max(0.0, float(reach.max(initial=0.0)) / self._rows() - self.ks_error())

    def intervals(self, plan: Bootstrap | None = None, *, thresholds: ArrayLike = (0.9,)) -> StreamedIntervals:
        """The metrics with percentile intervals, from one set of resamples.

        Args:
            plan: resamples, level and seed; its method must be `percentile`. None: `Bootstrap()`.
            thresholds: (m,) in [0, 1]; each is moved to the nearest edge of a cell, by half a width at most.

        Raises:
            InputError: no rows were added, thresholds out of range, or another method.
        """
        plan = Bootstrap() if plan is None else plan
        if plan.method != "percentile":
            raise InputError(f"Streamed: the method of intervals must be percentile, got {plan.method}")
        n, at = self._rows(), self._nearest(thresholds)
        group, residual = self._groups()
        draws = self._draws(plan, group, residual, at)
        wrong, right = (_above(self._count[:, kind], at) / n for kind in (0, 1))
        return StreamedIntervals(
            _number(self.ece(), draws[0], plan),
            _number(self.ks_error(), draws[1], plan),
            self._thresholds(at),
            _curve(right, draws[2], plan),
            _curve(wrong, draws[3], plan),
        )

    def _draws(self, plan: Bootstrap, group: IntArray, residual: FloatArray, at: IntArray) -> list[FloatArray]:
        """ECE (b,), KS error (b,), covered right (b, m) and covered wrong (b, m) of every resample."""
        n, stream = self._rows(), np.random.default_rng([plan.seed, 0, self._rows()])
        share = self._count.ravel()[group] / n
        share /= share.sum()
        step = max(1, _BLOCK // len(group))
        measured = partial(_measure, group=group, residual=residual, bins=self.bins, per_bin=self._per_bin, at=at, n=n)
        blocks = [
            measured(stream.multinomial(n, share, size=min(step, plan.resamples - start)))
            for start in range(0, plan.resamples, step)
        ]
        return [np.concatenate(parts) for parts in zip(*blocks, strict=True)]

    def _grid(self, kind: np.dtype[np.floating]) -> AnyFloatArray:
        """The edges of cells, in the type of the first chunk."""
        if self._edges is None:
            cells = self.bins * self._per_bin
            if 2.0 ** (np.finfo(kind).nmant + 1) < cells:
                raise InputError(f"Streamed: confidence must be float32 or float64, got {kind} (for {cells} cells)")
            self._edges = np.arange(cells + 1, dtype=kind) / kind.type(cells)
        if self._edges.dtype != kind:
            raise InputError(f"Streamed: confidence must be {self._edges.dtype} as in the first chunk, got {kind}")
        return self._edges

    def _rows(self) -> int:
        if self._edges is None:
            raise InputError("Streamed: at least one row must be added, got none")
        return self.n

    def _residuals(self) -> FloatArray:
        """(cells + 1, 2) sums of correct - confidence, wrong rows and right ones."""
        self._rows()
        residual = -self._sum
        residual[:, 1] += self._count[:, 1]
        return residual

    def _groups(self) -> tuple[IntArray, FloatArray]:
        """The (cell, kind) that hold rows, as 2 cell + kind, and the mean of correct - confidence in each."""
        group = np.flatnonzero(self._count)
        return group, self._residuals().ravel()[group] / self._count.ravel()[group]

    def _bin_starts(self) -> IntArray:
        """The first cell of every bin; confidences of exactly 0 are in the first bin."""
        return np.append(0, 1 + self._per_bin * np.arange(1, self.bins))

    def _nearest(self, thresholds: ArrayLike) -> IntArray:
        """The edges nearest to the thresholds, from the highest to the lowest."""
        wanted = unit(thresholds, "Streamed: thresholds").astype(np.float64)
        return np.rint(np.sort(wanted)[::-1] / self.width).astype(np.int64)

    def _thresholds(self, at: IntArray) -> FloatArray:
        """The value of edges by number; -1 stands for a threshold just below 0, which covers every row."""
        assert self._edges is not None
        return np.where(at < 0, BELOW_ZERO, self._edges[at].astype(np.float64))


def success_fail_streamed(
    clean: Streamed, adv: Streamed, *, max_confidence: bool = True, thresholds: ArrayLike | None = None
) -> SuccessFail:
    """`poise.metrics.success_fail` of two streams, exact at the edges of their cells.

    Args:
        clean: the answers at the clean points. adv: at the attacked points, on a grid of as many cells.
        max_confidence: as in `success_fail`; the bound from the other classes' probabilities (`upper_wrong`) is not
            given, for a stream holds none.
        thresholds: (m,) thresholds, in [0, 1], each moved to the nearest edge. None: every edge that ends a cell with
            rows, 1/2, and one threshold that covers every row.

    Raises:
        InputError: a stream without rows, different grids, thresholds out of range.

    >>> clean, adv = Streamed().add([0.9, 0.6], [1, 0]), Streamed().add([0.8, 0.4], [0, 1])
    >>> curve = success_fail_streamed(clean, adv, thresholds=[0.5, 0.3])
    >>> curve.success.tolist(), curve.failure.tolist()
    ([0.5, 0.5], [0.5, 0.5])
    """
    n, adv_n = clean._rows(), adv._rows()
    if (clean.bins, clean.width) != (adv.bins, adv.width):
        raise InputError(
            f"success_fail_streamed: clean and adv must have the same bins and cells, got {clean.bins} bins of "
            f"{clean._per_bin} cells and {adv.bins} of {adv._per_bin}"
        )
    half, rows = round(0.5 / clean.width), clean._count.sum(axis=1) + adv._count.sum(axis=1)
    last = 0 if rows[0] == 0 else -1
    every = np.unique(np.append(np.flatnonzero(rows), [half, last]))[::-1]
    at = every if thresholds is None else clean._nearest(thresholds)
    failure = _above(adv._count[:, 0], at) / adv_n
    coverage = _above(adv._count.sum(axis=1), at) / adv_n
    threshold = clean._thresholds(at)
    solid, unknown = (at >= half) & max_confidence, np.full(len(at), np.nan)
    low = np.where(np.arange(len(rows)) <= half, adv._count.sum(axis=1), 0)
    high_wrong = np.where(np.arange(len(rows)) > half, adv._count[:, 0], 0)
    return SuccessFail(
        threshold=threshold,
        success=_above(clean._count[:, 1], at) / n,
        failure=failure,
        clean_coverage=_above(clean._count.sum(axis=1), at) / n,
        adv_coverage=coverage,
        solid=solid,
        upper_coverage=np.where(solid, failure, coverage) if max_confidence else unknown,
        upper_wrong=unknown,
        upper_cleverhans=(_above(low, at) + _above(high_wrong, at)) / adv_n if max_confidence else unknown,
    )


def _above(count: IntArray, at: IntArray) -> FloatArray:
    """How many rows lie above each of the edges; of -1, all."""
    below = np.append(0, np.cumsum(count))[at + 1]
    return np.asarray(count.sum() - below, dtype=np.float64)


def _measure(
    counts: IntArray, *, group: IntArray, residual: FloatArray, bins: int, per_bin: int, at: IntArray, n: int
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """ECE, KS error, covered right and covered wrong of resamples, given how many rows of each group they have.

    Args:
        counts: (b, g). group: (g,) ascending, 2 cell + kind. residual: (g,) mean of correct - confidence.
        bins, per_bin: the grid. at: (m,) edges. n: rows of a resample.
    """
    cell, b = group // 2, len(counts)
    path = np.zeros((b, len(group) + 1))
    np.cumsum(counts * residual, axis=1, out=path[:, 1:])
    ends = np.append(0, np.searchsorted(cell, per_bin * np.arange(1, bins + 1), side="right"))
    ece = np.abs(np.diff(path[:, ends], axis=1)).sum(axis=1) / n
    last = 1 + np.flatnonzero(np.append(cell[1:] != cell[:-1], True))
    ks = np.abs(path[:, last]).max(axis=1) / n
    covered = []
    for kind in (1, 0):
        total = np.zeros((b, len(group) + 1), dtype=np.int64)
        np.cumsum(counts * (group % 2 == kind), axis=1, out=total[:, 1:])
        covered.append((total[:, -1:] - total[:, np.searchsorted(cell, at, side="right")]) / n)
    return ece, ks, covered[0], covered[1]


def _curve(value: FloatArray, draws: FloatArray, plan: Bootstrap) -> Interval[FloatArray]:
    low, high = limits(value, draws, plan.level, plan.method, list)
    return Interval(value, low, high, plan.level, len(draws))


def _number(value: float, draws: FloatArray, plan: Bootstrap) -> Interval[float]:
    low, high = limits(np.asarray(value), draws, plan.level, plan.method, list)
    return Interval(value, float(low), float(high), plan.level, len(draws))
