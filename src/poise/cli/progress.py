"""How an audit shows itself while it runs: a bar per attack on a terminal, a line per attack elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import TextColumn

from poise.cli.console import Shown

if TYPE_CHECKING:
    import polars as pl

    from poise.data import Dataset
    from poise.targets import Target


class Bars(Shown):
    """An `AuditListener` that writes to the error stream, so that standard output stays for results.

    Args:
        console: where to write.
        silent: write nothing.
    """

    def __init__(self, console: Console, *, silent: bool) -> None:
        super().__init__(
            (TextColumn("{task.fields[name]:<26}"),),
            (TextColumn("{task.completed:>6.0f}/{task.total:.0f}"), TextColumn("{task.fields[spent]:>14}")),
            (TextColumn("{task.fields[found]}"),),
            silent=silent,
            width=24,
            console=console,
        )
        self._name, self._began = "", 0.0

    def ready(self, target: Target, attacked: Dataset, clean: dict[str, float]) -> None:
        self.note(
            f"{len(attacked)} images of {attacked.name}: accuracy {clean['accuracy']:.1%}, mean confidence "
            f"{clean['confidence']:.1%}, ECE {clean['ece']:.3f}, KS {clean['ks']:.3f}"
        )

    def begin(self, recipe: str, defence: str, done: int, total: int) -> None:
        self._name = recipe if defence == "none" else f"{recipe} × {defence}"
        self._began = time.perf_counter()
        self._task = self._bar.add_task("", total=total, completed=done, name=self._name, spent="", found="")

    def advance(self, samples: float, queries: int) -> None:
        self._bar.update(self._task, completed=samples, spent=f"{queries:,} queries")

    def end(self, rows: pl.DataFrame) -> None:
        from poise import metrics

        right = (rows["prediction_after"] == rows["label"]).to_numpy().astype(float)
        ece = metrics.ece(rows["confidence_after"].to_numpy(), right)
        mean = float(rows["queries"].to_numpy().mean())
        self._bar.update(self._task, completed=len(rows), found=f"ECE {ece:.3f}", spent=f"{mean:,.0f} queries")
        if not self._console.is_terminal:
            seconds = time.perf_counter() - self._began
            self.note(f"{self._name:<26} {len(rows)} images  {mean:,.0f} queries  {seconds:.0f} s  ECE {ece:.3f}")
