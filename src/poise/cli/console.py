"""What the commands share in writing for a person: a line as it is, and a progress bar that comes and goes."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def say(console: Console, line: str) -> None:
    """Writes the line whole, without reading markup or emoji names in it; a terminal wraps it where it likes."""
    console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)


class Shown:
    """A bar on a terminal, lines elsewhere; on the error stream, so that standard output stays for results.

    Args:
        before, count, after: columns before the bar, behind it, and behind the times.
        silent: write nothing.
        width: of the bar.
        console: where to write; None is the error stream.
        transient: the bar goes at its end.
    """

    def __init__(
        self,
        before: tuple[ProgressColumn, ...],
        count: tuple[ProgressColumn, ...],
        after: tuple[ProgressColumn, ...] = (),
        *,
        silent: bool,
        width: int = 30,
        console: Console | None = None,
        transient: bool = False,
    ) -> None:
        self._console, self._silent = console or Console(stderr=True), silent
        times = TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
        self._bar = Progress(
            *before,
            BarColumn(width),
            *count,
            *times,
            *after,
            console=self._console,
            disable=silent or not self._console.is_terminal,
            transient=transient,
        )

    def open(self) -> None:
        """Shows the bar."""
        self._bar.start()

    def close(self) -> None:
        """Ends the bar; one that shows nothing is left alone, as rich before 14.3 ends it with an empty line."""
        if not self._bar.disable:
            self._bar.stop()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def note(self, line: str) -> None:
        """Writes a line."""
        if not self._silent:
            say(self._console, line)
