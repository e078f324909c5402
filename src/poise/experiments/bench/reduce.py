"""From finished shards to one tidy table: every metric of every cell with its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from poise import metrics
from poise.experiments.bench.plan import UNATTACKED, Cell, Plan, Shard
from poise.experiments.bench.store import Store
from poise.experiments.bench.tasks import packing

Column = NDArray[np.float64]
Row = dict[str, Any]
KEYS = ("dataset", "model", "defence", "attack", "norm", "eps", "queries", "x")
"""What names a row of a result besides its metric."""

VIEWS = {"aaa": "aaa"}
"""How a paper counts queries (`poise.metrics.QUERY_VIEWS`), by its folder; the others as the calibration attacks."""

SUMMED = ("sa-mma", "sa-rca", "sa-rca-direction")
"""Recipes whose mean query count the calibration attacks print as the sum over successes divided by all."""


class Reader:
    """Tables of finished cells.

    Args:
        plan: what was asked. store: where it lies.
    """

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan, self.store = plan, store
        self._there = store.finished()

    def content(self, shard: Shard, name: str) -> bytes | None:
        """One file of a shard; None where the shard is not there, or has no such file.

        Raises:
            RunError: it is damaged.
        """
        key = shard.key(self.plan.place)
        return self.store.read(key, name) if key in self._there else None

    def table(self, cell: Cell, name: str) -> pl.DataFrame | None:
        """One kind of table of a cell, shard after shard; None where one is not there yet."""
        parts = [self.content(shard, name) for shard in cell.shards]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts) or not found:
            return None
        return pl.concat([packing.read_table(part) for part in found])

    def tables(self, cells: list[Cell], name: str) -> list[pl.DataFrame]:
        """The same of several cells; none at all where one is not complete."""
        frames = [self.table(cell, name) for cell in cells]
        found = [frame for frame in frames if frame is not None]
        return found if len(found) == len(frames) else []


def tidy(plan: Plan, store: Store) -> pl.DataFrame:
    """One row per cell (seeds together) and metric: keys, metric, value, low, high, n, seeds.

    The value is the mean over the seeds. The limits are those of a 95 % bootstrap over images: with several seeds the
    means of each seed's limits, which is no narrower than the interval of the mean.
    """
    rows: list[Row] = []
    reader, sampled = Reader(plan, store), metrics.Bootstrap(resamples=plan.profile.bootstrap, seed=0)
    for group in groups(plan):
        rows += _rows(reader, group, sampled)
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


SCHEMA: dict[str, pl.DataType] = {
    **{name: pl.String() for name in ("dataset", "model", "defence", "attack", "norm")},
    **{name: pl.Float64() for name in ("eps", "queries", "x")},
    "metric": pl.String(),
    **{name: pl.Float64() for name in ("value", "low", "high")},
    "n": pl.Int64(),
    "seeds": pl.Int64(),
}
"""Columns of a tidy result."""


@dataclass(frozen=True)
class Group:
    """Cells that differ in their seed alone.

    Args:
        cells: at least one.
        tells_clean: what was not attacked is told by these cells: the first of their victim behind their defence.
    """

    cells: list[Cell]
    tells_clean: bool


def groups(plan: Plan) -> list[Group]:
    """The cells of a plan, seeds together, in the order of the grid."""
    found: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in plan.cells:
        found.setdefault((*(cell.keys[name] for name in KEYS), id(cell.victim)), []).append(cell)
    parted: list[Group] = []
    told: set[tuple[int, str]] = set()
    for cells in found.values():
        model = id(cells[0].victim), cells[0].defence.name
        parted.append(Group(cells, tells_clean=model not in told))
        told.add(model)
    return parted


def _rows(reader: Reader, group: Group, sampled: metrics.Bootstrap) -> Iterator[Row]:
    """The rows of one attack, with those of the clean model before them where these cells tell them."""
    plan, cells = reader.plan, group.cells
    if plan.spec.task not in ("attack", "noop"):
        yield from _ready(reader, cells)
        return
    found = reader.tables(cells, "rows.parquet")
    if not found or not all(len(frame) for frame in found):
        return
    cell = cells[0]
    keys = {name: cell.keys[name] for name in KEYS}
    wanted = _wanted(plan)
    after = [_columns(frame, "after") for frame in found]
    if group.tells_clean and cell.attack is not None:
        bare = keys | UNATTACKED
        before = [_columns(frame, "before") for frame in found]
        yield from _measured(bare, wanted, before, sampled, {})
        yield from _costs(reader, cells, bare)
    yield from _measured(keys, wanted, after, sampled, _averages(plan, cell))
    yield from _curves(reader, cells, keys, wanted, sampled)


def _ready(reader: Reader, cells: list[Cell]) -> Iterator[Row]:
    """What a task has measured itself: metrics.parquet with keys of its own, metric, value, low, high."""
    found = reader.tables(cells, "metrics.parquet")
    if not found:
        return
    keys = {name: cells[0].keys[name] for name in KEYS}
    own = [name for name in found[0].columns if name in KEYS]
    parts = ("value", "low", "high")
    weighted = [(pl.col(name) * pl.col("n")).sum() / pl.col("n").sum() for name in parts]  # shards of one seed
    seeds = [frame.group_by(*own, "metric", maintain_order=True).agg(*weighted, pl.col("n").sum()) for frame in found]
    means = [*(pl.col(name).mean() for name in parts), pl.col("n").first()]
    for row in pl.concat(seeds).group_by(*own, "metric", maintain_order=True).agg(*means).iter_rows(named=True):
        yield keys | row | {"seeds": len(found)}


def _wanted(plan: Plan) -> tuple[str, ...]:
    """The metrics that the table and the figure of a spec show, and those that its trends compare."""
    spec = plan.spec
    names = (*(spec.table.metrics if spec.table else ()), *(spec.figure.y if spec.figure else ()))
    return tuple(dict.fromkeys((*names, *(trend.metric for trend in spec.trends))))


def _columns(frame: pl.DataFrame, when: str) -> dict[str, Column]:
    label = frame["label"]
    success = frame["queries_to_success"].is_not_null()
    spent = frame.select(pl.coalesce("queries_to_success", "queries")).to_series()
    found = {
        "confidence": frame[f"confidence_{when}"],
        "right": frame[f"prediction_{when}"] == label,
        "right_before": frame["prediction_before"] == label,
        "queries": spent,
        "success": success,
        "delta_w": frame["delta_w"],
        "ssim": frame["ssim"],
        "brier": frame[f"brier_{when}"],
        "nll": frame[f"nll_{when}"],
    }
    return {name: column.cast(pl.Float64).to_numpy() for name, column in found.items()}


PER_IMAGE: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "accuracy": (metrics.mean, ("right",)),
    "adv_accuracy": (metrics.mean, ("right",)),
    "ece": (metrics.ece, ("confidence", "right")),
    "ks": (metrics.ks_error, ("confidence", "right")),
    "avg_confidence": (metrics.mean, ("confidence",)),
    "confidence_right": (metrics.mean, ("confidence", "right_before")),
    "delta_w": (metrics.mean, ("delta_w",)),
    "ssim": (metrics.mean, ("ssim",)),
    "brier": (metrics.mean, ("brier",)),
    "nll": (metrics.mean, ("nll",)),
    "success": (metrics.mean, ("success",)),
}
"""Metrics of one attack's rows: function and columns."""

AFTER_ONLY = ("adv_accuracy", "delta_w", "ssim", "success", "avg_queries", "median_queries")
COUNTED = ("avg_queries", "median_queries")
ELSEWHERE = ("n_points", "inference_ms", "gflops")
METRICS = (*PER_IMAGE, *COUNTED, *ELSEWHERE)
"""Every metric that a table of attacks may show."""


def _measured(
    keys: Row,
    wanted: tuple[str, ...],
    seeds: list[dict[str, Column]],
    sampled: metrics.Bootstrap,
    averages: dict[str, Callable[[dict[str, Column]], float]],
) -> Iterator[Row]:
    clean, n = keys["attack"] == "none", len(seeds[0]["right"])
    for name in wanted:
        if clean and name in AFTER_ONLY:
            continue
        if name in PER_IMAGE:
            function, columns = PER_IMAGE[name]
            spans = [sampled.interval(function, *(seed[column] for column in columns)) for seed in seeds]
            limits = [[float(getattr(span, part)) for span in spans] for part in ("value", "low", "high")]
        elif name in averages:
            limits = [[averages[name](seed) for seed in seeds], [math.nan], [math.nan]]
        elif name == "n_points":
            limits = [[float(n)], [math.nan], [math.nan]]
        else:
            continue
        value, low, high = (_number(float(np.mean(part))) for part in limits)
        yield keys | {"metric": name, "value": value, "low": low, "high": high, "n": n, "seeds": len(seeds)}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _averages(plan: Plan, cell: Cell) -> dict[str, Callable[[dict[str, Column]], float]]:
    """The query counts as the paper of the spec counts them."""
    view = metrics.QUERY_VIEWS[VIEWS.get(plan.spec.paper, "calibration")]
    recipe = "" if cell.attack is None else cell.attack.recipe
    mean = "success_sum_over_all" if recipe in SUMMED else "mean_success"
    if plan.spec.paper == "aaa":
        mean = "mean_all"

    def count(which: str, columns: dict[str, Column]) -> float:
        found = view.statistics(columns["queries"], columns["success"], columns["right_before"])
        return float(getattr(found, which))

    return {"avg_queries": partial(count, mean), "median_queries": partial(count, "median_success")}


def _costs(reader: Reader, cells: list[Cell], keys: Row) -> Iterator[Row]:
    found = reader.tables(cells, "costs.parquet")
    if not found:
        return
    table = pl.concat(found)
    for name in _wanted(reader.plan):
        if name in table.columns and table[name].null_count() < len(table):
            value = float(table[name].drop_nulls().median())  # type: ignore[arg-type]
            yield keys | {"metric": name, "value": value, "n": len(table), "seeds": len(found)}


def _curves(
    reader: Reader, cells: list[Cell], keys: Row, wanted: tuple[str, ...], sampled: metrics.Bootstrap
) -> Iterator[Row]:
    """The same metrics at the checkpoints before the budget."""
    checkpoints = reader.plan.profile.checkpoints
    if not checkpoints or not cells[0].budgeted:
        return
    found = reader.tables(cells, "curve.parquet")
    for queries in sorted({*checkpoints} - {cells[0].budget}):
        parts = [frame.filter(pl.col("queries") == queries) for frame in found]
        if not parts or any(len(part) == 0 for part in parts):
            continue
        columns = [
            {
                "confidence": part["confidence"].to_numpy(),
                "right": (part["prediction"] == part["label"]).cast(pl.Float64).to_numpy(),
            }
            for part in parts
        ]
        some = tuple(name for name in wanted if name in PER_IMAGE and {*PER_IMAGE[name][1]} <= {*columns[0]})
        yield from _measured(keys | {"queries": queries}, some, columns, sampled, {})
