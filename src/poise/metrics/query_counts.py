"""Averages of query counts: four statistics that papers mix, and the ways in which they count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from poise.errors import InputError
from poise.metrics._columns import FloatArray, Statistic, binary, numbers, ratio, same_length, whole
from poise.metrics.averages import mean_statistic


@dataclass(frozen=True, slots=True)
class QueryStatistics:
    """The four averages side by side; NaN where no attack succeeded, or where no sample enters.

    Args:
        mean_success: mean over the attacks that succeeded.
        median_success: median over the attacks that succeeded.
        mean_all: mean over all, the failed ones at what they spent.
        success_sum_over_all: sum over the attacks that succeeded, divided by the number of all.
        samples: how many samples enter.

    >>> from poise.metrics import query_statistics
    >>> found = query_statistics([1, 5, 20, 100], [1, 1, 0, 0])
    >>> found.mean_success, found.mean_all
    (3.0, 31.5)
    """

    mean_success: float
    median_success: float
    mean_all: float
    success_sum_over_all: float
    samples: int


@dataclass(frozen=True, slots=True)
class QueryView:
    """How a paper counts, as seen from a ledger that counts every forward pass, the clean one included.

    Args:
        free: forward passes at the start that the paper does not count; negative where it counts some twice.
        only_initially_correct: samples that the model gets wrong without attack do not enter.
        share: of the passes after the free ones, the share that the paper counts; below 1 where its code looks at the
            new point of every step without booking it.
    """

    free: int = 0
    only_initially_correct: bool = False
    share: float = 1.0

    def statistics(self, queries: ArrayLike, success: ArrayLike, initially_correct: ArrayLike) -> QueryStatistics:
        """The averages under this convention.

        Args:
            queries: (n,) forward passes per sample, the clean one included: up to the first success, or all there were.
            success: (n,) 1 where the attack reached its goal.
            initially_correct: (n,) 1 where the model is right without attack.

        Raises:
            InputError: columns empty, out of range or of different lengths; a count below `free`.

        >>> QUERY_VIEWS["square"].statistics([4, 9, 1], [1, 1, 1], initially_correct=[1, 1, 0]).mean_success
        5.5
        """
        spent, reached = _ledger(queries, success, "QueryView")
        right = binary(initially_correct, "QueryView: initially_correct")
        same_length("QueryView", queries=spent, initially_correct=right)
        if (spent < self.free).any():
            raise InputError(f"QueryView: queries must be at least {self.free}, got {spent.min():g}")
        enters = right == 1 if self.only_initially_correct else np.ones(len(right), dtype=bool)
        if not enters.any():
            return QueryStatistics(np.nan, np.nan, np.nan, np.nan, samples=0)
        return query_statistics(np.floor((spent[enters] - self.free) * self.share + 1e-9), reached[enters])


QUERY_VIEWS: dict[str, QueryView] = {
    "square": QueryView(free=1, only_initially_correct=True),
    "calibration": QueryView(),
    "aaa": QueryView(),
    "signhunter": QueryView(free=-1),
    "simba": QueryView(free=1),
    "nes": QueryView(free=1, share=40 / 41),
    "bandits": QueryView(free=1, share=2 / 3),
}
"""`square` (Andriushchenko et al. 2020, AutoAttack): the clean pass is free, so the initialised point is query 1; only
initially correct samples enter; `mean_success` is printed. `calibration` (Calibration Attacks): the clean pass is query
1, every sample enters; UCA and OCA rows print `mean_success`, MMA and RCA rows `success_sum_over_all`, all of them
`median_success`, which is why averages lie below medians there. `aaa` (Chen et al. 2022): clean and initialised point
are queries 1 and 2, every sample enters; `mean_all` is printed. `signhunter` (Al-Dujaili and O'Reilly 2020): the clean
image is counted twice in the first step. `simba` (Guo et al. 2019): the clean pass is free. `nes` and `bandits` (Ilyas
et al. 2018, 2019): the probes alone are counted, 2 q of the 2 q + 1 passes of a step, here with the default q of 20 for
NES and 1 for Bandits; the clean pass is free."""


def mean_success(queries: ArrayLike, success: ArrayLike) -> float:
    """Mean number of queries of the attacks that succeeded.

    Args:
        queries: (n,) forward passes per sample, at least 0: up to the first success, or all there were.
        success: (n,) in {0, 1}, whether the attack reached its goal.

    Returns:
        The mean; NaN where none succeeded.

    Raises:
        InputError: columns empty, negative, not finite, or of different lengths.

    >>> mean_success([1, 5, 20, 100], [1, 1, 0, 0])
    3.0
    """
    return whole(mean_success_statistic(queries, success), queries)


def median_success(queries: ArrayLike, success: ArrayLike) -> float:
    """Median number of queries of the attacks that succeeded; arguments, result and errors as `mean_success`.

    >>> median_success([1, 5, 20, 100], [1, 1, 1, 0])
    5.0
    """
    return whole(median_success_statistic(queries, success), queries)


def mean_all(queries: ArrayLike, success: ArrayLike) -> float:
    """Mean number of queries of all attacks, failed ones at what they spent; arguments and errors as `mean_success`.

    >>> mean_all([1, 5, 20, 100], [1, 1, 0, 0])
    31.5
    """
    return whole(mean_all_statistic(queries, success), queries)


def success_sum_over_all(queries: ArrayLike, success: ArrayLike) -> float:
    """Queries of the attacks that succeeded, divided by the number of all attacks.

    What "average queries" means in the MMA and RCA rows of Calibration Attacks. It lies below the median where many
    attacks fail, and is 0 where all do. Arguments and errors as `mean_success`.

    >>> success_sum_over_all([1, 5, 20, 100], [1, 1, 0, 0])
    1.5
    """
    return whole(success_sum_over_all_statistic(queries, success), queries)


def query_statistics(queries: ArrayLike, success: ArrayLike) -> QueryStatistics:
    """The four averages side by side; arguments and errors as `mean_success`.

    >>> query_statistics([1, 5, 20, 100], [1, 1, 0, 0])
    QueryStatistics(mean_success=3.0, median_success=3.0, mean_all=31.5, success_sum_over_all=1.5, samples=4)
    """
    spent, reached = _ledger(queries, success, "query_statistics")
    return QueryStatistics(
        mean_success=mean_success(spent, reached),
        median_success=median_success(spent, reached),
        mean_all=mean_all(spent, reached),
        success_sum_over_all=success_sum_over_all(spent, reached),
        samples=len(spent),
    )


def mean_success_statistic(queries: ArrayLike, success: ArrayLike) -> Statistic:
    """`mean_success` as a function of counts (b, n), see `Statistic`."""
    return mean_statistic(*_ledger(queries, success, "mean_success"))


def mean_all_statistic(queries: ArrayLike, success: ArrayLike) -> Statistic:
    """`mean_all` as a function of counts (b, n), see `Statistic`."""
    return mean_statistic(_ledger(queries, success, "mean_all")[0])


def success_sum_over_all_statistic(queries: ArrayLike, success: ArrayLike) -> Statistic:
    """`success_sum_over_all` as a function of counts (b, n), see `Statistic`."""
    spent, reached = _ledger(queries, success, "success_sum_over_all")
    return mean_statistic(spent * reached)


def median_success_statistic(queries: ArrayLike, success: ArrayLike) -> Statistic:
    """`median_success` as a function of counts (b, n), see `Statistic`."""
    spent, reached = _ledger(queries, success, "median_success")
    order = np.argsort(spent, kind="stable")
    order = order[reached[order] == 1]
    values = np.append(spent[order], np.nan)  # the NaN is what a resample without success finds

    def statistic(counts: FloatArray) -> FloatArray:
        position = np.cumsum(counts[:, order], axis=1)
        total = counts[:, order].sum(axis=1, keepdims=True)
        lower = (position <= np.floor((total - 1) / 2)).sum(axis=1)
        upper = (position <= np.floor(total / 2)).sum(axis=1)
        return np.where(total[:, 0] > 0, ratio(values[lower] + values[upper], np.full(len(counts), 2.0)), np.nan)

    return statistic


def _ledger(queries: ArrayLike, success: ArrayLike, caller: str) -> tuple[FloatArray, FloatArray]:
    spent = numbers(queries, f"{caller}: queries").astype(np.float64)
    reached = binary(success, f"{caller}: success")
    same_length(caller, queries=spent, success=reached)
    if (spent < 0).any():
        raise InputError(f"{caller}: queries must be at least 0, got {spent.min():g}")
    return spent, reached
