"""Figures of the query-efficiency benchmark (results/query_efficiency.json)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from poise.report.markdown_table import markdown_table

FILE = Path(__file__).resolve().parent.parent / "results" / "query_efficiency.json"
COLUMNS = (10, 20, 30, 40, 50, 100, 200, 1000)


def _found() -> Any:
    return json.loads(FILE.read_text(encoding="utf-8"))


def _count(entry: list[float | None]) -> str:
    value, low, high = ("never" if number is None else f"{number:,.0f}" for number in entry)
    return f"{value} [{low}, {high}]"


def _percent(entry: list[float]) -> str:
    value, low, high = (f"{100 * number:.1f}" for number in entry)
    return f"{value} % [{low}, {high}]"


def _reach() -> str:
    """Queries to reach ECE 0.2, 0.3 and the ECE of SA-MMA after 1,000 queries."""
    head = ["queries to reach ECE", "images × seeds", "0.2", "0.3", "of SA-MMA after 1,000", "ratio at the last"]
    rows = []
    for network, row in _found()["compared"].items():
        size = f"{row['samples']} × {row['seeds']}"
        for who, name in (("theirs", "`sa-mma`"), ("ours", "`learned-squares`")):
            near = "1,000, 98 % of it {:,.0f}".format(row["theirs near last"][0])
            last = near if who == "theirs" else _count(row["ours last"])
            ratio = "" if who == "theirs" else "**{:.1f}** [{:.1f}, {:.1f}]".format(*row["ratio"])
            level = f"{last} ({row['ece theirs'][0]:.3f})"
            rows.append(
                [f"{network}, {name}", size, _count(row[f"{who} 0.2"]), _count(row[f"{who} 0.3"]), level, ratio]
            )
    return markdown_table(head, rows)


def _share() -> str:
    """ECE after 1,000 queries as a share of the bound."""
    found = _found()
    rows = []
    for network, row in found["compared"].items():
        helped = found["surrogates at the end"].get(network)
        cell = "–"
        if helped is not None:
            cell = f"{_percent(helped['share'])} ({helped['surrogate']}, {helped['samples']} × {helped['seeds']})"
        rows.append([network, f"{row['bound']:.3f}", _percent(row["share theirs"]), _percent(row["share ours"]), cell])
    ours = ["`learned-squares`", "with a surrogate (images × seeds)"]
    head = ["ECE after 1,000 queries, share of the bound", "bound", "`sa-mma`", *ours]
    return markdown_table(head, rows)


def _curve() -> str:
    """ECE over queries, mean of the seeds."""
    rows, found = [], _found()
    for network in found["compared"]:
        mine = [row for row in found["rows"] if (row["part"], row["network"]) == ("main", network)]
        names = ("sa-mma", "learned-squares")
        common = set.intersection(*({row["seed"] for row in mine if row["name"] == name} for name in names))
        for name in names:
            seeds = [row for row in mine if row["name"] == name and row["seed"] in common]
            at = [[row["ece"][row["checkpoints"].index(count)] for row in seeds] for count in COLUMNS]
            rows.append([f"{network}, `{name}`", *(f"{sum(values) / len(values):.3f}" for values in at)])
    return markdown_table(["ECE after queries", *(f"{count:,}" for count in COLUMNS)], rows)


def _ablation() -> str:
    """ECE as a share of the bound after 40 and 200 queries, one thing changed at a time."""
    rows = [row for row in _found()["rows"] if row["part"] == "ablation"]
    networks = list(dict.fromkeys(row["network"] for row in rows))
    by = {(row["name"], row["network"]): row for row in rows}
    names = list(dict.fromkeys(row["name"] for row in rows))
    body = []
    for name in names:
        cells = [name]
        for network in networks:
            row = by.get((name, network))
            for count in (40, 200):
                share = None if row is None else row["ece"][row["checkpoints"].index(count)] / row["bound"]
                cells.append("–" if share is None else f"{100 * share:.1f} %")
        body.append(cells)
    return markdown_table(["share of the bound", *(f"{at}, {count}" for at in networks for count in (40, 200))], body)


def _surrogates() -> str:
    """Queries to reach ECE 0.2, 0.3 and the ECE of SA-MMA after 1,000 queries, with a network of the attacker's own."""
    rows = []
    for network, row in _found()["surrogates"].items():
        counts = [_count(row[level]) for level in ("0.2", "0.3", "last")]
        ratio = "**{:.1f}** [{:.1f}, {:.1f}]".format(*row["ratio"])
        rows.append([f"{network}, surrogate {row['surrogate']}", f"{row['samples']} × {row['seeds']}", *counts, ratio])
    head = ["queries to reach ECE, with a surrogate", "images × seeds", "0.2", "0.3", "of SA-MMA after 1,000", "ratio"]
    return markdown_table(head, rows)


def _gratings() -> str:
    """The share of labels that each grating takes, and what the way back leaves."""
    found = _found()["gratings"]
    waves = list(next(iter(found.values()))["lost"])
    head = ["labels lost to a grating of", *waves, "queries", "confidence, right answers", "ECE"]
    rows = [
        [
            network,
            *(f"{100 * row['lost'][wave]:.0f} %" for wave in waves),
            f"{row['queries']:.1f}",
            f"{row['confidence']:.3f}",
            f"{row['ece']:.3f}",
        ]
        for network, row in found.items()
    ]
    return markdown_table(head, rows)


FIGURES: dict[str, Callable[[], str]] = {
    "queries-reach": _reach,
    "queries-surrogates": _surrogates,
    "queries-share": _share,
    "queries-curve": _curve,
    "queries-gratings": _gratings,
    "queries-ablation": _ablation,
}
