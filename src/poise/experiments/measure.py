"""From result rows to figures with intervals: every metric of one attack, on shared resamples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from poise import metrics

Column = NDArray[np.float64]
Figure = dict[str, float | None]


def _columns(rows: pl.DataFrame) -> dict[str, Column]:
    """What the metrics need, as float64 columns of one attack's rows."""
    label = rows["label"]
    found = {
        name: rows[name].to_numpy().astype(np.float64)
        for name in ("confidence_before", "confidence_after", "brier_before", "brier_after", "nll_before", "nll_after")
    }
    for when in ("before", "after"):
        found[f"right_{when}"] = (rows[f"prediction_{when}"] == label).to_numpy().astype(np.float64)
    found["changed"] = (rows["prediction_after"] != rows["prediction_before"]).to_numpy().astype(np.float64)
    found["success"] = rows["queries_to_success"].is_not_null().to_numpy().astype(np.float64)
    spent = rows.select(pl.coalesce("queries_to_success", "queries")).to_series()
    found["queries"] = spent.to_numpy().astype(np.float64)
    for name in ("gradients", "delta_w", "ssim"):
        found[name] = rows[name].to_numpy().astype(np.float64)
    return found


Plan = list[tuple[str, Callable[..., Any], tuple[str, ...]]]


def _plan(threshold: float) -> Plan:
    """Metric name, function and columns; a function that returns several values stands for several names, by |."""
    shares = partial(metrics.operating_shares, threshold=threshold)
    plan: Plan = []
    for when in ("before", "after"):
        confidence, right = f"confidence_{when}", f"right_{when}"
        plan += [
            (f"accuracy_{when}", metrics.mean, (right,)),
            (f"ece_{when}", metrics.ece, (confidence, right)),
            (f"ks_{when}", metrics.ks_error, (confidence, right)),
            (f"brier_{when}", metrics.mean, (f"brier_{when}",)),
            (f"nll_{when}", metrics.mean, (f"nll_{when}",)),
            (confidence, metrics.mean, (confidence,)),
            (f"confidence_right_{when}", metrics.mean, (confidence, right)),
            (f"confidence_wrong_{when}", metrics.mean, (confidence, f"wrong_{when}")),
            (f"accepted_right_{when}|accepted_wrong_{when}|deferred_{when}", shares, (confidence, right)),
        ]
    plan += [
        ("labels_changed", metrics.mean, ("changed",)),
        ("success_rate", metrics.mean, ("success",)),
        ("queries_mean_success", metrics.mean_success, ("queries", "success")),
        ("queries_median_success", metrics.median_success, ("queries", "success")),
        ("queries_mean_all", metrics.mean_all, ("queries", "success")),
        ("queries_success_sum_over_all", metrics.success_sum_over_all, ("queries", "success")),
        ("gradients_mean", metrics.mean, ("gradients",)),
        ("delta_w", metrics.mean, ("delta_w",)),
        ("ssim", metrics.mean, ("ssim",)),
    ]
    return plan


METRICS: tuple[str, ...] = (
    *(name for names, _, _ in _plan(0.5) for name in names.split("|")),
    "ece_change",
    "bound_share",
    "linf_max",
)
"""Every metric of an audit, by the name it has in summary.json and in gate files."""


def measure(rows: pl.DataFrame, *, threshold: float, num_classes: int, plan: metrics.Bootstrap) -> dict[str, Figure]:
    """Every metric of one attack's rows with its 95 % interval; undefined values are None."""
    columns = _columns(rows)
    for when in ("before", "after"):
        columns[f"wrong_{when}"] = 1 - columns[f"right_{when}"]
    found: dict[str, Figure] = {}
    for names, metric, wanted in _plan(threshold):
        interval = plan.interval(metric, *(columns[name] for name in wanted))
        parts = (np.atleast_1d(interval.value), np.atleast_1d(interval.low), np.atleast_1d(interval.high))
        for name, value, low, high in zip(names.split("|"), *parts, strict=True):
            found[name] = _figure(float(value), float(low), float(high))
    before, after = ((columns[f"confidence_{when}"], columns[f"right_{when}"]) for when in ("before", "after"))
    change = plan.change(metrics.ece, before, after)
    found["ece_change"] = _figure(change.value, change.low, change.high)
    bound = metrics.mma_bound(float(columns["right_before"].mean()), num_classes)
    found["bound_share"] = {key: None if at is None else at / bound for key, at in found["ece_after"].items()}
    found["linf_max"] = _figure(float(rows["linf"].to_numpy().max()), math.nan, math.nan)
    return {name: found[name] for name in METRICS}


def query_views(rows: pl.DataFrame) -> dict[str, dict[str, float | None]]:
    """The four averages of the query count under each paper's convention (`poise.metrics.QUERY_VIEWS`)."""
    columns = _columns(rows)
    found = {
        name: dataclasses.asdict(view.statistics(columns["queries"], columns["success"], columns["right_before"]))
        for name, view in metrics.QUERY_VIEWS.items()
    }
    return {
        view: {name: at if math.isfinite(at) else None for name, at in averages.items()}
        for view, averages in found.items()
    }


def _figure(value: float, low: float, high: float) -> Figure:
    return {name: at if math.isfinite(at) else None for name, at in (("value", value), ("low", low), ("high", high))}
