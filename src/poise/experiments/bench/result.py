"""A result: one tidy table beside the published numbers, and all that is needed to repeat it; two small files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from poise.errors import RunError, brief
from poise.experiments import files
from poise.experiments.bench.keys import fingerprint_files
from poise.experiments.bench.plan import Plan
from poise.experiments.bench.published import Lookup, Row, table
from poise.experiments.bench.reduce import SCHEMA, tidy
from poise.experiments.bench.run import about_plan
from poise.experiments.bench.spec import BenchSpec
from poise.experiments.bench.store import Store

COLUMNS: dict[str, pl.DataType] = {
    **SCHEMA,
    "published": pl.Float64(),
    "published_std": pl.Float64(),
    "published_note": pl.String(),
    "published_as": pl.String(),
}
DIGITS = 6
"""Significant digits of what is stored: beyond them a repetition on another machine differs."""


@dataclass(frozen=True)
class Result:
    """What a spec came to.

    Args:
        name: PAPER/NAME. spec: the spec.
        rows: tidy, `COLUMNS`.
        points: what a figure draws that no metric says; empty where it needs none.
        about: profile, fingerprint, cells done and in all, files, versions, machine, date, seconds.
    """

    name: str
    spec: BenchSpec
    rows: pl.DataFrame
    points: pl.DataFrame
    about: dict[str, Any]


def collect(name: str, plan: Plan, store: Store) -> Result:
    """What the finished shards of a plan say.

    Raises:
        RunError: nothing is finished yet.
    """
    from poise.experiments.bench.points import points

    rows, drawn = tidy(plan, store), points(plan, store)
    if len(rows) == 0 and len(drawn) == 0:
        raise RunError(f"table: '{store.root}' must hold a finished cell of {name}, found none; run it first")
    about = about_plan(plan) | _made(plan, store)
    return Result(name, plan.spec, _rounded(_beside(rows, plan)), _rounded(drawn), about)


def _made(plan: Plan, store: Store) -> dict[str, Any]:
    there = store.finished()
    keys = [shard.key(plan.place) for shard in plan.shards()]
    done = [key for key in keys if key in there]
    seconds = sum(float(store.about(key)["about"]["seconds"]) for key in done)
    addresses = sorted({at for cell in plan.cells for shard in cell.shards for at in shard.addresses()})
    return {
        "done": len(done),
        "seconds": round(seconds, 1),
        "created": datetime.now(UTC).strftime("%Y-%m-%d"),
        "files": {at: found for at in addresses if (found := fingerprint_files(plan.place.address(at)))},
    }


def _rounded(frame: pl.DataFrame) -> pl.DataFrame:
    floats = [name for name, kind in frame.schema.items() if kind == pl.Float64()]
    return frame.with_columns(pl.col(name).round_sig_figs(DIGITS) for name in floats)


def _beside(rows: pl.DataFrame, plan: Plan) -> pl.DataFrame:
    """The published number of every row that has one."""
    lookup = Lookup(table(plan.spec.paper, plan.spec.key))
    names = _paper_names(plan)
    axes = {key: sorted(rows[key].drop_nulls().unique().to_list()) for key in ("eps", "queries")}
    found: list[Row] = []
    for row in rows.iter_rows(named=True):
        own = {key: row[key] for key in ("dataset", "model", "defence", "attack")}
        theirs = own | names.get(tuple(own.values()), {}) | {"metric": row["metric"]}
        at = lookup.find(theirs, row, axes)
        found.append(
            {
                "published": None if at is None else at["value"],
                "published_std": None if at is None else at["std"],
                "published_note": None if at is None else at["note"],
                "published_as": None if at is None else ", ".join(theirs[key] for key in own),
            }
        )
    schema = {name: COLUMNS[name] for name in COLUMNS if name.startswith("published")}
    return rows.hstack(pl.DataFrame(found, schema=schema, orient="row"))


def _paper_names(plan: Plan) -> dict[tuple[str, ...], dict[str, str]]:
    """Our names of a row to the paper's, where the spec says that they differ."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for cell in plan.cells:
        keys = cell.keys
        attack = {} if cell.attack is None else cell.attack.published
        other = {**cell.victim.published, **cell.defence.published}
        own = (keys["dataset"], keys["model"], keys["defence"])
        found[(*own, keys["attack"])] = other | attack
        found.setdefault((*own, "none"), {name: at for name, at in other.items() if name != "attack"})
    return found


def save(result: Result, folder: Path) -> Path:
    """Writes NAME.csv, NAME.points.csv where there are points, and NAME.json below the folder."""
    base = folder / result.name
    files.write_text(base.with_suffix(".csv"), as_csv(result.rows))
    if len(result.points):
        files.write_text(base.with_suffix(".points.csv"), as_csv(result.points))
    return files.write_json(base.with_suffix(".json"), result.about)


def as_csv(table: pl.DataFrame) -> str:
    """A table as CSV; a text that a spreadsheet would compute gets an apostrophe in front, which `load` takes off."""
    return table.with_columns(pl.col(pl.String).str.replace(r"^('*[=+\-@\t\r])", "'${1}")).write_csv()


def _as_it_was(table: pl.DataFrame) -> pl.DataFrame:
    return table.with_columns(pl.col(pl.String).str.replace(r"^'('*[=+\-@\t\r])", "${1}"))


def load(name: str, spec: BenchSpec, folder: Path) -> Result:
    """A saved result.

    Raises:
        RunError: it is missing or damaged.
    """
    base = folder / name
    try:
        rows = pl.read_csv(base.with_suffix(".csv"), schema_overrides=COLUMNS)
        drawn = base.with_suffix(".points.csv")
        points = pl.read_csv(drawn, infer_schema_length=None) if drawn.exists() else pl.DataFrame()
        about = json.loads(base.with_suffix(".json").read_text(encoding="utf-8"))
        if missing := [column for column in COLUMNS if column not in rows.columns]:
            raise ValueError(f"no column {missing[0]}")
        if not isinstance(about, dict):
            raise ValueError("a .json that is no object")
    except (OSError, ValueError, RecursionError, pl.exceptions.PolarsError) as error:
        raise RunError(f"results: '{base}.csv' must be a saved result of {name}, got: {brief(error)}") from None
    return Result(name, spec, _as_it_was(rows), _as_it_was(points), about)


def mark(row: Row) -> str:
    """How a row stands to the published value: "" where there is none, "=" inside the interval widened by the published
    spread (twice its standard deviation), "+" ours is higher, "-" lower."""
    published, value = row["published"], row["value"]
    if published is None or value is None:
        return ""
    spread = 2 * (row["published_std"] or 0.0)
    low = value if row["low"] is None else row["low"]
    high = value if row["high"] is None else row["high"]
    if low - spread <= published <= high + spread:
        return "="
    return "+" if value > published else "-"
