"""What the commands share in writing for a person: a line as it is, and the end of a progress bar."""

from __future__ import annotations

from rich.console import Console
from rich.progress import Progress


def say(console: Console, line: str) -> None:
    """Writes the line whole, without reading markup or emoji names in it; a terminal wraps it where it likes."""
    console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)


def stop(progress: Progress) -> None:
    """Ends a progress bar; one that shows nothing is left alone, as rich before 14.3 ends it with an empty line."""
    if not progress.disable:
        progress.stop()
