"""The result table: one row per (attack, sample). Metrics take its columns; reports read only it."""

from __future__ import annotations

import polars as pl

SCHEMA: dict[str, pl.DataType] = {
    "id": pl.Int64(),  # the caller's name of the sample
    "label": pl.Int64(),  # the true class
    "prediction_before": pl.Int64(),  # class of highest score at the clean image
    "prediction_after": pl.Int64(),
    "confidence_before": pl.Float64(),  # probability of that class, in [1/K, 1]
    "confidence_after": pl.Float64(),
    "loss_before": pl.Float64(),  # the objective's merit, lower is better for the attacker
    "loss_after": pl.Float64(),
    "accepted": pl.Boolean(),  # the returned image satisfies the objective's condition
    "queries": pl.Int64(),  # forward passes asked for this sample, the clean one included
    "queries_to_success": pl.Int64(),  # queries when the objective was first reached, null if never
    "gradients": pl.Int64(),  # backward passes
    "linf": pl.Float64(),  # largest pixel change, in units of the pixel range's numbers
    "l2": pl.Float64(),  # Euclidean length of the change
    "stop": pl.String(),  # "success", "budget" or "finished" (the search ended by itself)
    "seconds": pl.Float64(),  # this sample's share of the wall time
    "seed": pl.Int64(),
    "spec": pl.String(),  # fingerprint of objective, search, constraint and budget
}
"""Columns and their types; every table that poise writes has at least these."""


def empty() -> pl.DataFrame:
    """A result table without rows."""
    return pl.DataFrame(schema=SCHEMA)


CURVE: dict[str, pl.DataType] = {
    "id": pl.Int64(),
    "queries": pl.Int64(),  # forward passes spent on this sample
    "confidence": pl.Float64(),  # of the best point found so far
    "prediction": pl.Int64(),
}
"""Columns of the curve over queries, one row per (checkpoint, sample)."""


def empty_curve() -> pl.DataFrame:
    """A curve without rows."""
    return pl.DataFrame(schema=CURVE)


def cast_curve(frame: pl.DataFrame) -> pl.DataFrame:
    """frame with the curve's columns, in order and of the right types."""
    return frame.select(pl.col(name).cast(kind) for name, kind in CURVE.items())
