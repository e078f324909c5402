"""The audit's page: one HTML file that holds everything it shows and loads nothing."""

from __future__ import annotations

import base64
import hashlib
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from poise.errors import RunError, brief
from poise.files import whole
from poise.report import deferral, explain_page, facts, gallery, tables, words
from poise.report.embed import attacks, script_json
from poise.report.figures import embedded
from poise.report.folder import Run, read
from poise.report.style import DARK
from poise.report.verdict import verdict

SECTIONS = (
    ("verdict", "Verdict"),
    ("threshold", "At your threshold"),
    ("before-after", "Before and after"),
    ("scoreboard", "Scoreboard"),
    ("cost", "Cost of the attack"),
    ("curves", "Success and risk"),
    ("traces", "How the attacks move"),
    ("explain", "Inside the model"),
    ("images", "Images"),
    ("checks", "Can you trust this page"),
    ("made", "How it was made"),
)

METRIC_NOTES = {
    "ece_after": "ECE: mean distance between confidence and accuracy, 0 is calibrated. More shade is worse.",
    "ks_after": "KS: largest distance between the running sums of confidence and right answers. More shade is worse.",
    "brier_after": "Brier: mean squared distance of the probabilities from the truth, 0 to 2. More shade is worse.",
    "confidence_after": "Mean confidence of the predicted class. More shade is further from the clean one.",
    "bound_share": "Attacked ECE as a share of the largest possible at this accuracy. More shade is worse.",
    "queries_mean_all": "Queries per image (forward passes), mean over all images. More shade is a cheaper attack.",
}


class Page:
    """What the template shows of a run; every text in it is escaped there unless it is Markup."""

    metrics = words.METRICS
    metric_notes = METRIC_NOTES
    views = words.VIEWS

    def __init__(self, run: Run) -> None:
        summary = run.summary
        self.board = tables.scoreboard(summary)
        self.columns = [words.column(*key) for key in self.board.columns]
        self.figures = embedded(run, self.board)
        self.model = words.address(summary["target"]["model"])
        self.title = f"Confidence audit of {self.model}"
        self.subtitle = facts.subtitle(summary)
        self.verdict = verdict(summary)
        self.keys = facts.keys(summary)
        self.board_lead = facts.board_lead(summary)
        self.checks = [{"figure": "", "advice": ""} | check for check in summary["checks"]]
        self.warned = sum(check["status"] != "passed" for check in self.checks)
        self.checks_told = f"{len(self.checks) - self.warned} passed, {self.warned} warned"
        self.threshold = float(summary["threshold"])
        self.costs = summary.get("costs")
        self.costs_told = facts.costs_told(self.costs, summary["data"].get("class_names")) if self.costs else ""
        self.deferral = deferral.tables(summary)
        self.slider_low = 1000 // int(summary["target"]["num_classes"])
        self.slider_start = round(self.threshold * 1000)
        self.has_curves = run.curves is not None
        self.query_lines = tables.query_lines(summary)
        self.traced = self._traced()
        self.explained = run.explained
        self.explained_lines = explain_page.lines(run)
        self.read_at = explain_page.read_at(run.explained) if run.explained else ""
        absent = {"traces": not self.traced, "explain": run.explained is None}
        self.sections = [entry for entry in SECTIONS if not absent.get(entry[0], False)]
        self.gallery = gallery.cases(run.gallery, summary["data"].get("class_names") or []) if run.gallery else []
        self.every = gallery.stride(run.gallery) if run.gallery else 1
        self.facts = facts.facts(summary)
        self.command = str(summary.get("command") or "")
        self.spec = run.spec
        self.footer = f"Made by poise {summary.get('poise', '')}. This file loads nothing from the network."
        self._run = run

    def _traced(self) -> list[int]:
        """The rows of the scoreboard of which there is a trace."""
        lines = {int(name.split(".")[1]) for name in self.figures if name.startswith("trace.")}
        return sorted(lines)

    def first_figure(self, base: str) -> dict[str, Any] | None:
        """The figure of a place before anything is chosen."""
        return self.figures.get(f"{base}.0")

    def about(self, recipe: str) -> dict[str, Any]:
        """What the summary says of a recipe."""
        unknown = {"summary": "", "paper": "", "whitebox": False, "keeps_label": False}
        return {**unknown, **self._run.summary["recipes"].get(recipe, {})}

    @cached_property
    def data(self) -> Markup:
        """Everything the script works on, as JSON."""
        summary, board = self._run.summary, self.board
        first = words.worst(words.headline(summary, words.base_rows(summary)))
        shown = {
            "figures": self.figures,
            "dark": DARK,
            "threshold": self.threshold,
            "low": self.slider_low,
            "costs": _costs(self.costs),
            "first": (first or summary["rows"][0])["recipe"],
            "notes": METRIC_NOTES,
            "clean": [_cells(cells) for cells in board.clean],
            "cells": [[cells and _cells(cells) for cells in line] for line in board.cells],
        }
        return script_json(shown | attacks(self._run.blocks))

    @cached_property
    def csv_uri(self) -> str:
        """All metrics as a CSV data URI."""
        return _uri("text/csv", tables.csv(self._run.summary))

    @cached_property
    def markdown_uri(self) -> str:
        """The scoreboard as a Markdown data URI."""
        return _uri("text/markdown", tables.markdown(self._run.summary))

    @cached_property
    def css(self) -> Markup:
        """The style sheet."""
        return _asset("page.css")

    @cached_property
    def script(self) -> Markup:
        """The page's own script."""
        return _asset("page.js")

    @cached_property
    def plotly(self) -> Markup:
        """plotly.js, the one that belongs to the installed plotly."""
        return Markup(get_plotlyjs())  # noqa: S704 - the library's own script

    @cached_property
    def policy(self) -> str:
        """A content security policy: nothing is loaded, and only the page's two own scripts run."""
        hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in (self.plotly, self.script))
        return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"


def write(run: Path) -> Path:
    """Writes `report.html` into a run folder, to a temporary name first.

    Args:
        run: a folder that `poise audit` wrote.

    Returns:
        the page's path. The page is one file that loads nothing.

    Raises:
        RunError: the folder is missing, damaged or lacks a column.
    """
    found = read(Path(run))
    try:
        html = render(found)
    except Exception as error:  # figures that contradict each other end in one of a dozen types
        reason = brief(f"{type(error).__name__}: {error}")
        raise RunError(f"report: {run} must be a run that this version of poise wrote, got {reason}") from error
    target = Path(run) / "report.html"
    with whole(target) as temporary:
        temporary.write_text(html, encoding="utf-8", newline="\n")
    return target


def render(run: Run) -> str:
    """The page of a run as text."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: str(_asset(name))),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=False,
    )
    environment.filters["nb"] = no_break
    return environment.get_template("page.html.j2").render(page=Page(run))


def no_break(text: str) -> str:
    """A text whose numbers do not part from their percent sign at the end of a line.

    >>> no_break("97 %") == "97\u00a0%"
    True
    """
    return text.replace(" %", "\u00a0%")


def _asset(name: str) -> Markup:
    text = files("poise.report").joinpath(name).read_text(encoding="utf-8")
    return Markup(text)  # noqa: S704 - a file of this package


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _uri(kind: str, text: str) -> str:
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(text.encode('utf-8')).decode('ascii')}"


def _cells(cells: dict[str, tables.Cell]) -> dict[str, dict[str, Any]]:
    return {name: {"text": c.text, "interval": c.interval, "shade": c.shade} for name, c in cells.items()}


def _costs(costs: dict[str, Any] | None) -> dict[str, Any] | None:
    names = ("wrong_accepted", "deferred", "right_accepted")
    if not costs:
        return None
    each = {number: _costs(part) for number, part in (costs.get("classes") or {}).items()}
    return {name: float(costs.get(name, 0.0)) for name in names} | ({"classes": each} if each else {})
