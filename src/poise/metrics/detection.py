"""How well a score tells two kinds of rows apart: attacked from clean, right from wrong."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from poise.errors import InputError
from poise.metrics._columns import FloatArray, Statistic, binary, numbers, ratio, same_length, whole


def auroc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Area under the ROC curve: P(score of a positive > score of a negative) + P(equal) / 2.

    For a detector pass its scores of clean and attacked points together, and 1 for the attacked ones; for how well
    confidence tells right from wrong pass (confidence, correct).

    Args:
        scores: (n,) any finite numbers, higher for positive rows.
        positive: (n,) in {0, 1}.

    Returns:
        The area, in [0, 1]; 0.5 is chance.

    Raises:
        InputError: columns empty, not finite or of different lengths; all rows of one kind.

    >>> auroc([0.9, 0.8, 0.3, 0.1], [1, 0, 1, 0])
    0.75
    """
    _both_kinds(positive, "auroc")
    return whole(auroc_statistic(scores, positive), scores)


def detection_accuracy(scores: ArrayLike, positive: ArrayLike) -> float:
    """Largest mean of true positive and true negative rate over all thresholds.

    Lee et al. 2018. At least 0.5, and optimistic: the threshold is chosen on the rows that it is judged by. Rows of
    equal score lie on one side of every threshold; Lee's code lets known rows pass first.

    Args:
        scores: (n,) any finite numbers, higher for positive rows.
        positive: (n,) in {0, 1}.

    Returns:
        The accuracy, in [0.5, 1].

    Raises:
        InputError: columns empty, not finite or of different lengths; all rows of one kind.

    >>> detection_accuracy([0.9, 0.8, 0.3, 0.1], [1, 0, 1, 0])
    0.75
    """
    _both_kinds(positive, "detection_accuracy")
    return whole(detection_accuracy_statistic(scores, positive), scores)


def accuracy_at_threshold(scores: ArrayLike, positive: ArrayLike, threshold: float = 0.5) -> float:
    """Share of rows that a fixed threshold sorts rightly: positive iff score > threshold.

    Harder et al. 2021, with the probability of a classifier as the score.

    Args:
        scores: (n,) any finite numbers, higher for positive rows.
        positive: (n,) in {0, 1}.
        threshold: strict.

    Returns:
        The accuracy, in [0, 1].

    Raises:
        InputError: columns empty, not finite or of different lengths.

    >>> accuracy_at_threshold([0.9, 0.8, 0.3, 0.1], [1, 0, 1, 0])
    0.5
    """
    return whole(accuracy_at_threshold_statistic(scores, positive, threshold), scores)


def false_positive_rate(scores: ArrayLike, positive: ArrayLike, recall: float = 0.95) -> float:
    """Share of negative rows that alarm at the highest threshold which still finds enough of the positive ones.

    Rows of equal score lie on one side of every threshold. As `detection_accuracy` it is optimistic: the threshold is
    chosen on the rows that it is judged by.

    Args:
        scores: (n,) any finite numbers, higher for positive rows.
        positive: (n,) in {0, 1}.
        recall: least true positive rate, in (0, 1].

    Returns:
        The rate, in [0, 1]; a score that knows nothing gives about `recall`.

    Raises:
        InputError: columns empty, not finite or of different lengths; all rows of one kind; another recall.

    >>> false_positive_rate([0.9, 0.8, 0.3, 0.1], [1, 0, 1, 0])
    0.5
    """
    _both_kinds(positive, "false_positive_rate")
    return whole(false_positive_rate_statistic(scores, positive, recall), scores)


SEPARATION = ("auroc", "detection_accuracy", "accuracy_at_half", "fpr_at_95_tpr")
"""What `separation` returns, in its order."""


def separation(versions: ArrayLike) -> FloatArray:
    """How well a score tells attacked images from the versions they were made of: the figures of `SEPARATION` at once.

    In a bootstrap all versions of an image are drawn together: what they have in common makes them no independent rows.

    Args:
        versions: (n, v) any finite numbers, v at least 2: the scores of an image clean (and, say, noisy), then, in the
            last column, attacked.

    Returns:
        (4,) `auroc`, `detection_accuracy`, `accuracy_at_threshold` at 0.5, `false_positive_rate` at recall 0.95, of the
        last column against all others together.

    Raises:
        InputError: another shape, no row, or a number that is not finite.

    >>> separation([[0.1, 0.9], [0.8, 0.3]])
    array([0.75, 0.75, 0.5 , 0.5 ])
    """
    statistic = separation_statistic(versions)
    found: FloatArray = statistic(np.ones((1, len(np.asarray(versions)))))[0]
    return found


def auroc_statistic(scores: ArrayLike, positive: ArrayLike) -> Statistic:
    """`auroc` as a function of counts (b, n), see `Statistic`; NaN where a resample has rows of one kind only."""
    values, kinds = _columns(scores, positive, "auroc")
    order, starts = _blocks(values)
    kinds = kinds[order]

    def statistic(counts: FloatArray) -> FloatArray:
        ups = np.add.reduceat(counts[:, order] * kinds, starts, axis=1)
        downs = np.add.reduceat(counts[:, order] * (1 - kinds), starts, axis=1)
        below = np.cumsum(downs, axis=1) - downs / 2
        return ratio((ups * below).sum(axis=1), ups.sum(axis=1) * downs.sum(axis=1))

    return statistic


def detection_accuracy_statistic(scores: ArrayLike, positive: ArrayLike) -> Statistic:
    """`detection_accuracy` as a function of counts (b, n); NaN where a resample has rows of one kind only."""
    values, kinds = _columns(scores, positive, "detection_accuracy")
    order, starts = _blocks(values)
    kinds = kinds[order]

    def statistic(counts: FloatArray) -> FloatArray:
        ups = np.cumsum(np.add.reduceat(counts[:, order] * kinds, starts, axis=1), axis=1)
        downs = np.cumsum(np.add.reduceat(counts[:, order] * (1 - kinds), starts, axis=1), axis=1)
        advantage = ratio(downs, downs[:, -1:]) - ratio(ups, ups[:, -1:])  # threshold just above each block
        return np.asarray(0.5 + 0.5 * np.maximum(advantage.max(axis=1), 0.0))

    return statistic


def accuracy_at_threshold_statistic(scores: ArrayLike, positive: ArrayLike, threshold: float = 0.5) -> Statistic:
    """`accuracy_at_threshold` as a function of counts (b, n)."""
    values, kinds = _columns(scores, positive, "accuracy_at_threshold")
    right = ((values > threshold) == (kinds == 1)).astype(np.float64)
    return lambda counts: ratio(counts @ right, counts.sum(axis=1))


def false_positive_rate_statistic(scores: ArrayLike, positive: ArrayLike, recall: float = 0.95) -> Statistic:
    """`false_positive_rate` as a function of counts (b, n); NaN where a resample has rows of one kind only."""
    values, kinds = _columns(scores, positive, "false_positive_rate")
    if not 0 < recall <= 1:
        raise InputError(f"false_positive_rate: recall must be in (0, 1], got {recall}")
    order, starts = _blocks(values)
    order, kinds = order[::-1], kinds[order[::-1]]  # from the highest score
    starts = np.append(0, len(order) - starts[:0:-1])

    def statistic(counts: FloatArray) -> FloatArray:
        ups = np.cumsum(np.add.reduceat(counts[:, order] * kinds, starts, axis=1), axis=1)
        downs = np.cumsum(np.add.reduceat(counts[:, order] * (1 - kinds), starts, axis=1), axis=1)
        enough = ups >= recall * ups[:, -1:] * (1 - 1e-12)
        at = enough.argmax(axis=1)[:, None]
        rate = ratio(np.take_along_axis(downs, at, axis=1)[:, 0], downs[:, -1])
        return np.where(ups[:, -1] > 0, rate, np.nan)

    return statistic


def separation_statistic(versions: ArrayLike) -> Statistic:
    """`separation` as a function of counts (b, n), each of all versions of an image."""
    table = np.asarray(versions, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] < 2:
        raise InputError(f"separation: versions must be (n, 2 or more) scores, the last attacked, got {table.shape}")
    scores, kinds = table.T.ravel(), np.repeat(np.arange(table.shape[1]) == table.shape[1] - 1, len(table))
    positive = kinds.astype(np.float64)
    figures = (
        auroc_statistic(scores, positive),
        detection_accuracy_statistic(scores, positive),
        accuracy_at_threshold_statistic(scores, positive),
        false_positive_rate_statistic(scores, positive),
    )

    def statistic(counts: FloatArray) -> FloatArray:
        every = np.tile(counts, (1, table.shape[1]))
        return np.stack([figure(every) for figure in figures], axis=1)

    return statistic


def _columns(scores: ArrayLike, positive: ArrayLike, caller: str) -> tuple[FloatArray, FloatArray]:
    values = numbers(scores, f"{caller}: scores").astype(np.float64)
    kinds = binary(positive, f"{caller}: positive")
    same_length(caller, scores=values, positive=kinds)
    return values, kinds


def _both_kinds(positive: ArrayLike, caller: str) -> None:
    kinds = binary(positive, f"{caller}: positive")
    if kinds.min() == kinds.max():
        raise InputError(f"{caller}: positive must contain both 0 and 1, got only {kinds[0]:g}")


def _blocks(values: FloatArray) -> tuple[np.ndarray, np.ndarray]:
    """Order of increasing value, and the positions in it where a block of equal values starts."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    return order, np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
