"""What is minimised: per-sample, pure, never calling the model."""

from poise.objectives.base import Bound, Objective
from poise.objectives.confidence import MMA, OCA, RCA, UCA, ConfSmooth
from poise.objectives.keep_label import KeepLabel
from poise.objectives.misclassification import (
    CrossEntropy,
    Margin,
    Misclassify,
    ProbabilityMargin,
    Targeted,
    TowardsClass,
)

OBJECTIVES = {
    kind.__name__: kind
    for kind in (
        UCA, OCA, MMA, RCA, ConfSmooth, KeepLabel,
        Margin, ProbabilityMargin, CrossEntropy, Misclassify, Targeted, TowardsClass,
    )
}  # fmt: skip
"""Every objective by its public name."""

__all__ = [
    "MMA",
    "OBJECTIVES",
    "OCA",
    "RCA",
    "UCA",
    "Bound",
    "ConfSmooth",
    "CrossEntropy",
    "KeepLabel",
    "Margin",
    "Misclassify",
    "Objective",
    "ProbabilityMargin",
    "Targeted",
    "TowardsClass",
]
