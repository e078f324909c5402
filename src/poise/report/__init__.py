"""The report of an audit: its page, its tables and its words, all made from the run folder only."""

from poise.report.confidence_figures import confidence_histograms, reliability
from poise.report.cost_figures import Cost, accuracy_over_queries, confidence_over_queries, cost, ece_over_queries
from poise.report.curve_figures import risk_coverage, success_fail
from poise.report.explain_cams import cam_maps, cam_similarity
from poise.report.explain_features import feature_map
from poise.report.explain_folder import Explanation, read_explanation
from poise.report.explain_perturbations import perturbation_maps
from poise.report.explain_scores import score_change, score_groups
from poise.report.folder import Answers, read_summary
from poise.report.page import write
from poise.report.tables import csv, markdown
from poise.report.threshold_figures import cost_over_threshold
from poise.report.trace_figures import attack_trace, crossings
from poise.report.verdict import verdict

__all__ = [
    "Answers",
    "Cost",
    "Explanation",
    "accuracy_over_queries",
    "attack_trace",
    "cam_maps",
    "cam_similarity",
    "confidence_histograms",
    "confidence_over_queries",
    "cost",
    "cost_over_threshold",
    "crossings",
    "csv",
    "ece_over_queries",
    "feature_map",
    "markdown",
    "perturbation_maps",
    "read_explanation",
    "read_summary",
    "reliability",
    "risk_coverage",
    "score_change",
    "score_groups",
    "success_fail",
    "verdict",
    "write",
]
