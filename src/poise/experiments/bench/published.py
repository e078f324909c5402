"""The published numbers of the papers, and which of them one of our rows is to be compared with.

published.csv holds every numeric result table of the papers, one number per row: paper, table, dataset, model, defence,
attack, norm, eps, queries, metric, value, std, note. Rates are fractions; eps is in pixel units of [0, 1]; `queries` is
the budget, empty for white-box attacks and clean rows; attack `none` is the clean model. A text after ":" in a name is
a setting ("AAA-linear:kappa40"). `note` says "suspect" where a number contradicts others of its paper, and
"ocr-uncertain" where it could not be read beyond doubt. Two of the papers print curves alone and have no rows.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import polars as pl

PAPERS = {"calibration": "calibration-attacks", "uat": "uat", "aaa": "aaa"}
"""The folder of a paper's specs to its name in published.csv; the other papers print no table."""

NAMES = ("dataset", "model", "defence", "attack")
THREAT = ("eps", "queries", "norm")
Row = dict[str, Any]


@cache
def published() -> pl.DataFrame:
    """Every published number."""
    path = files("poise.experiments").joinpath("published.csv")
    with path.open("rb") as handle:
        return pl.read_csv(handle, schema_overrides={"eps": pl.Float64, "queries": pl.Float64, "std": pl.Float64})


def table(paper: str, key: str | None) -> pl.DataFrame:
    """The rows of one table of a paper, by the folder of its specs; none where it printed no table."""
    if key is None or paper not in PAPERS:
        return published().head(0)
    return published().filter((pl.col("paper") == PAPERS[paper]) & (pl.col("table") == key))


class Lookup:
    """Published numbers of one table by the names of their rows."""

    def __init__(self, rows: pl.DataFrame) -> None:
        self._by: dict[tuple[Any, ...], list[Row]] = {}
        for row in rows.iter_rows(named=True):
            self._by.setdefault((*(row[name] for name in NAMES), row["metric"]), []).append(row)

    def find(self, names: Row, threat: Row, axes: dict[str, list[Any]]) -> Row | None:
        """The published row that one of ours stands beside.

        Args:
            names: dataset, model, defence, attack and metric, in the paper's words.
            threat: eps, queries and norm of our row.
            axes: all values that eps and queries take in ours, ascending: where neither value is one of the paper's,
                the first of ours stands beside the first of theirs and so on, if there are as many.
        """
        found = self._by.get((*(names[name] for name in NAMES), names["metric"]), [])
        for key in THREAT:
            if len(found) > 1:
                found = _nearest(found, key, threat.get(key), axes.get(key, []))
        return found[0] if len(found) == 1 else None


def _nearest(found: list[Row], key: str, value: Any, ours: list[Any]) -> list[Row]:
    same = [row for row in found if _equal(row[key], value)]
    if same:
        return same
    theirs = sorted({row[key] for row in found if row[key] is not None}, key=str if key == "norm" else float)
    if value in ours and len(theirs) == len(ours):
        return [row for row in found if row[key] == theirs[ours.index(value)]]
    return found


def _equal(theirs: Any, ours: Any) -> bool:
    if isinstance(theirs, float) and isinstance(ours, int | float):
        return abs(theirs - ours) <= 1e-5 * max(1.0, abs(ours))
    return bool(theirs == ours)
