"""The five figures by which defences are compared, each with its 95 % interval."""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from poise import metrics
from poise.experiments.measure import Figure

METRICS = ("accuracy", "ece", "ks", "nll", "brier")
"""By name; of all but the accuracy less is better."""


def figures(rows: pl.DataFrame, when: str, plan: metrics.Bootstrap) -> dict[str, Figure]:
    """Accuracy, ECE, KS error, NLL and Brier score of rows; an undefined value is None.

    Args:
        rows: columns label, and prediction, confidence, nll and brier that end in _`when`.
        when: "before" or "after".
        plan: the resamples behind the intervals.
    """
    right = (rows[f"prediction_{when}"] == rows["label"]).to_numpy().astype(np.float64)
    confidence, nll, brier = (
        rows[f"{name}_{when}"].to_numpy().astype(np.float64) for name in ("confidence", "nll", "brier")
    )
    intervals = {
        "accuracy": plan.interval(metrics.mean, right),
        "ece": plan.interval(metrics.ece, confidence, right),
        "ks": plan.interval(metrics.ks_error, confidence, right),
        "nll": plan.interval(metrics.mean, nll),
        "brier": plan.interval(metrics.mean, brier),
    }
    return {name: _figure(float(at.value), float(at.low), float(at.high)) for name, at in intervals.items()}


def worse(metric: str, one: float | None, other: float | None) -> bool:
    """Whether the first value of a metric is strictly worse than the second; an undefined one never is.

    >>> worse("ece", 0.2, 0.1), worse("accuracy", 0.2, 0.1), worse("ece", 0.1, 0.1), worse("ece", None, 0.1)
    (True, False, False, False)
    """
    if one is None:
        return False
    if other is None:
        return True
    return one < other if metric == "accuracy" else one > other


def _figure(value: float, low: float, high: float) -> Figure:
    return {name: at if math.isfinite(at) else None for name, at in (("value", value), ("low", low), ("high", high))}
