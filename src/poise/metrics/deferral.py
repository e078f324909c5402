"""Selective prediction in operation: what each threshold accepts and defers, and the threshold for the worst case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from poise.errors import InputError
from poise.metrics._columns import FloatArray, answers, ratio, unit
from poise.metrics.operating import Costs, mean_costs


@dataclass(frozen=True, slots=True)
class Deferral:
    """What a model does with its cases at each of m thresholds; a case is accepted iff confidence > threshold.

    Args:
        threshold: (m,) in the order given.
        coverage: (m,) share of all cases that are accepted, in [0, 1].
        risk: (m,) share of the accepted cases that are wrong; NaN where none is accepted.
        accepted_right, accepted_wrong, deferred: (m,) shares of all cases; the three sum to 1.
        cost: (m,) mean cost of a case; NaN where no costs were given.

    >>> from poise.metrics import deferral
    >>> deferral([0.95, 0.9, 0.6], [1, 0, 0], thresholds=[0.9, 0.5]).coverage.round(3).tolist()
    [0.333, 1.0]
    """

    threshold: FloatArray
    coverage: FloatArray
    risk: FloatArray
    accepted_right: FloatArray
    accepted_wrong: FloatArray
    deferred: FloatArray
    cost: FloatArray


def deferral(
    confidence: ArrayLike,
    correct: ArrayLike,
    thresholds: ArrayLike,
    *,
    costs: Costs | None = None,
    labels: ArrayLike | None = None,
) -> Deferral:
    """Coverage, risk, shares and mean cost at each threshold.

    Args:
        confidence: (n,) in [0, 1].
        correct: (n,) in {0, 1}.
        thresholds: (m,) in [0, 1].
        costs: what a case costs; None leaves the cost undefined.
        labels: (n,) true classes, needed where costs differ from class to class.

    Returns:
        The table, one entry a threshold.

    Raises:
        InputError: columns empty, out of range or of different lengths, or no labels where they are needed.

    >>> table = deferral([0.95, 0.9, 0.6], [1, 0, 0], [0.9, 0.5], costs=Costs(wrong_accepted=10, deferred=1))
    >>> table.risk.round(3).tolist(), table.cost.round(3).tolist()
    ([0.0, 0.667], [0.667, 6.667])
    """
    scores, hits = answers(confidence, correct, "deferral")
    at = unit(thresholds, "deferral: thresholds").astype(np.float64)
    accepted, right = (
        (len(x) - np.searchsorted(np.sort(x.astype(np.float64)), at, side="right")) / len(scores)
        for x in (scores, scores[hits == 1])
    )
    return Deferral(
        threshold=at,
        coverage=accepted,
        risk=ratio(accepted - right, accepted),
        accepted_right=right,
        accepted_wrong=accepted - right,
        deferred=1 - accepted,
        cost=np.full(len(at), np.nan) if costs is None else mean_costs(scores, hits, at, costs, labels),
    )


@dataclass(frozen=True, slots=True)
class WorstCase:
    """The threshold whose worst case is the cheapest.

    Args:
        threshold: a case is accepted iff its confidence is above.
        cost: mean cost of a case there, in the worst case.
        case: which case that is; of several equally dear ones the first.
        costs: mean cost of a case there, by the name of the case.

    >>> from poise.metrics import Costs, worst_case_threshold
    >>> cases = {"clean": ([0.9, 0.8], [1, 1]), "attacked": ([0.6, 0.7], [1, 0])}
    >>> found = worst_case_threshold(cases, Costs(wrong_accepted=9, deferred=1))
    >>> found.threshold, found.case
    (0.9, 'clean')
    """

    threshold: float
    cost: float
    case: str
    costs: dict[str, float]


def worst_case_threshold(
    cases: Mapping[str, tuple[ArrayLike, ArrayLike]], costs: Costs, labels: ArrayLike | None = None
) -> WorstCase:
    """The threshold of least mean cost in the worst case: min over thresholds of the max over the cases.

    The cases are the same model without an attack and under each attack; whoever sets one threshold before knowing
    which of them comes pays at most this.

    Args:
        cases: by name, confidence (n,) in [0, 1] and correct (n,) in {0, 1}.
        costs: what a case costs.
        labels: (n,) true classes, the same for every case; needed where costs differ from class to class.

    Returns:
        The threshold and what it costs. Candidates are 0 and every distinct confidence of every case, between which no
        cost changes; of several equally cheap ones the highest, which accepts least.

    Raises:
        InputError: no case, or columns empty, out of range or of different lengths.

    >>> cases = {"clean": ([0.9, 0.8, 0.3], [1, 1, 0]), "attacked": ([0.6, 0.8, 0.7], [1, 1, 0])}
    >>> worst_case_threshold(cases, Costs(wrong_accepted=9, deferred=1))
    WorstCase(threshold=0.7, cost=0.6666666666666666, case='attacked', costs={'clean': 0.333..., 'attacked': 0.666...})
    """
    if not cases:
        raise InputError("worst_case_threshold: must have at least one case, got none")
    pooled = [answers(*columns, f"worst_case_threshold: {name}")[0] for name, columns in cases.items()]
    candidates = np.unique(np.concatenate([*(part.astype(np.float64) for part in pooled), [0.0]]))[::-1]
    table = np.stack([mean_costs(*columns, candidates, costs, labels) for columns in cases.values()])
    best = int(table.max(axis=0).argmin())
    at = dict(zip(cases, table[:, best].tolist(), strict=True))
    worst = max(at, key=lambda name: at[name])
    return WorstCase(float(candidates[best]), at[worst], worst, at)
