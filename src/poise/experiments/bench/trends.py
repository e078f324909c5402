"""What the paper's numbers show, looked for in ours: one verdict per trend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from poise.experiments.bench.spec import Trend


@dataclass(frozen=True)
class Verdict:
    """How often a trend is there.

    Args:
        trend: which. holds: combinations of its `by` in which it is there. of: in which it could be looked for.
        against: the combinations in which it is not.
    """

    trend: Trend
    holds: int
    of: int
    against: tuple[str, ...]

    @property
    def word(self) -> str:
        """One word for a table."""
        if self.of == 0:
            return "not measured"
        return "yes" if self.holds == self.of else "no" if self.holds == 0 else "in part"


def judge(trend: Trend, rows: pl.DataFrame, value: str = "value") -> Verdict:
    """Compares, for every combination of the trend's `by`, the rows that `more` and `less` name.

    Args:
        trend: what is claimed. rows: tidy, with the keys, `metric` and the column of values.
        value: the column, "value" for ours and "published" for the paper's.
    """
    known = rows.filter((pl.col("metric") == trend.metric) & pl.col(value).is_not_null())
    high, low = _means(known, trend.more, trend.by, value), _means(known, trend.less, trend.by, value)
    common = [at for at in high if at in low]
    against = tuple(", ".join(map(str, at)) for at in common if not high[at] - low[at] > trend.at_least)
    return Verdict(trend, len(common) - len(against), len(common), against)


def _means(rows: pl.DataFrame, where: dict[str, Any], by: tuple[str, ...], value: str) -> dict[tuple[Any, ...], float]:
    for key, wanted in where.items():
        rows = rows.filter(_is(key, wanted))
    keys = [key for key in by if key not in where]
    if not keys:
        return {(): float(rows[value].mean())} if len(rows) else {}  # type: ignore[arg-type]
    return {
        tuple(row[key] for key in keys): row[value]
        for row in rows.group_by(keys, maintain_order=True).agg(pl.col(value).mean()).iter_rows(named=True)
    }


def _is(key: str, wanted: Any) -> pl.Expr:
    column = pl.col(key)
    if isinstance(wanted, str):
        return column == wanted
    return (column - float(wanted)).abs() <= 1e-5 * max(1.0, abs(float(wanted)))
