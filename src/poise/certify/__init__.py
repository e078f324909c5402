"""Bounds on confidence under Gaussian smoothing: what no attacker within an l2 ball can change, proved from draws."""

from poise.certify.attacked import ClassScore, Smoothed
from poise.certify.bounds import cdf_lower, cdf_upper, dkw_epsilon, naive_lower, naive_upper
from poise.certify.calibration import (
    certified_brier,
    certified_brier_rows,
    certified_ece,
    certified_gap_rows,
    mean_with_abstentions_as_zero,
    mean_without_abstentions,
    worst_ece_found,
)
from poise.certify.certificates import GROUP, Certificate, certificates, certify
from poise.certify.measures import MARGIN, MEASURES, PRED_SCORE, Measure
from poise.certify.noise import Noise
from poise.certify.scores import Scores
from poise.certify.stream import BINS, EXACT, Smoothing, Stream

__all__ = [
    "BINS",
    "EXACT",
    "GROUP",
    "MARGIN",
    "MEASURES",
    "PRED_SCORE",
    "Certificate",
    "ClassScore",
    "Measure",
    "Noise",
    "Scores",
    "Smoothed",
    "Smoothing",
    "Stream",
    "cdf_lower",
    "cdf_upper",
    "certificates",
    "certified_brier",
    "certified_brier_rows",
    "certified_ece",
    "certified_gap_rows",
    "certify",
    "dkw_epsilon",
    "mean_with_abstentions_as_zero",
    "mean_without_abstentions",
    "naive_lower",
    "naive_upper",
    "worst_ece_found",
]
