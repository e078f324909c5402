"""How an audit shows itself while it runs: a bar per attack on a terminal, a line per attack elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from poise.cli.console import say, stop

if TYPE_CHECKING:
    import polars as pl

    from poise.data import Dataset
    from poise.targets import Target


class Bars:
    """An `AuditListener` that writes to the error stream, so that standard output stays for results.

    Args:
        console: where to write.
        budget: most queries per sample.
        silent: write nothing.
    """

    def __init__(self, console: Console, budget: int, *, silent: bool) -> None:
        self._console, self._budget, self._silent = console, budget, silent
        self._progress = Progress(
            TextColumn("{task.fields[name]:<26}"),
            BarColumn(24),
            TextColumn("{task.completed:>6.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[spent]:>14}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[found]}"),
            console=console,
            disable=silent or not console.is_terminal,
        )
        self._name, self._began, self._spent = "", 0.0, 0

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stop(self._progress)

    def note(self, line: str) -> None:
        self._say(line)

    def ready(self, target: Target, attacked: Dataset, clean: dict[str, float]) -> None:
        self._say(
            f"{len(attacked)} images of {attacked.name}: accuracy {clean['accuracy']:.1%}, mean confidence "
            f"{clean['confidence']:.1%}, ECE {clean['ece']:.3f}, KS {clean['ks']:.3f}"
        )

    def begin(self, recipe: str, defence: str, done: int, total: int) -> None:
        self._name = recipe if defence == "none" else f"{recipe} × {defence}"
        self._began, self._spent = time.perf_counter(), 0
        self._task = self._progress.add_task("", total=total, completed=done, name=self._name, spent="", found="")

    def advance(self, samples: float, queries: int) -> None:
        self._spent = max(self._spent, queries)
        self._progress.update(self._task, completed=samples, spent=f"{queries:,} queries")

    def end(self, rows: pl.DataFrame) -> None:
        from poise import metrics

        right = (rows["prediction_after"] == rows["label"]).to_numpy().astype(float)
        ece = metrics.ece(rows["confidence_after"].to_numpy(), right)
        mean = float(rows["queries"].to_numpy().mean())
        self._progress.update(self._task, completed=len(rows), found=f"ECE {ece:.3f}", spent=f"{mean:,.0f} queries")
        if not self._console.is_terminal:
            seconds = time.perf_counter() - self._began
            self._say(f"{self._name:<26} {len(rows)} images  {mean:,.0f} queries  {seconds:.0f} s  ECE {ece:.3f}")

    def _say(self, line: str) -> None:
        if not self._silent:
            say(self._console, line)
