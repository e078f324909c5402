"""A table in Markdown: what every page of figures writes."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str = "lr") -> str:
    """The table, with a line feed at its end.

    Args:
        head: the columns' names.
        rows: as many cells each; a cell is Markdown already (`poise.report.words.plain_markdown`).
        align: a letter per column, l for words and r for numbers; the last one holds for the columns after it.

    >>> print(markdown_table(["attack", "ECE", "KS"], [["sa-mma", "0.54", "0.51"]]), end="")
    | attack | ECE | KS |
    | --- | ---: | ---: |
    | sa-mma | 0.54 | 0.51 |
    """
    sides = align.ljust(len(head), align[-1])
    rule = ["---:" if side == "r" else "---" for side in sides[: len(head)]]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *rows))
