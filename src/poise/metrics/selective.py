"""Selective prediction: risk against coverage, and the area under that curve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from poise.metrics._columns import FloatArray, Statistic, answers, whole


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """A risk-coverage curve, one entry per distinct confidence, highest first; it ends at full coverage.

    Args:
        threshold: (m,) distinct confidences; a row is covered iff confidence >= threshold.
        coverage: (m,) share of rows that are covered, in (0, 1].
        risk: (m,) share of the covered rows that are wrong.
        aurc: area under the curve, see `aurc`.

    >>> from poise.metrics import risk_coverage
    >>> curve = risk_coverage([0.9, 0.8, 0.3], [1, 1, 0])
    >>> curve.risk.round(3).tolist(), round(curve.aurc, 3)
    ([0.0, 0.0, 0.333], 0.111)
    """

    threshold: FloatArray
    coverage: FloatArray
    risk: FloatArray
    aurc: float


def risk_coverage(confidence: ArrayLike, correct: ArrayLike) -> RiskCoverage:
    """Error rate among the rows that are answered, against how many are answered.

    El-Yaniv and Wiener 2010. Rows of equal confidence enter together.

    Args:
        confidence: (n,) in [0, 1].
        correct: (n,) in {0, 1}.

    Returns:
        The curve and its area.

    Raises:
        InputError: columns empty, out of range or of different lengths.

    >>> curve = risk_coverage([0.9, 0.8, 0.8, 0.3], [1, 1, 0, 0])
    >>> curve.coverage.tolist(), curve.risk.round(3).tolist()
    ([0.25, 0.75, 1.0], [0.0, 0.333, 0.5])
    """
    scores, hits = answers(confidence, correct, "risk_coverage")
    order, last = _descending(scores)
    covered = last + 1.0
    return RiskCoverage(
        threshold=scores[order][last].astype(np.float64),
        coverage=covered / len(scores),
        risk=np.cumsum(1 - hits[order])[last] / covered,
        aurc=aurc(scores, hits),
    )


def aurc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Area under the risk-coverage curve: mean over i = 1..n of the error rate among the i most confident rows.

    Geifman, Uziel and El-Yaniv 2019. Within a block of equal confidences it is the expectation over all orders of its
    rows, so that the order in which rows are given does not matter.

    Args:
        confidence: (n,) in [0, 1].
        correct: (n,) in {0, 1}.

    Returns:
        The area, in [0, 1]; 0 is best.

    Raises:
        InputError: columns empty, out of range or of different lengths.

    >>> round(aurc([0.9, 0.8, 0.7], [1, 0, 1]), 4)
    0.2778
    """
    return whole(aurc_statistic(confidence, correct), confidence)


def aurc_statistic(confidence: ArrayLike, correct: ArrayLike) -> Statistic:
    """`aurc` as a function of counts (b, n), see `Statistic`; every row of counts has the same sum."""
    scores, hits = answers(confidence, correct, "aurc")
    order, last = _descending(scores)
    wrong = 1 - hits[order]

    def statistic(counts: FloatArray) -> FloatArray:
        ordered = counts[:, order]
        covered = np.cumsum(ordered, axis=1)[:, last]
        errors = np.cumsum(ordered * wrong, axis=1)[:, last]
        rank = np.arange(1, round(covered[0, -1]) + 1)
        within = [np.interp(rank, [0, *x], [0, *y]) for x, y in zip(covered, errors, strict=True)]
        return np.asarray((np.stack(within) / rank).mean(axis=1))

    return statistic


def _descending(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order of decreasing score, and the positions in it where a block of equal scores ends."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    return order, np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
