"""Tables made from the summary: the scoreboard of the page, Markdown for a paper, CSV for a machine."""

from __future__ import annotations

import csv as csv_writer
import io
import math
from dataclasses import dataclass, field

from poise.report.folder import Summary
from poise.report.markdown_table import markdown_table
from poise.report.words import (
    METRICS,
    Row,
    column,
    error,
    exact,
    interval,
    plain_markdown,
    safe_cell,
    short,
    value,
)

ERRORS = ("ece_after", "ks_after", "brier_after")


@dataclass(frozen=True)
class Cell:
    """One cell of the scoreboard under one metric: its text, its interval and how dark it is, 0 to 1 (1 is worst)."""

    text: str
    interval: str = ""
    shade: float = 0.0


@dataclass(frozen=True)
class Scoreboard:
    """Recipes by (defence, view).

    Args:
        columns: (defence, view) in the order of the page, the two views of a defence next to each other.
        groups: defence and how many columns it has.
        recipes: the names of the rows.
        cells: cells[recipe][column][metric]; None where the attack was not run.
        clean: clean[column][metric], the figures before any attack.
    """

    columns: list[tuple[str, str]]
    groups: list[tuple[str, int]]
    recipes: list[str]
    cells: list[list[dict[str, Cell] | None]]
    clean: list[dict[str, Cell]] = field(default_factory=list)


def scoreboard(summary: Summary) -> Scoreboard:
    """The scoreboard with every metric of the switch."""
    rows: list[Row] = summary["rows"]
    defences = sorted({row["defence"]: None for row in rows}, key=lambda name: name != "none")
    held = {(row["defence"], row["view"]) for row in rows}
    columns = [(name, view) for name in defences for view in ("aware", "unaware") if (name, view) in held]
    groups = [(name, sum(defence == name for defence, _ in columns)) for name in defences]
    recipes = list({row["recipe"]: None for row in rows})
    place = {(row["recipe"], row["defence"], row["view"]): row for row in rows}
    cells: list[list[dict[str, Cell] | None]] = []
    for recipe in recipes:
        found = [place.get((recipe, *column_key)) for column_key in columns]
        cells.append([None if row is None else _cells(summary, row) for row in found])
    first = [next(row for row in rows if (row["defence"], row["view"]) == key) for key in columns]
    return Scoreboard(columns, groups, recipes, cells, [_clean(row) for row in first])


def _cells(summary: Summary, row: Row) -> dict[str, Cell]:
    return {name: _cell(summary, row, name) for name in METRICS}


def _cell(summary: Summary, row: Row, name: str) -> Cell:
    number, span = value(row, name), interval(row, name)
    if number is None:
        return Cell("–")
    if name in ERRORS:
        return Cell(error(number), f"[{short(span[0])}, {short(span[1])}]" if span else "", _unit(number))
    if name == "queries_mean_all":
        budget = max(int(summary["spec"].get("budget", 1)), 2)
        return Cell(f"{number:,.0f}", "", _unit(1 - math.log(max(number, 1)) / math.log(budget)))
    text = f"[{short(span[0])}, {short(span[1])}]" if span else ""
    before = value(row, "confidence_before")
    moved = abs(number - before) if name == "confidence_after" and before is not None else number
    return Cell(exact(number), text, _unit(moved))


def _clean(row: Row) -> dict[str, Cell]:
    """The row before any attack: the `_before` twin of each metric that has one."""
    found = {}
    for name in METRICS:
        number = value(row, name.replace("_after", "_before")) if name.endswith("_after") else None
        text = error(number) if name in ERRORS else exact(number)
        found[name] = Cell(text, "", _unit(number) if number is not None and name in ERRORS else 0.0)
    return found


def _unit(number: float) -> float:
    return round(min(max(number, 0.0), 1.0), 3)


def markdown(summary: Summary) -> str:
    """The scoreboard as a Markdown table: one line per recipe, defence and view.

    >>> metrics = {"ece_before": {"value": 0.015}, "ece_after": {"value": 0.538, "low": 0.50, "high": 0.57}}
    >>> rows = [{"recipe": "pgd-mma", "defence": "none", "view": "aware", "n": 497, "metrics": metrics}]
    >>> print(markdown({"rows": rows}).splitlines()[2][:62])
    | pgd-mma | no defence | 497 | 0.015 → 0.538 [.50, .57] | – |
    """
    head = (
        "Recipe",
        "Defence",
        "n",
        "ECE clean → attacked",
        "KS",
        "Brier",
        "Confidence",
        "Share of the bound",
        "Queries",
    )
    lines: list[tuple[str, ...]] = []
    for row in summary["rows"]:
        queries = value(row, "queries_mean_all")
        lines.append(
            (
                plain_markdown(row["recipe"]),
                plain_markdown(column(row["defence"], row["view"])),
                f"{row['n']:,}",
                arrow(row, "ece"),
                *(_three(value(row, name)) for name in ("ks_after", "brier_after")),
                f"{exact(value(row, 'confidence_before'))} → {exact(value(row, 'confidence_after'))}",
                exact(value(row, "bound_share")),
                "–" if queries is None else f"{queries:,.0f}",
            )
        )
    return markdown_table(head, lines, "llr")


def query_lines(summary: Summary) -> list[tuple[str, ...]]:
    """Queries on the bare model as each paper counts them: recipe, convention, images, and the four averages.

    >>> counts = {"samples": 9, "mean_success": 74.25, "median_success": 3, "mean_all": 90}
    >>> row = {"recipe": "sa-uca", "defence": "none", "view": "aware", "queries": {"square": counts}}
    >>> query_lines({"rows": [row]})
    [('sa-uca', 'square', '9', '74.2', '3.0', '90.0', '–')]
    """
    averages = ("mean_success", "median_success", "mean_all", "success_sum_over_all")
    return [
        (row["recipe"], view, f"{counts['samples']:,}", *(_one(counts.get(name)) for name in averages))
        for row in summary["rows"]
        if row["defence"] == "none"
        for view, counts in (row.get("queries") or {}).items()
    ]


def _one(number: float | None) -> str:
    return "–" if number is None else f"{number:,.1f}"


def arrow(row: Row, name: str) -> str:
    """A metric before and after with the interval of the latter: 0.015 → 0.538 [.50, .57]."""
    span = interval(row, f"{name}_after")
    tail = f" [{short(span[0])}, {short(span[1])}]" if span else ""
    return f"{_three(value(row, f'{name}_before'))} → {_three(value(row, f'{name}_after'))}{tail}"


def _three(number: float | None) -> str:
    return "–" if number is None else f"{number:.3f}"


def csv(summary: Summary) -> str:
    """All metrics of all rows as CSV with the columns recipe, defence, view, n, metric, value, low, high.

    >>> rows = [{"recipe": "ace", "defence": "none", "view": "aware", "n": 2, "metrics": {"ssim": {"value": 0.9}}}]
    >>> print(csv({"rows": rows}), end="")
    recipe,defence,view,n,metric,value,low,high
    ace,none,aware,2,ssim,0.9,,
    """
    out = io.StringIO()
    writer = csv_writer.writer(out, lineterminator="\n")
    writer.writerow(("recipe", "defence", "view", "n", "metric", "value", "low", "high"))
    for row in summary["rows"]:
        for name, entry in row["metrics"].items():
            figures = (entry.get("value"), entry.get("low"), entry.get("high"))
            names = (safe_cell(row[part]) for part in ("recipe", "defence", "view"))
            writer.writerow((*names, row["n"], safe_cell(name), *figures))
    return out.getvalue()
