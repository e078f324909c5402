"""The comparison as lines of cells, for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from poise.experiments.defend_figures import METRICS
from poise.experiments.measure import Figure
from poise.report.markdown_table import markdown_table

NAMES = {"accuracy": "accuracy", "ece": "ECE", "ks": "KS", "nll": "NLL", "brier": "Brier"}
WORSE = "*"

Comparison = dict[str, Any]


@dataclass(frozen=True)
class Block:
    """One table.

    Args:
        title: what it shows.
        head: the names of its columns.
        lines: its cells.
        numbers: how many columns from the right hold numbers.
    """

    title: str
    head: tuple[str, ...]
    lines: list[tuple[str, ...]]
    numbers: int


def blocks(comparison: Comparison) -> list[Block]:
    """The clean table, then one per recipe with both columns of every defence; the worse figure is marked.

    Under a recipe, defences are in the order of the worse ECE of their two columns, the best first.
    """
    held = comparison["defences"]
    names = tuple(NAMES[metric] for metric in METRICS)
    clean = [
        (name, *(cell(entry["clean"][metric]) for metric in METRICS), f"{entry['ms_per_image']:.4f}")
        for name, entry in held.items()
    ]
    found = [Block("clean", ("defence", *names, "ms per image"), clean, len(METRICS) + 1)]
    recipes: Iterable[str] = next(iter(held.values()))["attacked"]
    for recipe in recipes:
        lines = [line for name in ranked(comparison, recipe) for line in _lines(name, held[name]["attacked"][recipe])]
        found.append(Block(f"after {recipe}", ("defence", "attacker", *names), lines, len(METRICS)))
    return found


def ranked(comparison: Comparison, recipe: str) -> list[str]:
    """The defences under a recipe by the worse ECE of their two columns, ascending."""

    def key(name: str) -> float:
        at = comparison["defences"][name]["attacked"][recipe]["headline"]["ece"]["value"]
        return float("inf") if at is None else float(at)

    return sorted(comparison["defences"], key=key)


def _lines(name: str, attacked: dict[str, Any]) -> list[tuple[str, ...]]:
    if name == "none":  # there is nothing to know, so both columns are one
        return [(name, "–", *(cell(attacked["adaptive"][metric]) for metric in METRICS))]
    lines = []
    for column in ("unaware", "adaptive"):
        cells = (
            cell(attacked[column][metric]) + (WORSE if attacked["headline"][metric]["column"] == column else "")
            for metric in METRICS
        )
        lines.append((name, column, *cells))
    return lines


def cell(figure: Figure) -> str:
    """A value with its interval.

    >>> cell({"value": 0.1234, "low": 0.1, "high": 0.2}), cell({"value": None, "low": None, "high": None})
    ('0.123 [0.10, 0.20]', '–')
    """
    value, low, high = (figure[name] for name in ("value", "low", "high"))
    if value is None:
        return "–"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.2f}, {high:.2f}]"


def header(comparison: Comparison) -> list[str]:
    """What was compared on what."""
    spec = comparison["spec"]
    return [
        f"model    {comparison['model']}   data  {comparison['data']}, {comparison['samples']} images, defences fitted "
        f"on {comparison['fit_samples']} others",
        f"attack   {spec['norm']} {spec['eps']:.4g}, {spec['budget']} queries; an adaptive attacker chooses among "
        "several such runs",
    ]


NOTE = (
    "unaware: images made against the bare model; adaptive: the attacker knows the defence, per image the worse of the "
    f"attack through it and of the images against the bare model, by the attack's own goal; {WORSE}: the worse of the "
    "two, which is what a defence is worth."
)


def markdown(comparison: Comparison) -> str:
    """Everything as Markdown."""
    parts = ["# Defences compared", "```text\n" + "\n".join(header(comparison)) + "\n```"]
    parts += [section(block) for block in blocks(comparison)]
    return "\n\n".join([*parts, NOTE.replace(WORSE, rf"\{WORSE}")]) + "\n"


def section(block: Block) -> str:
    """A block as Markdown, under its title."""
    words = "l" * (len(block.head) - block.numbers)
    head, *lines = (
        [text.replace("|", r"\|").replace(WORSE, rf"\{WORSE}") for text in line] for line in (block.head, *block.lines)
    )
    table = markdown_table(head, lines, f"{words}r").rstrip("\n")
    return f"## {block.title[0].upper()}{block.title[1:]}\n\n{table}"


def latex(comparison: Comparison) -> str:
    """Everything as LaTeX tables, for the package booktabs."""
    parts = [f"% {line}" for line in header(comparison)]
    for block in blocks(comparison):
        shape = "l" * (len(block.head) - block.numbers) + "r" * block.numbers
        parts += [r"\begin{table}", rf"\caption{{{_tex(block.title)}}}", rf"\begin{{tabular}}{{{shape}}}", r"\toprule"]
        parts += [_tex_line(block.head), r"\midrule", *(_tex_line(cells) for cells in block.lines)]
        parts += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join([*parts, f"% {NOTE}"]) + "\n"


def _tex_line(cells: Sequence[str]) -> str:
    return " & ".join(_tex(text) for text in cells) + r" \\"


def _tex(text: str) -> str:
    """Text with every character that LaTeX reads otherwise written out.

    >>> _tex("a_b 5 %")
    'a\\\\_b 5 \\\\%'
    """
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {letter: f"\\{letter}" for letter in "&%$#_{}"} | {"–": "--"}
    return "".join(special.get(letter, letter) for letter in text)
