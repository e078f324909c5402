"""A result of `poise bench` as a table: ours with its interval, the published value beside, and whether they agree."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from typing import Any

from poise.errors import one_of
from poise.experiments.bench.result import Result, as_csv, mark
from poise.experiments.bench.spec import Table
from poise.experiments.bench.trends import Verdict, judge
from poise.report.markdown_table import markdown_table

NAMES = {
    "dataset": "data",
    "eps": "eps",
    "queries": "queries",
    "x": "x",
    "accuracy": "accuracy",
    "adv_accuracy": "accuracy left",
    "ece": "ECE",
    "ks": "KS",
    "avg_confidence": "confidence",
    "confidence_right": "confidence, right answers",
    "avg_queries": "queries, mean",
    "median_queries": "queries, median",
    "delta_w": "ΔW",
    "ssim": "SSIM",
    "n_points": "images",
    "inference_ms": "ms per image",
    "gflops": "GFLOPs",
    "detection_auc": "AUROC",
    "detection_accuracy": "detection accuracy",
}
"""Keys and metrics as tables call them; others are called by their own name."""

COUNTS = ("avg_queries", "median_queries", "n_points")
FORMATS = ("text", "markdown", "latex", "csv", "html", "json")
LEGEND = (
    "Ours with its 95 % interval; in brackets the published value, marked = where it lies in our interval widened by "
    "twice its published spread, + where ours is higher, - where it is lower."
)


@dataclass(frozen=True)
class Grid:
    """A table of text.

    Args:
        head: names of the columns. lines: their cells. keys: how many columns from the left name the row.
    """

    head: list[str]
    lines: list[list[str]]
    keys: int


def grid(result: Result) -> Grid:
    """The rows of a result as the spec lays them out; columns without any value are left out."""
    layout = result.spec.table or Table(rows=("dataset", "model", "defence", "attack"), metrics=result_metrics(result))
    columns: dict[tuple[Any, ...], None] = {}
    lines: dict[tuple[Any, ...], dict[tuple[Any, ...], str]] = {}
    order = {name: at for at, name in enumerate(layout.metrics)}
    for row in result.rows.iter_rows(named=True):
        if row["metric"] not in order:
            continue
        column = (*(row[key] for key in layout.columns), row["metric"])
        columns[column] = None
        lines.setdefault(tuple(row[key] for key in layout.rows), {})[column] = cell(row)
    ordered = sorted(columns, key=lambda column: _rank(column, order, list(columns)))
    head = [*(NAMES.get(key, key) for key in layout.rows), *(_column_name(column, layout) for column in ordered)]
    body = [
        [*(_key(name, at) for name, at in zip(layout.rows, line, strict=True)), *(held.get(c, "–") for c in ordered)]
        for line, held in lines.items()
    ]
    return Grid(head, body, len(layout.rows))


def result_metrics(result: Result) -> tuple[str, ...]:
    """The metrics of a result in the order of their first row."""
    return tuple(dict.fromkeys(result.rows["metric"].to_list()))


def _rank(column: tuple[Any, ...], order: dict[str, int], columns: list[tuple[Any, ...]]) -> tuple[int, int]:
    first = next(at for at, other in enumerate(columns) if other[:-1] == column[:-1])
    return first, order[column[-1]]


def _column_name(column: tuple[Any, ...], layout: Table) -> str:
    keys = [_key(name, at) for name, at in zip(layout.columns, column[:-1], strict=True)]
    many = len(layout.metrics) > 1 or not keys
    return ", ".join([*keys, *([NAMES.get(column[-1], column[-1])] if many else [])])


def _key(name: str, value: Any) -> str:
    """A key as a cell.

    >>> _key("eps", 8 / 255), _key("queries", 1000.0), _key("attack", "none"), _key("queries", None)
    ('8/255', '1,000', 'none', '–')
    """
    if value is None:
        return "–"
    if name == "eps" and len(f"{value:g}") > 5 and abs(255 * value - round(255 * value)) < 1e-3:
        return f"{round(255 * value)}/255"
    if name == "queries":
        return f"{value:,.0f}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def cell(row: dict[str, Any]) -> str:
    """Ours, its interval, the published value and the mark.

    >>> row = {"metric": "ece", "value": 0.5, "low": 0.45, "high": 0.55, "published": 0.6, "published_std": None}
    >>> cell(row)
    '0.500 [0.45, 0.55] (0.600 -)'
    """
    if row["value"] is None:
        return "–"
    digits = 1 if row["metric"] in COUNTS else 3
    if row["metric"] == "n_points":
        digits = 0
    text = f"{row['value']:,.{digits}f}"
    if row["low"] is not None and row["high"] is not None:
        text += f" [{row['low']:.2f}, {row['high']:.2f}]"
    if row["published"] is not None:
        text += f" ({row['published']:,.{digits}f} {mark(row)})"
    return text


def verdicts(result: Result) -> list[tuple[Verdict, Verdict]]:
    """Every trend of the spec: in our rows, and in the published ones that stand beside them."""
    trends, rows = result.spec.trends, result.rows
    return [(judge(trend, rows), judge(trend, rows, "published")) for trend in trends]


def trend_rows(result: Result) -> list[tuple[str, ...]]:
    """Per trend its text, one word, in how many combinations it is there, and where it is not."""
    found = (ours for ours, _ in verdicts(result))
    return [(one.trend.text, one.word, f"{one.holds} of {one.of}", "; ".join(one.against)) for one in found]


def about(result: Result) -> list[str]:
    """What stands above the table."""
    profile = result.spec.profile(result.about["profile"])
    lines = [
        f"{result.spec.shows}: {result.spec.title}",
        f"paper   {' '.join(result.spec.setting.split())}",
        f"here    profile {result.about['profile']}; {' '.join(profile.differs.split()) or 'as the paper'}",
    ]
    if result.about["done"] < result.about["shards"]:
        lines.append(f"PARTIAL {result.about['done']} of {result.about['shards']} shards are finished")
    return lines


def trend_lines(result: Result) -> list[str]:
    """One line per trend."""
    return [
        f"{ours.word:>12}  {ours.trend.text} ({ours.holds} of {ours.of}"
        + (f"; not in {'; '.join(ours.against)}" if ours.against else "")
        + ")"
        for ours, _ in verdicts(result)
    ]


def render(result: Result, kind: str) -> str:
    """The table in one of `FORMATS`.

    Raises:
        InputError: another format.
    """
    makers = {"text": text, "markdown": markdown, "latex": latex, "csv": csv, "html": page, "json": plain}
    if kind not in makers:
        raise one_of("format", kind, list(makers))
    return makers[kind](result)


def text(result: Result) -> str:
    """For a terminal."""
    found = grid(result)
    widths = [max(len(line[at]) for line in (found.head, *found.lines)) for at in range(len(found.head))]
    lines = ["  ".join(part.ljust(width) for part, width in zip(line, widths, strict=True)).rstrip()
             for line in (found.head, *found.lines)]  # fmt: skip
    parts = [*about(result), "", *lines, "", LEGEND]
    if result.spec.trends:
        parts += ["", "Does what the paper shows hold here?", *trend_lines(result)]
    return "\n".join(parts) + "\n"


def markdown(result: Result) -> str:
    """For a page: the table alone."""
    found = grid(result)
    head, *lines = ([_md(part) for part in line] for line in (found.head, *found.lines))
    return markdown_table(head, lines, "l" * found.keys + "r")


def _md(part: str) -> str:
    return part.replace("<", "&lt;").replace("|", r"\|").replace("\n", " ")


_TEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "Δ": r"$\Delta$", "–": "--"}  # fmt: skip


def _tex(part: str) -> str:
    """Text that LaTeX prints as it is.

    >>> _tex("a_b & 5 %")
    'a\\\\_b \\\\& 5 \\\\%'
    """
    return "".join(_TEX.get(letter, letter) for letter in part)


def latex(result: Result) -> str:
    """For a paper, with the package booktabs."""
    found = grid(result)
    shape = "l" * found.keys + "r" * (len(found.head) - found.keys)
    lines = [f"% {' '.join(line.split())}" for line in about(result)]
    lines += [
        r"\begin{table}",
        rf"\caption{{{_tex(result.spec.title)}}}",
        rf"\begin{{tabular}}{{{shape}}}",
        r"\toprule",
    ]
    lines += [" & ".join(map(_tex, found.head)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(_tex, line)) + r" \\" for line in found.lines]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def csv(result: Result) -> str:
    """Tidy, every digit."""
    return as_csv(result.rows)


def plain(result: Result) -> str:
    """Everything as JSON."""
    found = [
        {"text": ours.trend.text, "here": ours.word, "holds": ours.holds, "of": ours.of, "not_in": list(ours.against)}
        for ours, _ in verdicts(result)
    ]
    whole = {"name": result.name, "about": result.about, "rows": result.rows.to_dicts(), "trends": found}
    return json.dumps(whole, allow_nan=False, ensure_ascii=False) + "\n"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem; max-width: 75rem; color: #1a1a1a; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid #ccc; text-align: left; white-space: nowrap; }}
.scroll {{ overflow-x: auto; }}
</style></head><body><h1>{title}</h1>{about}<div class="scroll"><table><thead><tr>{head}</tr></thead>
<tbody>{body}</tbody></table></div><p>{legend}</p>{trends}</body></html>
"""


def page(result: Result) -> str:
    """A page of its own."""
    found, title = grid(result), html.escape(f"{result.spec.shows}: {result.spec.title}")
    head = "".join(f"<th>{html.escape(part)}</th>" for part in found.head)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(part)}</td>" for part in line) + "</tr>" for line in found.lines
    )
    trends = "".join(f"<li>{html.escape(' '.join(line.split()))}</li>" for line in trend_lines(result))
    return _PAGE.format(
        title=title,
        about="".join(f"<p>{html.escape(line)}</p>" for line in about(result)[1:]),
        head=head,
        body=body,
        legend=html.escape(LEGEND),
        trends=f"<h2>Does what the paper shows hold here?</h2><ul>{trends}</ul>" if trends else "",
    )
