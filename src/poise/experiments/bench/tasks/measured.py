"""What tasks share that measure for themselves: the settings of one of many attacks, and metrics with intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from poise import metrics
from poise.experiments.bench.plan import Plain, by_gradients

Row = dict[str, Any]

SCHEMA: dict[str, pl.DataType] = {
    **{name: pl.String() for name in ("defence", "attack", "norm")},
    **{name: pl.Float64() for name in ("eps", "queries", "x")},
    "metric": pl.String(),
    **{name: pl.Float64() for name in ("value", "low", "high")},
    "n": pl.Int64(),
}
"""Columns of metrics.parquet; of the keys (defence, attack, norm, eps, queries, x) only those that a task sets."""

RESAMPLES = 1000
"""Behind the 95 % intervals of images."""


def table(rows: list[Row]) -> pl.DataFrame:
    """The rows as a table with the columns of `SCHEMA` that the first of them has."""
    return pl.DataFrame(rows, schema={name: kind for name, kind in SCHEMA.items() if name in rows[0]}, orient="row")


def mean(values: ArrayLike) -> Row:
    """Mean of a column (n,) with its 95 % bootstrap interval over images; NaN counts as unknown and is left out."""
    column = np.asarray(values, dtype=np.float64)
    column = column[np.isfinite(column)]
    if not len(column):
        return {"value": None, "low": None, "high": None, "n": 0}
    found = metrics.Bootstrap(resamples=RESAMPLES, seed=0).interval(metrics.mean, column)
    return {"value": found.value, "low": found.low, "high": found.high, "n": len(column)}


def of_attack(settings: Plain, one: Plain) -> Plain:
    """The settings of a cell as those of one of its attacks, as `tasks.attack.run` takes them."""
    own = {key: one[key] for key in ("norm", "eps", "budget", "steps") if one[key] is not None}
    return settings | own | {"attack": one}


def threat(settings: Plain) -> Row:
    """The keys of an attack's rows: its name, norm and radius, and its queries where these limit it."""
    one = settings["attack"]
    return {
        "attack": one["name"],
        "norm": settings["norm"],
        "eps": settings["eps"],
        "queries": None if by_gradients(one["recipe"]) else float(settings["budget"]),
    }
