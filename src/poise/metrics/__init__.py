"""How well confidence is calibrated, what a threshold does, what an attack costs: pure functions on numpy columns.

Unless said otherwise a metric takes `confidence` (n,) in [0, 1] and `correct` (n,) in {0, 1} and returns a float.
"""

from poise.metrics._bins import Edges
from poise.metrics.averages import mean
from poise.metrics.binned import average_bin_error, classwise_ece, ece, mce
from poise.metrics.bounds import mma_bound, mma_ks
from poise.metrics.deferral import Deferral, WorstCase, deferral, worst_case_threshold
from poise.metrics.detection import (
    SEPARATION,
    accuracy_at_threshold,
    auroc,
    detection_accuracy,
    false_positive_rate,
    separation,
)
from poise.metrics.equal_mass import adaptive_ece, debiased_ece
from poise.metrics.ks import ks_error
from poise.metrics.operating import (
    Costs,
    OperatingPoint,
    expected_cost,
    least_cost_threshold,
    mean_costs,
    operating_point,
    operating_shares,
)
from poise.metrics.perturbation import delta_w, map_correlation, map_overlap, ssim
from poise.metrics.proper import brier, brier_rows, nll, nll_rows, top_label_brier
from poise.metrics.query_counts import (
    QUERY_VIEWS,
    QueryStatistics,
    QueryView,
    mean_all,
    mean_success,
    median_success,
    query_statistics,
    success_sum_over_all,
)
from poise.metrics.reliability_bins import Reliability, reliability
from poise.metrics.resampling import Bootstrap, Interval, bootstrap
from poise.metrics.selective import RiskCoverage, aurc, risk_coverage
from poise.metrics.smooth import smooth_ece
from poise.metrics.streamed import Streamed, StreamedIntervals, success_fail_streamed
from poise.metrics.success_fail_curve import SuccessFail, success_fail

__all__ = [
    "QUERY_VIEWS",
    "SEPARATION",
    "Bootstrap",
    "Costs",
    "Deferral",
    "Edges",
    "Interval",
    "OperatingPoint",
    "QueryStatistics",
    "QueryView",
    "Reliability",
    "RiskCoverage",
    "Streamed",
    "StreamedIntervals",
    "SuccessFail",
    "WorstCase",
    "accuracy_at_threshold",
    "adaptive_ece",
    "aurc",
    "auroc",
    "average_bin_error",
    "bootstrap",
    "brier",
    "brier_rows",
    "classwise_ece",
    "debiased_ece",
    "deferral",
    "delta_w",
    "detection_accuracy",
    "ece",
    "expected_cost",
    "false_positive_rate",
    "ks_error",
    "least_cost_threshold",
    "map_correlation",
    "map_overlap",
    "mce",
    "mean",
    "mean_all",
    "mean_costs",
    "mean_success",
    "median_success",
    "mma_bound",
    "mma_ks",
    "nll",
    "nll_rows",
    "operating_point",
    "operating_shares",
    "query_statistics",
    "reliability",
    "risk_coverage",
    "separation",
    "smooth_ece",
    "ssim",
    "success_fail",
    "success_fail_streamed",
    "success_sum_over_all",
    "top_label_brier",
    "worst_case_threshold",
]
