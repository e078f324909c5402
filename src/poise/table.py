"""The result table: one row per (attack, sample). Metrics take its columns; reports read only it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
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
    "zero_gradients": pl.Int64(),  # how many of those were zero everywhere
    "improved_at": pl.Int64(),  # queries when the returned image was found, 1 where it is the clean one
    "wrong_confidence": pl.Float64(),  # highest probability of a wrong class seen (MaxConfidence), else null
    "linf": pl.Float64(),  # largest pixel change, in units of the pixel range's numbers
    "l2": pl.Float64(),  # Euclidean length of the change
    "stop": pl.String(),  # "success", "budget" or "finished" (the search ended by itself)
    "seconds": pl.Float64(),  # this sample's share of the wall time
    "seed": pl.Int64(),
    "spec": pl.String(),  # fingerprint of objective, search, constraint and budget
}
"""Columns and their types; every table that poise writes has at least these."""


def rows(columns: dict[str, Any], count: int) -> pl.DataFrame:
    """A result table of `count` rows from arrays (count,), or one value for all rows; in order, of the right types."""
    return pl.DataFrame([_column(name, columns[name], count, kind) for name, kind in SCHEMA.items()])


def _column(name: str, values: Any, count: int, kind: pl.DataType) -> pl.Series:
    if isinstance(values, np.ndarray | list | pl.Series):
        return pl.Series(name, values, strict=False).cast(kind)
    return pl.Series(name, [values], dtype=kind).new_from_index(0, count)


def joined(parts: Sequence[pl.DataFrame], schema: dict[str, pl.DataType]) -> pl.DataFrame:
    """The tables below one another; without any, one without rows."""
    return parts[0] if len(parts) == 1 else pl.concat(parts) if parts else pl.DataFrame(schema=schema)


CURVE: dict[str, pl.DataType] = {
    "id": pl.Int64(),
    "queries": pl.Int64(),  # forward passes spent on this sample
    "confidence": pl.Float64(),  # of the best point found so far
    "prediction": pl.Int64(),
}
"""Columns of the curve over queries, one row per (checkpoint, sample)."""


def cast_curve(frame: pl.DataFrame) -> pl.DataFrame:
    """frame with the curve's columns, in order and of the right types."""
    return frame.select(pl.col(name).cast(kind) for name, kind in CURVE.items())


TRACE: dict[str, pl.DataType] = {
    "id": pl.Int64(),
    "iteration": pl.Int64(),  # 0 is the clean image
    "queries": pl.Int64(),  # forward passes spent on this sample
    "margin": pl.Float64(),  # logit of the clean prediction minus the highest other one; negative where it flipped
    "confidence": pl.Float64(),  # probability of the clean prediction
    "loss": pl.Float64(),  # what the search follows
    "step": pl.Float64(),  # length of the step that led here, in units of eps's; null where a search has none
}
"""Columns of the trace, one row per point that was asked for."""


def cast_trace(frame: pl.DataFrame) -> pl.DataFrame:
    """frame with the trace's columns, in order and of the right types."""
    return frame.select(pl.col(name).cast(kind) for name, kind in TRACE.items())


CELLS = 2**26
"""Rows times columns of a table in a file, at most: one that repeats itself packs into almost nothing."""


def read_parquet(source: Path | IO[bytes]) -> pl.DataFrame:
    """A table from a parquet file of at most `CELLS` cells.

    Raises:
        OSError: the file cannot be read.
        PolarsError: it is damaged, no parquet, or larger.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = pl.scan_parquet(source, glob=False)
            rows, columns = table.select(pl.len()).collect().item(), len(table.collect_schema())
            if rows * columns > CELLS:
                raise pl.exceptions.ComputeError(f"{rows} rows of {columns} columns are too many")
            return table.collect()
    except pl.exceptions.PanicException as error:
        raise pl.exceptions.ComputeError(str(error)) from None
