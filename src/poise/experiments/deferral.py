"""Selective prediction under attack: what each threshold accepts, defers and costs, and the one for the worst case."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from poise import metrics

GRID = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Thresholds of every table, besides the run's own and those that cost least."""

CLEAN = "clean"
"""The name of the case without an attack."""

Column = NDArray[np.float64]
Columns = tuple[Column, Column]


def deferral_section(
    tables: dict[str, pl.DataFrame], *, threshold: float, costs: metrics.Costs | None
) -> dict[str, Any]:
    """The deferral table of one model: without an attack and under each, on a few thresholds.

    Args:
        tables: the rows of each recipe on this model; the clean answers are those of the first.
        threshold: the run's own.
        costs: what a case costs; None leaves costs out.

    Returns:
        plain data: `rows`, one a threshold and case with coverage, risk, deferred and cost (mean of a case, None where
        undefined); with costs also `best_clean` (the cheapest threshold without an attack, its cost there and in the
        worst case) and `worst_case` (the threshold whose worst case is the cheapest).
    """
    cases, labels = _cases(tables)
    found: dict[str, Any] = {}
    marked = {threshold}
    if costs is not None:
        best = metrics.worst_case_threshold(cases, costs, labels)
        alone = metrics.least_cost_threshold(*cases[CLEAN], costs, labels)
        there = {name: metrics.expected_cost(*part, alone[0], costs, labels) for name, part in cases.items()}
        worst = max(there, key=lambda name: there[name])
        found["best_clean"] = {"threshold": alone[0], "cost": alone[1], "worst": there[worst], "case": worst}
        found["worst_case"] = {
            "threshold": best.threshold,
            "cost": best.cost,
            "case": best.case,
            "clean": best.costs[CLEAN],
        }
        marked |= {alone[0], best.threshold}
    at = np.array(sorted(marked.union(GRID)))
    found["rows"] = [line for name, part in cases.items() for line in _lines(name, part, at, costs, labels)]
    return found


def _cases(tables: dict[str, pl.DataFrame]) -> tuple[dict[str, Columns], Column]:
    """Confidence and right by case, clean first, all in the order of the ids; and the labels."""
    ordered = {name: rows.sort("id") for name, rows in tables.items()}
    first = next(iter(ordered.values()))
    found = {CLEAN: _columns(first, "before")}
    found |= {name: _columns(rows, "after") for name, rows in ordered.items()}
    return found, first["label"].to_numpy().astype(np.float64)


def _columns(rows: pl.DataFrame, when: str) -> Columns:
    right = (rows[f"prediction_{when}"] == rows["label"]).to_numpy().astype(np.float64)
    return rows[f"confidence_{when}"].to_numpy().astype(np.float64), right


def _lines(name: str, part: Columns, at: Column, costs: metrics.Costs | None, labels: Column) -> list[dict[str, Any]]:
    table = metrics.deferral(*part, at, costs=costs, labels=labels)
    kept = ("threshold", "coverage", "risk", "accepted_right", "accepted_wrong", "deferred", "cost")
    columns = zip(*(getattr(table, column).tolist() for column in kept), strict=True)
    return [{"case": name} | {key: _known(x) for key, x in zip(kept, line, strict=True)} for line in columns]


def _known(number: float) -> float | None:
    return number if math.isfinite(number) else None
