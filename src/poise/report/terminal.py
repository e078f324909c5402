"""The terminal's output of an audit: rich parts and plain text, from the summary only. Prints nothing itself."""

from __future__ import annotations

import io

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from poise.report.deferral import costs_line
from poise.report.folder import Summary
from poise.report.tables import arrow
from poise.report.words import Row, address, count, error, exact, interval, threshold, value

ACCESS = {"gradients": "gradient access", "scores": "score access", "labels": "label access"}

WIDE = 120
"""Columns from which a row of the table fits on one line."""


def header(summary: Summary) -> list[str]:
    """The two lines above the table: what was attacked, and how it answers clean images."""
    target, data, row = summary["target"], summary["data"], summary["rows"][0]
    access = ACCESS.get(target.get("access", ""), str(target.get("access", "")))
    about = ", ".join(text for text in (target.get("description"), f"{target['num_classes']} classes", access) if text)
    span = interval(row, "ece_before")
    ece = error(value(row, "ece_before")) + (f" [{error(span[0])}, {error(span[1])}]" if span else "")
    clean = (
        f"accuracy {exact(value(row, 'accuracy_before'))}",
        f"confidence {exact(value(row, 'confidence_before'))}",
        f"ECE {ece}",
        f"KS {error(value(row, 'ks_before'))}",
    )
    return [
        f"target   {address(target['model'])} ({about})   data  {count(int(data['samples']), 'test image')}",
        f"clean    {'   '.join(clean)}",
    ]


def table(summary: Summary, *, narrow: bool = False) -> Table:
    """The result table, one line per recipe, defence and view; numbers aligned, nothing told by colour alone.

    Args:
        summary: `summary.json` of a run.
        narrow: two lines per row, for a terminal of less than `WIDE` columns: 80 suffice for the usual names.

    Returns:
        a rich table.
    """
    at = threshold(float(summary["threshold"]))
    shown = Table(box=None, pad_edge=False, padding=(0, 1 if narrow else 2, 0, 0), header_style="bold")
    shown.add_column("recipe")
    shown.add_column("defence")
    shown.add_column("ECE clean\n→ attacked" if narrow else "ECE clean → attacked", no_wrap=True)
    shown.add_column("KS", justify="right", no_wrap=True)
    shown.add_column("confidence", justify="right", no_wrap=True)
    shown.add_column("queries\nmean /\nmedian" if narrow else "queries\n(mean / median)", justify="right", no_wrap=True)
    accepted = f"accepted\nat {at},\nwrong / right" if narrow else f"auto-accepted at {at},\nwrong / right"
    shown.add_column(accepted, justify="right", no_wrap=True)
    for row in summary["rows"]:
        shown.add_row(*(Text(cell) for cell in _cells(row, "\n" if narrow else " ")))
    return shown


def _cells(row: Row, between: str) -> tuple[str, ...]:
    """The cells of a row; `between` parts the ECE from its interval and a defence from its view."""
    ks, view = value(row, "ks_after"), "" if row["view"] == "aware" else f"{between}({row['view']})"
    return (
        row["recipe"],
        row["defence"] + view,
        arrow(row, "ece").replace(" [", f"{between}["),
        "–" if ks is None else f"{ks:.3f}",
        _pair(row, "confidence_before", " → ", "confidence_after"),
        f"{_whole(value(row, 'queries_mean_success'))} / {_whole(value(row, 'queries_median_success'))}",
        _pair(row, "accepted_wrong_after", " / ", "accepted_right_after"),
    )


def _pair(row: Row, first: str, between: str, second: str) -> str:
    """Two shares with one percent sign: 0.7 / 73.3 %."""
    return f"{exact(value(row, first)).removesuffix(' %')}{between}{exact(value(row, second))}"


def _whole(number: float | None) -> str:
    return "–" if number is None else f"{number:,.0f}"


def checks(summary: Summary) -> list[str]:
    """A line for each check that warned, none for those that passed.

    >>> passed = {"name": "labels kept", "status": "passed", "figure": "0 changed", "advice": ""}
    >>> warned = {"name": "curve flat", "status": "warned", "figure": "still rising", "advice": "raise the budget"}
    >>> checks({"checks": [passed, warned]})
    ['! curve flat: still rising; raise the budget (see report, checks)']
    """
    lines = []
    for check in summary["checks"]:
        if check["status"] != "passed":
            told = "; ".join(str(part).rstrip(".") for part in (check.get("figure"), check.get("advice")) if part)
            lines.append(f"! {check['name']}: {told} (see report, checks)")
    return lines


def costs(summary: Summary) -> list[str]:
    """A line on what the best thresholds cost; none where no costs were given."""
    line = costs_line(summary)
    return [line] if line else []


def text(summary: Summary, *, width: int | None = None) -> str:
    """Header, table and check lines as plain text without colours.

    Args:
        summary: `summary.json` of a run.
        width: columns of the terminal; None for a pipe, which gets as many as the table needs.

    Returns:
        text that ends in a newline.
    """
    shown = table(summary, narrow=width is not None and width < WIDE)
    out = io.StringIO()
    console = Console(file=out, width=width or 1000, color_system=None, force_terminal=False, legacy_windows=False)
    if width is None:
        console.width = Measurement.get(console, console.options, shown).maximum
    console.print(shown)
    body = "\n".join(line.rstrip() for line in out.getvalue().splitlines())
    return "\n".join([*header(summary), body, *checks(summary)]) + "\n"
