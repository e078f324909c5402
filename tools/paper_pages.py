"""Blocks of docs/papers/, for tools/render.py: each table and figure of a paper from results/papers, and its trends."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from poise.experiments.bench.catalog import names, shipped
from poise.experiments.bench.result import Result, load
from poise.experiments.bench.table import LEGEND, markdown, verdicts
from poise.report.markdown_table import markdown_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "papers"
PICTURES = ROOT / "docs" / "assets" / "papers"
WORDS = {"yes": "**holds**", "no": "**does not hold**", "in part": "**holds in part**", "not measured": "not measured"}


def saved(name: str) -> Result | None:
    """The committed result of a spec; None where it was not run."""
    return load(name, shipped(name), RESULTS) if (RESULTS / f"{name}.json").exists() else None


def block(name: str) -> str:
    """Setting of the paper, what differs, table, picture, and whether what the paper shows holds."""
    spec, result = shipped(name), saved(name)
    lines = [f"*In the paper:* {' '.join(spec.setting.split())}", ""]
    if result is None:
        return "\n".join([*lines, "Not run yet."]) + "\n"
    lines += [f"*Here:* {' '.join(spec.small.differs.split())} `poise bench run {name}`", ""]
    if spec.table is not None:
        lines += [markdown(result).rstrip(), ""]
    picture = f"{name.replace('/', '-')}.svg"
    if spec.figure is not None and (PICTURES / picture).exists():
        lines += [f"![{spec.shows}: {spec.title}](../assets/papers/{picture})", ""]
    return "\n".join([*lines, *trends(result)]).rstrip() + "\n"


def trends(result: Result) -> list[str]:
    """One line per trend: in our rows, and what it is in the published ones beside them."""
    lines = []
    for ours, theirs in verdicts(result):
        count = f"{ours.holds} of {ours.of}"
        where = f"; not in {'; '.join(ours.against)}" if ours.against and ours.holds else ""
        published = f" (published rows beside ours: {theirs.holds} of {theirs.of})" if theirs.of else ""
        lines.append(f"- {ours.trend.text}: {WORDS[ours.word]}, {count}{where}{published}.")
    return lines


def overview() -> str:
    """All specs: what they show, how long the small profile took, how many of the paper's trends hold."""
    rows = []
    for name in names():
        spec, result = shipped(name), saved(name)
        if result is None:
            rows.append([f"`{name}`", f"{spec.shows}: {spec.title}", "not run", "–"])
            continue
        found = [ours.word for ours, _ in verdicts(result)]
        held = f"{found.count('yes')} of {len(found)}" if found else "–"
        rows.append([f"`{name}`", f"{spec.shows}: {spec.title}", f"{result.about['seconds']:,.0f}", held])
    head = ["spec", "shows", "seconds, two cores", "trends that hold everywhere"]
    return markdown_table(head, rows, "llr")


FIGURES: dict[str, Callable[[], str]] = {
    "papers-overview": overview,
    "papers-legend": lambda: f"{LEGEND}\n",
    **{f"paper-{name.replace('/', '-')}": partial(block, name) for name in names()},
}
