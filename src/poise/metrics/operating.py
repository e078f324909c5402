"""What a threshold does in operation: accepted and right, accepted and wrong, deferred; and what it costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from poise.errors import InputError
from poise.metrics._columns import FloatArray, Statistic, answers, numbers, same_length, whole


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Shares of all cases at a threshold; a case is accepted iff confidence > threshold, else a person sees it.

    Args:
        threshold: the threshold.
        accepted_right: share accepted with a right prediction.
        accepted_wrong: share accepted with a wrong prediction.
        deferred: share not accepted. The three sum to 1.

    >>> from poise.metrics import operating_point
    >>> point = operating_point([0.95, 0.99, 0.2, 0.4], [1, 0, 1, 1], threshold=0.9)
    >>> point.accepted_right, point.accepted_wrong, point.deferred
    (0.25, 0.25, 0.5)
    """

    threshold: float
    accepted_right: float
    accepted_wrong: float
    deferred: float


@dataclass(frozen=True, slots=True)
class Costs:
    """What one case costs, in any unit.

    Args:
        wrong_accepted: a wrong prediction that was accepted.
        deferred: a case that a person has to see.
        right_accepted: a right prediction that was accepted.
        classes: what a case costs instead whose true class is the key; these costs name no classes themselves.

    Raises:
        InputError: a cost is not finite, or the costs of a class name classes.

    >>> from poise.metrics import expected_cost
    >>> expected_cost([0.95, 0.99, 0.2, 0.4], [1, 0, 1, 1], 0.9, Costs(wrong_accepted=10, deferred=1))
    3.0
    """

    wrong_accepted: float
    deferred: float
    right_accepted: float = 0.0
    classes: Mapping[int, Costs] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("wrong_accepted", "deferred", "right_accepted"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"Costs: {name} must be finite, got {getattr(self, name)}")
        if nested := [index for index, costs in self.classes.items() if costs.classes]:
            raise InputError(f"Costs: the costs of one class must not name classes, got some for class {nested[0]}")


def operating_point(confidence: ArrayLike, correct: ArrayLike, threshold: float) -> OperatingPoint:
    """Shares of cases accepted and right, accepted and wrong, and deferred.

    Args:
        confidence: (n,) in [0, 1].
        correct: (n,) in {0, 1}.
        threshold: a case is accepted iff its confidence is strictly above; in [0, 1].

    Returns:
        The shares.

    Raises:
        InputError: columns empty, out of range or of different lengths; threshold outside [0, 1].

    >>> operating_point([0.95, 0.9, 0.99, 0.2], [1, 1, 0, 1], threshold=0.9)
    OperatingPoint(threshold=0.9, accepted_right=0.25, accepted_wrong=0.25, deferred=0.5)
    """
    right, wrong, deferred = operating_shares(confidence, correct, threshold)
    return OperatingPoint(float(threshold), float(right), float(wrong), float(deferred))


def operating_shares(confidence: ArrayLike, correct: ArrayLike, threshold: float) -> FloatArray:
    """The shares of `operating_point` as an array (accepted right, accepted wrong, deferred), for `bootstrap`.

    >>> operating_shares([0.95, 0.9], [1, 1], threshold=0.9).tolist()
    [0.5, 0.0, 0.5]
    """
    statistic = operating_shares_statistic(confidence, correct, threshold)
    shares: FloatArray = statistic(np.ones((1, len(np.asarray(confidence)))))[0]
    return shares


def expected_cost(
    confidence: ArrayLike, correct: ArrayLike, threshold: float, costs: Costs, labels: ArrayLike | None = None
) -> float:
    """Mean cost of a case at a threshold; arguments and errors as `operating_point`.

    `labels` (n,), the true classes, are needed where costs differ from class to class.

    >>> expected_cost([0.95, 0.9, 0.99, 0.2], [1, 1, 0, 1], 0.9, Costs(wrong_accepted=10, deferred=1))
    3.0
    """
    return whole(expected_cost_statistic(confidence, correct, threshold, costs, labels), confidence)


def least_cost_threshold(
    confidence: ArrayLike, correct: ArrayLike, costs: Costs, labels: ArrayLike | None = None
) -> tuple[float, float]:
    """The threshold of least mean cost on these rows, and that cost; given attacked rows, the least bad under attack.

    Args:
        confidence: (n,) in [0, 1].
        correct: (n,) in {0, 1}.
        costs: what a case costs.
        labels: (n,) true classes, needed where costs differ from class to class.

    Returns:
        Threshold and mean cost. Candidates are 0 and every distinct confidence; of several equally cheap ones the
        highest, which accepts least.

    Raises:
        InputError: columns empty, out of range or of different lengths, or no labels where they are needed.

    >>> least_cost_threshold([0.95, 0.9, 0.6], [1, 1, 0], Costs(wrong_accepted=10, deferred=1))
    (0.6, 0.3333333333333333)
    """
    scores, hits = answers(confidence, correct, "least_cost_threshold")
    candidates = np.unique(np.append(scores.astype(np.float64), 0.0))[::-1]
    found = mean_costs(scores, hits, candidates, costs, labels)
    best = int(found.argmin())
    return float(candidates[best]), float(found[best])


def mean_costs(
    confidence: ArrayLike,
    correct: ArrayLike,
    thresholds: ArrayLike,
    costs: Costs,
    labels: ArrayLike | None = None,
) -> FloatArray:
    """`expected_cost` at many thresholds (m,) at once, (m,); errors as `expected_cost`.

    >>> mean_costs([0.95, 0.9, 0.6], [1, 1, 0], [0.95, 0.6, 0.0], Costs(wrong_accepted=9, deferred=1)).tolist()
    [1.0, 0.3333333333333333, 3.0]
    """
    scores, hits = answers(confidence, correct, "expected_cost")
    at = numbers(thresholds, "expected_cost: thresholds").astype(np.float64)
    total = np.zeros(len(at))
    for rows, price in _by_price(costs, labels, len(scores)):
        part, right_part = scores[rows].astype(np.float64), scores[rows & (hits == 1)].astype(np.float64)
        accepted, right = (len(x) - np.searchsorted(np.sort(x), at, side="right") for x in (part, right_part))
        total += right * price.right_accepted + (accepted - right) * price.wrong_accepted
        total += (len(part) - accepted) * price.deferred
    return total / len(scores)


def _by_price(costs: Costs, labels: ArrayLike | None, n: int) -> Iterator[tuple[NDArray[np.bool_], Costs]]:
    """Rows (n,) that cost the same, and what they cost; every row is in one group."""
    if not costs.classes:
        yield np.ones(n, dtype=bool), costs
        return
    if labels is None:
        raise InputError("expected_cost: labels must be given where costs differ from class to class, got none")
    truth = numbers(labels, "expected_cost: labels")
    same_length("expected_cost", confidence=np.empty(n), labels=truth)
    yield ~np.isin(truth, list(costs.classes)), costs
    for index, price in costs.classes.items():
        yield truth == index, price


def operating_shares_statistic(confidence: ArrayLike, correct: ArrayLike, threshold: float) -> Statistic:
    """`operating_shares` as a function of counts (b, n) with values (b, 3), see `Statistic`."""
    scores, hits = answers(confidence, correct, "operating_point")
    if not 0 <= threshold <= 1:
        raise InputError(f"operating_point: threshold must be in [0, 1], got {threshold}")
    accepted = scores.astype(np.float64) > threshold
    table = np.stack([accepted * hits, accepted * (1 - hits), 1.0 - accepted], axis=1)
    return lambda counts: np.asarray(counts @ table / counts.sum(axis=1, keepdims=True))


def expected_cost_statistic(
    confidence: ArrayLike, correct: ArrayLike, threshold: float, costs: Costs, labels: ArrayLike | None = None
) -> Statistic:
    """`expected_cost` as a function of counts (b, n), see `Statistic`."""
    scores, hits = answers(confidence, correct, "expected_cost")
    if not 0 <= threshold <= 1:
        raise InputError(f"operating_point: threshold must be in [0, 1], got {threshold}")
    accepted, each = scores.astype(np.float64) > threshold, np.zeros(len(scores))
    for rows, price in _by_price(costs, labels, len(scores)):
        if_accepted = np.where(hits == 1, price.right_accepted, price.wrong_accepted)
        each[rows] = np.where(accepted, if_accepted, price.deferred)[rows]
    return lambda counts: np.asarray(counts @ each / counts.sum(axis=1))
