"""One way to write a line for a person: as it is, whatever brackets and colons it holds."""

from __future__ import annotations

from rich.console import Console


def say(console: Console, line: str) -> None:
    """Writes the line whole, without reading markup or emoji names in it; a terminal wraps it where it likes."""
    console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)
