"""How `poise bench run` shows itself: a bar on a terminal, lines elsewhere; on the error stream."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from poise.cli.console import say, stop

LINE_SECONDS = 10.0
"""Between two lines where there is no terminal."""


class Bar:
    """A `Listener` of `poise.experiments.bench.run`.

    Args:
        silent: write nothing.
    """

    def __init__(self, *, silent: bool) -> None:
        self._console, self._silent = Console(stderr=True), silent
        self._bar = Progress(
            BarColumn(24),
            MofNCompleteColumn(),
            TextColumn("shards"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=self._console,
            disable=silent or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None)
        self._done = self._total = 0
        self._said = time.monotonic()

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stop(self._bar)

    def begin(self, total: int, done: int, left_out: dict[str, list[str]]) -> None:
        self._total, self._done = total - sum(map(len, left_out.values())), done
        self._bar.update(self._task, total=self._total, completed=done)

    def started(self, what: str) -> None:
        self._bar.update(self._task, description=what)

    def finished(self, what: str, seconds: float) -> None:
        self._done += 1
        self._bar.update(self._task, completed=self._done)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._said >= LINE_SECONDS or self._done == self._total):
            self._said = now
            self._say(f"{self._done}/{self._total} shards; {what}: {seconds:.1f} s")

    def failed(self, what: str, reason: str) -> None:
        self._say(f"failed   {what}: {reason}")

    def _say(self, line: str) -> None:
        if not self._silent:
            say(self._console, line)
