"""How `poise bench run` shows itself: a bar on a terminal, lines elsewhere; on the error stream."""

from __future__ import annotations

import time

from rich.progress import MofNCompleteColumn, TextColumn

from poise.cli.console import Shown

LINE_SECONDS = 10.0
"""Between two lines where there is no terminal."""


class Bar(Shown):
    """A `Listener` of `poise.experiments.bench.run`.

    Args:
        silent: write nothing.
    """

    def __init__(self, *, silent: bool) -> None:
        count, what = (MofNCompleteColumn(), TextColumn("shards")), TextColumn("{task.description}", markup=False)
        super().__init__((), count, (what,), silent=silent, width=24)
        self._task = self._bar.add_task("", total=None)
        self._done = self._total = 0
        self._said = time.monotonic()

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
            self.note(f"{self._done}/{self._total} shards; {what}: {seconds:.1f} s")

    def failed(self, what: str, reason: str) -> None:
        self.note(f"failed   {what}: {reason}")
