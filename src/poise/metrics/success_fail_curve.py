"""The success-fail curve: what a confidence threshold gains on clean data and loses on attacked data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from poise.errors import InputError
from poise.metrics._columns import TOLERANCE, FloatArray, answers, numbers, same_length, unit

BELOW_ZERO = float(np.nextafter(0.0, -1.0))
"""The threshold that covers every row, where a confidence is exactly 0."""


@dataclass(frozen=True, slots=True)
class SuccessFail:
    """A success-fail curve, one entry per threshold t, highest threshold first; a row is covered iff confidence > t.

    Args:
        threshold: (m,) thresholds.
        success: (m,) share of clean rows that are covered and correct.
        failure: (m,) share of attacked rows that are covered and wrong: what the attack reached, a lower bound of what
            is possible for t < 1/2.
        clean_coverage: (m,) share of clean rows that are covered.
        adv_coverage: (m,) share of attacked rows that are covered.
        solid: (m,) True where the failure rate is that of an optimal attacker, if the attack is MaxConfidence and
            its optimiser perfect: t >= 1/2.
        upper_coverage: (m,) upper bound of the failure rate, section 6.1 of the paper: for t < 1/2 the adversarial
            coverage, else the failure rate. NaN for an attack other than MaxConfidence.
        upper_wrong: (m,) tighter upper bound, valid for every t: share of attacked rows where some wrong class has a
            probability above t. NaN where those probabilities were not given, or for another attack.
        upper_cleverhans: (m,) what cleverhans draws as the upper bound, for comparison: it leaves out correct rows with
            confidence above 1/2 and is no bound. NaN for another attack.

    >>> from poise.metrics import success_fail
    >>> curve = success_fail([0.9, 0.6], [1, 1], [0.8, 0.7], [0, 1], thresholds=[0.75, 0.5])
    >>> curve.success.tolist(), curve.failure.tolist(), curve.solid.tolist()
    ([0.5, 1.0], [0.5, 0.5], [True, True])
    """

    threshold: FloatArray
    success: FloatArray
    failure: FloatArray
    clean_coverage: FloatArray
    adv_coverage: FloatArray
    solid: NDArray[np.bool_]
    upper_coverage: FloatArray
    upper_wrong: FloatArray
    upper_cleverhans: FloatArray

    @property
    def accuracy(self) -> FloatArray:
        """(m,) accuracy on the clean rows that are covered; 1 where none is, as the paper has it."""
        covered = self.clean_coverage > 0
        return np.where(covered, self.success / np.where(covered, self.clean_coverage, 1.0), 1.0)

    def staircase(self, failure: FloatArray | None = None) -> tuple[FloatArray, FloatArray]:
        """The line to draw: from point to point first right, then up, so that it never overstates the success.

        Args:
            failure: (m,) horizontal positions, one of the bounds; None takes the failure rate.

        Returns:
            (2m - 1,) failure and (2m - 1,) success rates.
        """
        across = self.failure if failure is None else failure
        return np.repeat(across, 2)[1:], np.repeat(self.success, 2)[:-1]


def success_fail(
    clean_confidence: ArrayLike,
    clean_correct: ArrayLike,
    adv_confidence: ArrayLike,
    adv_correct: ArrayLike,
    *,
    adv_wrong_confidence: ArrayLike | None = None,
    max_confidence: bool = True,
    thresholds: ArrayLike | None = None,
) -> SuccessFail:
    """Success rate on clean rows and failure rate on attacked rows at every threshold.

    Goodfellow, Qin and Berthelot, "Evaluation methodology for attacks against confidence thresholding models",
    sections 3 and 6.1. Clean and attacked rows need not be as many.

    Args:
        clean_confidence: (n,) highest probability at the clean points, in [0, 1].
        clean_correct: (n,) in {0, 1}.
        adv_confidence: (l,) highest probability at the attacked points.
        adv_correct: (l,) in {0, 1}.
        adv_wrong_confidence: (l,) highest probability of a class other than the label at the attacked points, for
            `upper_wrong`. It equals the confidence in the rows that are wrong.
        max_confidence: the attack is MaxConfidence, which is optimal for t >= 1/2 and bounds what is possible below.
            False: an attack that bounds nothing; no upper bounds, no part of the curve is solid.
        thresholds: (m,) thresholds to evaluate, in [0, 1], for curves on a common grid. None: every distinct
            confidence, 1/2 (where solid and dashed parts meet) and one threshold that covers every row.

    Returns:
        The curve, from the highest threshold to the lowest. By default it starts at (0, 0) and ends at (1 - adversarial
        accuracy, clean accuracy).

    Raises:
        InputError: columns empty, out of range or of different lengths; wrong confidences that contradict the others.

    Deviation: cleverhans leaves out the point of full coverage and does not join the dashed part to the solid one.

    >>> curve = success_fail([0.9, 0.6], [1, 0], [0.8, 0.4], [0, 1], thresholds=[0.5, 0.3])
    >>> curve.success.tolist(), curve.failure.tolist(), curve.upper_coverage.tolist()
    ([0.5, 0.5], [0.5, 0.5], [0.5, 1.0])
    """
    clean, clean_hits = answers(clean_confidence, clean_correct, "success_fail: clean")
    adv, adv_hits = answers(adv_confidence, adv_correct, "success_fail: adv")
    t = _thresholds(clean, adv) if thresholds is None else _given(thresholds)
    failure, coverage = _share(adv[adv_hits == 0], t, len(adv)), _share(adv, t, len(adv))
    solid = (t >= 0.5) & max_confidence
    unknown = np.full(len(t), np.nan)
    wrong = unknown
    if adv_wrong_confidence is not None and max_confidence:
        other = _wrong_confidence(adv_wrong_confidence, adv, adv_hits)
        wrong = np.where(solid, failure, _share(other, t, len(adv)))
    low_covered = _share(adv[adv <= 0.5], t, len(adv))
    high_wrong = _share(adv[(adv > 0.5) & (adv_hits == 0)], t, len(adv))
    return SuccessFail(
        threshold=t,
        success=_share(clean[clean_hits == 1], t, len(clean)),
        failure=failure,
        clean_coverage=_share(clean, t, len(clean)),
        adv_coverage=coverage,
        solid=solid,
        upper_coverage=np.where(solid, failure, coverage) if max_confidence else unknown,
        upper_wrong=wrong,
        upper_cleverhans=low_covered + high_wrong if max_confidence else unknown,
    )


def _share(confidence: NDArray[np.floating], threshold: FloatArray, n: int) -> FloatArray:
    """How many of the confidences lie above each threshold, divided by n."""
    ordered = np.sort(confidence.astype(np.float64))
    return (len(ordered) - np.searchsorted(ordered, threshold, side="right")) / n


def _thresholds(clean: NDArray[np.floating], adv: NDArray[np.floating]) -> FloatArray:
    pooled = np.concatenate([clean, adv]).astype(np.float64)
    last = 0.0 if pooled.min() > 0 else BELOW_ZERO
    return np.unique(np.append(pooled, [0.5, last]))[::-1]


def _given(thresholds: ArrayLike) -> FloatArray:
    return np.sort(unit(thresholds, "success_fail: thresholds").astype(np.float64))[::-1]


def _wrong_confidence(values: ArrayLike, adv: NDArray[np.floating], hits: FloatArray) -> FloatArray:
    other = unit(numbers(values, "success_fail: adv_wrong_confidence"), "success_fail: adv_wrong_confidence")
    same_length("success_fail", adv_confidence=adv, adv_wrong_confidence=other)
    off = np.where(hits == 1, other - adv, np.abs(other - adv))
    if off.max() > TOLERANCE:
        raise InputError(
            "success_fail: adv_wrong_confidence must equal the confidence in wrong rows and not exceed it in correct "
            f"ones, got {other[off.argmax()]:g} beside {adv[off.argmax()]:g} in row {off.argmax()}"
        )
    return np.where(hits == 1, other, adv).astype(np.float64)
