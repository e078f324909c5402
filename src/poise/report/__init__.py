"""The report of an audit: its page, its tables and its words, all made from the run folder only."""

from poise.report.confidence_figures import confidence_histograms, reliability
from poise.report.cost_figures import Cost, accuracy_over_queries, confidence_over_queries, cost, ece_over_queries
from poise.report.curve_figures import risk_coverage, success_fail
from poise.report.folder import Answers, read_summary
from poise.report.page import write
from poise.report.tables import csv, markdown
from poise.report.trace_figures import attack_trace
from poise.report.verdict import verdict

__all__ = [
    "Answers",
    "Cost",
    "accuracy_over_queries",
    "attack_trace",
    "confidence_histograms",
    "confidence_over_queries",
    "cost",
    "csv",
    "ece_over_queries",
    "markdown",
    "read_summary",
    "reliability",
    "risk_coverage",
    "success_fail",
    "verdict",
    "write",
]
