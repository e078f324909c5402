"""The fixture `poise_audit`: an audit as a test of one's own suite; pytest finds it by the entry point pytest11."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import polars as pl

    from poise.data import Dataset
    from poise.targets import Target


@dataclass(frozen=True)
class Audited:
    """What an audit found.

    Args:
        summary: what `summary.json` holds.
        folder: of the run, with tables and adversarial images.

    >>> row = {"recipe": "pgd", "defence": "none", "view": "aware", "metrics": {"ece_after": {"value": 0.2}}}
    >>> Audited({"rows": [row]}, Path("run")).value("ece_after", "pgd")
    0.2
    """

    summary: dict[str, Any]
    folder: Path

    def value(self, metric: str, recipe: str, defence: str = "none") -> float | None:
        """A figure against an attacker who knows the defence; None where it is undefined.

        Args:
            metric: as in a gate file, e.g. "ece_after".
            recipe, defence: names of those that were run.

        Raises:
            InputError: one of them was not measured; the message has the nearest that were.
        """
        from poise.errors import one_of

        rows = {(row["recipe"], row["defence"]): row for row in self.summary["rows"] if row["view"] == "aware"}
        if (recipe, defence) not in rows:
            raise one_of("poise_audit: row", f"{recipe} × {defence}", [f"{one} × {other}" for one, other in rows])
        figures = rows[recipe, defence]["metrics"]
        if metric not in figures:
            raise one_of("poise_audit: metric", metric, list(figures))
        found: float | None = figures[metric]["value"]
        return found

    def check(
        self,
        gate: str | Path | None = None,
        *,
        most: dict[str, float] | None = None,
        least: dict[str, float] | None = None,
    ) -> None:
        """Fails the test with one line for every limit that is broken, and the report's address.

        Args:
            gate: TOML file of limits, as `poise audit --gate` takes it.
            most, least: limits by metric, for all recipes and defences that were run; instead of a file.

        Raises:
            InputError: no limit, or one that makes no sense.
        """
        from poise.errors import InputError
        from poise.experiments import Gate

        if (gate is None) == (not (most or least)):
            raise InputError("poise_audit: check needs a gate file, or most= and least=, and not both")
        limits = Gate.of(most or {}, least or {}) if gate is None else Gate.read(Path(gate))
        if failures := limits.failures(self.summary):
            pytest.fail("\n".join([*map(str, failures), f"report: {self.report()}"]), pytrace=False)

    def report(self) -> Path:
        """Writes the page of the audit into its folder and returns its path."""
        from poise import report

        return report.write(self.folder)


class _Silent:
    """Hears how an audit goes, and says nothing."""

    def note(self, line: str) -> None: ...

    def ready(self, target: Target, attacked: Dataset, clean: dict[str, float]) -> None: ...

    def begin(self, recipe: str, defence: str, done: int, total: int) -> None: ...

    def advance(self, samples: float, queries: int) -> None: ...

    def end(self, rows: pl.DataFrame) -> None: ...


@pytest.fixture(scope="session")
def poise_audit(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Audited]:
    """Audits a model: `poise_audit(model, data, **options)` gives an `Audited`.

    `model` and `data` are addresses as for `poise audit`; `py:FILE:FACTORY?num_classes=N` takes a network that the test
    file itself makes. Options are those of the command with underscores (`recipes=("standard",)`, `samples=100`,
    `eps`, `norm`, `budget`, `steps`, `seed`, `device`, …). Unless told otherwise no defence is put before the model.
    """

    def run(model: str, data: str, **options: Any) -> Audited:
        from poise.experiments import run_audit
        from poise.experiments.audit_spec import make_spec

        spec = make_spec(**{"model": model, "data": data, "defences": ("none",)} | options)
        folder = tmp_path_factory.mktemp("poise", numbered=True) / "run"
        return Audited(run_audit(spec, folder, resume=False, listener=_Silent()), folder)

    return run
