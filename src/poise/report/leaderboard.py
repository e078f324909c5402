"""The leaderboard's page and its tables: one HTML file that loads nothing, made from ranked entries as plain data."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from poise.files import whole
from poise.report import words
from poise.report.markdown_table import markdown_table
from poise.report.page import no_break
from poise.report.words import plain_markdown

Group = Mapping[str, Any]
"""`poise.experiments.leaderboard.Group.plain()`: data, n, norm, eps, and entries with rank and shared."""

COLUMNS = (
    ("rank", "rank"),
    ("model", "model"),
    ("defence", "defence"),
    ("ece", "attacked ECE"),
    ("kept", "confidence kept"),
    ("cost", "expected cost"),
    ("accuracy", "clean accuracy"),
    ("clean_ece", "clean ECE"),
    ("confidence", "clean confidence"),
)
"""Key and heading of each column."""

TEXTS = 3
"""How many of the columns, from the left, hold no figures."""

MEANING = (
    "Entries are ranked by their expected calibration error (ECE) after the standard attack, the lowest first: how "
    "far confidence and accuracy can be driven apart without changing one predicted label.",
    "Ranks compare within one table alone, where all entries were attacked on the same images with the same radius. "
    "A rank is one more than the number of entries whose interval lies wholly below; “=” marks an interval that "
    "overlaps that of the entry above or below, so that these are not distinguishable.",
    "An attack bounds the risk from below. A low figure says that this attack did not find more, not that nobody can; "
    "an attacker who adapts to one model or defence may find more, and so may a larger budget or a later version of "
    "the attack. A certificate bounds it from above; a rank does not.",
    "Of the attacker who knows the defence and the one who does not, the worse for the model counts. Figures are "
    "those of whoever submitted the entry, with the fingerprints of weights and images by which they can be repeated.",
    "A low attacked ECE alone makes no good model. A defence that lifts every confidence leaves the attacker little "
    "room and accepts more wrong answers, which the expected cost shows: sort by it as well.",
)
"""What the ranking means and what it does not, a paragraph each."""


def costs_told(costs: Mapping[str, float], threshold: float) -> str:
    """What the column of costs counts."""
    wrong, deferred, right = (costs.get(name, 0.0) for name in ("wrong_accepted", "deferred", "right_accepted"))
    return (
        "Expected cost: of one case, on average, clean → attacked, where a confidence above "
        f"{words.threshold(threshold)} is accepted: {wrong:g} for a wrong answer that is accepted, {deferred:g} for a "
        f"case that a person sees, {right:g} for a right one. Confidence kept: mean confidence of right answers after "
        "the attack as a share of that before."
    )


def radius(eps: float) -> str:
    """A radius as people write it: in 255ths where that is shorter.

    >>> radius(8 / 255), radius(0.2), radius(0.5)
    ('8/255', '0.2', '0.5')
    """
    text, levels = f"{eps:.6g}", round(eps * 255)
    return f"{levels}/255" if len(text) > 5 and abs(eps * 255 - levels) < 1e-6 else text


def threat(group: Group) -> str:
    """The ball of a group."""
    return f"{'Linf' if group['norm'] == 'linf' else 'L2'} {radius(group['eps'])}"


def title(group: Group) -> str:
    """What a group's entries have in common."""
    return f"{group['data']}, {threat(group)}, {words.count(group['n'], 'image')}"


def rank_text(entry: Mapping[str, Any]) -> str:
    """A rank, marked where the entry is not distinguishable from its neighbour."""
    return f"{entry['rank']}=" if entry["shared"] else f"{entry['rank']}"


def interval(figure: Mapping[str, float | None], *, percent: bool = False) -> str:
    """A figure's interval in brackets, empty where it has none.

    >>> figure = {"value": 0.5, "low": 0.45, "high": 0.552}
    >>> interval(figure), interval(figure, percent=True)
    ('[.45, .55]', '[45, 55]')
    """
    low, high = figure["low"], figure["high"]
    if low is None or high is None:
        return ""
    return f"[{low * 100:.0f}, {high * 100:.0f}]" if percent else f"[{words.short(low)}, {words.short(high)}]"


def cells(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """An entry's line of text, as COLUMNS."""
    clean, attacked, kept = entry["clean"], entry["attacked"], entry["kept"]
    return (
        rank_text(entry),
        entry["name"],
        entry["defence"],
        f"{attacked['ece']['value']:.3f} {interval(attacked['ece'])}",
        f"{words.exact(kept['value'])} {interval(kept, percent=True)}".strip(),
        f"{clean['cost']:.2f} → {attacked['cost']:.2f}",
        words.exact(entry["accuracy"]["value"]),
        f"{clean['ece']['value']:.3f}",
        words.exact(clean["confidence"]["value"]),
    )


def keys(entry: Mapping[str, Any]) -> tuple[float | str, ...]:
    """What each cell is sorted by; figures that are undefined come last."""
    clean, attacked, kept = entry["clean"], entry["attacked"], entry["kept"]["value"]
    ece = attacked["ece"]["value"]
    numbers = (ece, "" if kept is None else kept, attacked["cost"], entry["accuracy"]["value"])
    texts = (entry["name"].lower(), entry["defence"].lower())
    return (ece, *texts, *numbers, clean["ece"]["value"], clean["confidence"]["value"])


def details(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What else an entry says, as name and text."""
    prints = entry["fingerprints"]
    found = [
        ("address", entry["model"]),
        ("attack", f"{entry['recipe']}, {entry['budget']:,} queries, seed {entry['seed']}, poise {entry['poise']}"),
        ("attacker", words.VIEWS[entry["view"]] if entry["defence"] != "none" else "no defence to know"),
        ("share of the bound", f"{words.exact(entry['bound_share']['value'])}"),
        ("checks that warned", ", ".join(entry["warned"]) or "none"),
        ("weights", prints["weights"].removeprefix("sha256:")[:16]),
        ("images", prints["data"].removeprefix("sha256:")[:16]),
        ("measured", f"{entry['date']}" + (f" by {entry['author']}" if entry["author"] else "")),
        ("note", entry["note"] or ""),
    ]
    return [(name, text) for name, text in found if text]


def link(entry: Mapping[str, Any]) -> str:
    """The entry's web address; empty for none, and for one that is not of the web."""
    url = entry["url"] or ""
    return url if url.startswith(("https://", "http://")) else ""


def markdown(groups: Sequence[Group]) -> str:
    """All tables as Markdown, each under its title."""
    parts = []
    for group in groups:
        found = [[plain_markdown(cell) for cell in cells(entry)] for entry in group["entries"]]
        table = markdown_table([heading for _, heading in COLUMNS], found, "l" * TEXTS + "r")
        parts.append(f"**{plain_markdown(title(group))}**\n\n{table}")
    return "\n".join(parts) or "\n"


def render(groups: Sequence[Group], *, costs: Mapping[str, float], threshold: float) -> str:
    """The page as text.

    Args:
        groups: as plain data, ranked.
        costs: wrong_accepted and deferred, of one case. threshold: at which it is accepted.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["nb"] = no_break
    entries = [(group, entry) for group in groups for entry in group["entries"]]
    script = _asset("leaderboard.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("leaderboard.html.j2").render(
        groups=groups,
        columns=COLUMNS,
        texts=TEXTS,
        meaning=MEANING,
        costs=costs_told(costs, threshold),
        data=sorted({group["data"] for group in groups}),
        threats=sorted({threat(group) for group in groups}),
        defences=sorted({entry["defence"] for _, entry in entries}),
        count=words.count(len(entries), "entry", "entries"),
        latest=max((entry["date"] for _, entry in entries), default=""),
        css=Markup(_asset("page.css") + _asset("leaderboard.css")),  # noqa: S704 - files of this package
        script=Markup(script),  # noqa: S704 - a file of this package
        policy=f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'",
        **{tool.__name__: tool for tool in (title, threat, cells, keys, details, link, interval)},
    )


def write(groups: Sequence[Group], path: Path, *, costs: Mapping[str, float], threshold: float) -> Path:
    """Writes the page, to a temporary name first; arguments as `render`."""
    html = render(groups, costs=costs, threshold=threshold)
    with whole(path) as temporary:
        temporary.write_text(html, encoding="utf-8", newline="\n")
    return path


def _asset(name: str) -> str:
    return files("poise.report").joinpath(name).read_text(encoding="utf-8")
