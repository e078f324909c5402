"""What a threshold does in operation: accepted and right, accepted and wrong, deferred; and what it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from poise.errors import InputError
from poise.metrics._columns import FloatArray, Statistic, answers, whole


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Shares of all cases at a threshold; a case is accepted iff confidence > threshold, else a person sees it.

    Args:
        threshold: the threshold.
        accepted_right: share accepted with a right prediction.
        accepted_wrong: share accepted with a wrong prediction.
        deferred: share not accepted. The three sum to 1.
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
    """

    wrong_accepted: float
    deferred: float
    right_accepted: float = 0.0

    def __post_init__(self) -> None:
        for name in ("wrong_accepted", "deferred", "right_accepted"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"Costs: {name} must be finite, got {getattr(self, name)}")


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


def expected_cost(confidence: ArrayLike, correct: ArrayLike, threshold: float, costs: Costs) -> float:
    """Mean cost of a case at a threshold; arguments and errors as `operating_point`.

    >>> expected_cost([0.95, 0.9, 0.99, 0.2], [1, 1, 0, 1], 0.9, Costs(wrong_accepted=10, deferred=1))
    3.0
    """
    return whole(expected_cost_statistic(confidence, correct, threshold, costs), confidence)


def least_cost_threshold(confidence: ArrayLike, correct: ArrayLike, costs: Costs) -> tuple[float, float]:
    """The threshold of least mean cost on these rows, and that cost; given attacked rows, the least bad under attack.

    Args:
        confidence: (n,) in [0, 1].
        correct: (n,) in {0, 1}.
        costs: what a case costs.

    Returns:
        Threshold and mean cost. Candidates are 0 and every distinct confidence; of several equally cheap ones the
        highest, which accepts least.

    Raises:
        InputError: columns empty, out of range or of different lengths.

    >>> least_cost_threshold([0.95, 0.9, 0.6], [1, 1, 0], Costs(wrong_accepted=10, deferred=1))
    (0.6, 0.3333333333333333)
    """
    scores, hits = answers(confidence, correct, "least_cost_threshold")
    ordered = np.sort(scores.astype(np.float64))
    right_scores = np.sort(scores[hits == 1].astype(np.float64))
    candidates = np.unique(np.append(ordered, 0.0))[::-1]
    accepted = len(ordered) - np.searchsorted(ordered, candidates, side="right")
    right = len(right_scores) - np.searchsorted(right_scores, candidates, side="right")
    total = (
        right * costs.right_accepted
        + (accepted - right) * costs.wrong_accepted
        + (len(ordered) - accepted) * costs.deferred
    )
    best = int(total.argmin())
    return float(candidates[best]), float(total[best] / len(ordered))


def operating_shares_statistic(confidence: ArrayLike, correct: ArrayLike, threshold: float) -> Statistic:
    """`operating_shares` as a function of counts (b, n) with values (b, 3), see `Statistic`."""
    scores, hits = answers(confidence, correct, "operating_point")
    if not 0 <= threshold <= 1:
        raise InputError(f"operating_point: threshold must be in [0, 1], got {threshold}")
    accepted = scores.astype(np.float64) > threshold
    table = np.stack([accepted * hits, accepted * (1 - hits), 1.0 - accepted], axis=1)
    return lambda counts: np.asarray(counts @ table / counts.sum(axis=1, keepdims=True))


def expected_cost_statistic(confidence: ArrayLike, correct: ArrayLike, threshold: float, costs: Costs) -> Statistic:
    """`expected_cost` as a function of counts (b, n), see `Statistic`."""
    shares = operating_shares_statistic(confidence, correct, threshold)
    prices = np.array([costs.right_accepted, costs.wrong_accepted, costs.deferred])
    return lambda counts: np.asarray(shares(counts) @ prices)
