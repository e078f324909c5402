"""Plain words and numbers: how the report writes a figure, and its verdict in two sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from poise.report.folder import Summary

Row = dict[str, Any]

MOVED = 0.01
"""A change of the ECE, of a mean confidence or of the accuracy below this is called none."""

FEW = 100
"""Below this number of images the verdict says that its figures are rough."""

METRICS: dict[str, str] = {
    "ece_after": "ECE",
    "ks_after": "KS",
    "brier_after": "Brier",
    "confidence_after": "Mean confidence",
    "bound_share": "Share of the bound",
    "queries_mean_all": "Queries",
}
"""The metrics of the scoreboard's switch and what they are called."""

VIEWS = {"aware": "attacker knows it", "unaware": "attacker does not know it"}


def plain_markdown(text: str) -> str:
    """A text that Markdown shows as it is, on one line, in a table too.

    >>> plain_markdown("<b>a|b</b>")
    '&lt;b>a&#124;b&lt;/b>'
    """
    shown = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
    return "".join(f"\\{letter}" if letter in "\\`*_[]" else letter for letter in shown)


FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a text begins with that a spreadsheet would compute."""


def safe_cell(text: str) -> str:
    """A text for a cell of a CSV file: one that a spreadsheet would compute gets an apostrophe in front.

    >>> safe_cell("=1+1"), safe_cell("sa-mma")
    ("'=1+1", 'sa-mma')
    """
    return f"'{text}" if text.startswith(FORMULA) else text


def value(row: Row, name: str) -> float | None:
    """A metric of a summary row, None when it is missing or undefined."""
    return _known(row["metrics"].get(name, {}).get("value"))


def _known(number: float | None) -> float | None:
    return None if number is None or not math.isfinite(number) else float(number)


def interval(row: Row, name: str) -> tuple[float, float] | None:
    """The 95 % interval of a metric, None when there is none."""
    entry = row["metrics"].get(name, {})
    low, high = _known(entry.get("low")), _known(entry.get("high"))
    return None if low is None or high is None else (low, high)


def percent(share: float | None) -> str:
    """A share of 1 in percent: one decimal near 0 and near 1, where it matters, else none.

    >>> percent(0.9712), percent(0.012), percent(0.9961), percent(0.0), percent(None)
    ('97 %', '1.2 %', '99.6 %', '0 %', '–')
    """
    if share is None:
        return "–"
    if share in (0.0, 1.0):
        return f"{share * 100:.0f} %"
    if 0 < share < 0.0005:
        return "under 0.1 %"
    if 0.9995 < share < 1:
        return "over 99.9 %"
    digits = 1 if share < 0.0995 or share > 0.985 else 0
    return f"{share * 100:.{digits}f}".removesuffix(".0") + " %"


def exact(share: float | None) -> str:
    """A share of 1 in percent with one decimal, so that a column of them is aligned.

    >>> exact(0.9778), exact(1.0), exact(None)
    ('97.8 %', '100.0 %', '–')
    """
    return "–" if share is None else f"{share * 100:.1f} %"


def error(number: float | None) -> str:
    """A calibration error with the digits that matter: 0.015 or 0.61."""
    if number is None:
        return "–"
    return f"{number:.3f}" if abs(number) < 0.0995 else f"{number:.2f}"


def count(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun in the right form.

    >>> count(1, "query", "queries"), count(1000, "query", "queries"), count(2, "image")
    ('1 query', '1,000 queries', '2 images')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def short(number: float) -> str:
    """A number in [0, 1) without its leading zero, as in [.50, .57].

    >>> short(0.5), short(1.0), short(0.004)
    ('.50', '1.00', '.00')
    """
    text = f"{number:.2f}"
    return text[1:] if text.startswith("0.") else text


def threshold(number: float) -> str:
    """A confidence threshold with at least two decimals.

    >>> threshold(0.9), threshold(0.995)
    ('0.90', '0.995')
    """
    text = f"{number:.6f}".rstrip("0")
    return f"{number:.2f}" if len(text) < 4 else text


def column(defence: str, view: str) -> str:
    """The name of a scoreboard column."""
    return "no defence" if defence == "none" else f"{defence}, {VIEWS.get(view, view)}"


def worst(rows: Iterable[Row]) -> Row | None:
    """The row with the highest attacked ECE; None when no row has one."""
    known = [row for row in rows if value(row, "ece_after") is not None]
    return max(known, key=lambda row: value(row, "ece_after") or 0.0, default=None)


def base_rows(summary: Summary) -> list[Row]:
    """The rows of the undefended model; of the first defence, attacker aware, when there are none."""
    rows = [row for row in summary["rows"] if row["defence"] == "none"]
    if rows:
        return rows
    first = summary["rows"][0]["defence"]
    return [row for row in summary["rows"] if row["defence"] == first and row["view"] == "aware"] or summary["rows"]


def keeps_label(summary: Summary, row: Row) -> bool:
    """Whether the recipe promises to keep the predicted label."""
    return bool(summary["recipes"].get(row["recipe"], {}).get("keeps_label", False))


def power(summary: Summary, row: Row) -> str:
    """What the attacker of a row had: queries, or the model's gradients."""
    if summary["recipes"].get(row["recipe"], {}).get("whitebox", False):
        return "the model's gradients"
    return count(int(summary["spec"].get("budget", 0)), "query", "queries")


def headline(summary: Summary, rows: Iterable[Row]) -> list[Row]:
    """Of some rows those that keep the label, which this project is about; all of them when none does."""
    found = list(rows)
    return [row for row in found if keeps_label(summary, row)] or found


def best_defence(summary: Summary) -> Row | None:
    """Of the worst aware attack on each defence, the mildest: what the best defence leaves; None without defences."""
    names = {row["defence"] for row in summary["rows"]} - {"none"}
    aware = {name: [r for r in summary["rows"] if r["defence"] == name and r["view"] == "aware"] for name in names}
    worsts = [worst(headline(summary, rows)) for rows in aware.values()]
    known = [row for row in worsts if row is not None]
    return min(known, key=lambda row: (value(row, "ece_after") or 0.0, row["defence"]), default=None)


def address(model: str) -> str:
    """A model's address without its options: what a heading has room for; the page's last section has all of it.

    >>> address("builtin:resnet20-cifar10?weights=resnet20.safetensors")
    'builtin:resnet20-cifar10'
    """
    return model.split("?", 1)[0]
