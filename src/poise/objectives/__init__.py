"""What is minimised: per-sample, pure, never calling the model."""

from poise.objectives.base import Bound, Objective
from poise.objectives.confidence import MMA, OCA, RCA, UCA, ConfSmooth
from poise.objectives.keep_label import KeepLabel
from poise.objectives.kl_divergence import KLDivergence
from poise.objectives.lowest import MinConfidence, RandomConfidence
from poise.objectives.max_confidence import MaxConfidence
from poise.objectives.misclassification import (
    CrossEntropy,
    Margin,
    Misclassify,
    ProbabilityMargin,
    Targeted,
    TowardsClass,
)
from poise.objectives.moved import Moved
from poise.objectives.through_temperature import ThroughTemperature
from poise.objectives.unconditional import Unconditional

OBJECTIVES = {
    kind.__name__: kind
    for kind in (
        UCA, OCA, MMA, RCA, ConfSmooth, MinConfidence, RandomConfidence, KeepLabel, ThroughTemperature, Moved,
        Margin, ProbabilityMargin, CrossEntropy, Misclassify, Targeted, TowardsClass, MaxConfidence,
        KLDivergence, Unconditional,
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
    "KLDivergence",
    "KeepLabel",
    "Margin",
    "MaxConfidence",
    "MinConfidence",
    "Misclassify",
    "Moved",
    "Objective",
    "ProbabilityMargin",
    "RandomConfidence",
    "Targeted",
    "ThroughTemperature",
    "TowardsClass",
    "Unconditional",
]
