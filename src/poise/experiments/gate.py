"""Limits that a model must keep, as TOML, and the rows that break them."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poise.errors import InputError, brief, one_of
from poise.experiments.measure import METRICS
from poise.spec import read_toml


@dataclass(frozen=True, slots=True)
class Failure:
    """One broken limit.

    Args:
        recipe, defence, metric: which figure.
        value: the figure.
        limit: what it had to keep.
        kind: "at most" or "at least".
    """

    recipe: str
    defence: str
    metric: str
    value: float | None
    limit: float
    kind: str

    def __str__(self) -> str:
        given = "undefined" if self.value is None else f"{self.value:.4g}"
        return f"{self.recipe} × {self.defence}: {self.metric} must be {self.kind} {self.limit:g}, got {given}"


@dataclass(frozen=True)
class Gate:
    """Limits on the metrics of an audit, held against every aware row.

    A gate file names metrics: `ece_after = 0.3` is the most that is allowed, a table `[min]` holds the least.
    `recipes` and `defences`, lists of names, choose the rows; all where they are missing.

    Args:
        most, least: limits by metric.
        recipes, defences: names; empty for all.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "gate.toml").write_text("ece_after = 0.3")
    ...     gate = Gate.read(Path(folder, "gate.toml"))
    >>> gate.most
    {'ece_after': 0.3}
    """

    most: dict[str, float] = field(default_factory=dict)
    least: dict[str, float] = field(default_factory=dict)
    recipes: tuple[str, ...] = ()
    defences: tuple[str, ...] = ()

    @staticmethod
    def read(path: Path) -> Gate:
        """A gate from its TOML file; unknown metrics are named with the nearest known ones."""
        given = read_toml(path, "gate")
        recipes, defences = (_names(key, given.pop(key, [])) for key in ("recipes", "defences"))
        least, most = (_limits(given.pop(name, {}), name) for name in ("min", "max"))
        short = _limits(given, "gate")
        if twice := sorted(most.keys() & short.keys()):
            raise InputError(f"gate: '{path}' must set a limit once, got {twice[0]} at the top and in [max]")
        if not most and not least and not short:
            raise InputError(f"gate: '{path}' must set at least one limit such as ece_after = 0.3, got none")
        return Gate({**most, **short}, least, recipes, defences)

    @staticmethod
    def of(most: dict[str, float], least: dict[str, float]) -> Gate:
        """A gate for every row, from limits by metric.

        Raises:
            InputError: an unknown metric, or a limit that is no finite number.

        >>> Gate.of({"ece_after": 0.3}, {}).most
        {'ece_after': 0.3}
        """
        return Gate(_limits(most, "most"), _limits(least, "least"))

    def check(self, recipes: Collection[str], defences: Collection[str]) -> None:
        """Refuses a gate that names recipes or defences that are not run, so that nothing would be checked.

        Raises:
            InputError: it does.
        """
        for what, wanted, run in (("recipes", self.recipes, recipes), ("defences", self.defences, defences)):
            if missing := [name for name in wanted if name not in run]:
                raise InputError(f"gate: {what} must be among those that are run, got {', '.join(missing)}")

    def failures(self, summary: dict[str, Any]) -> list[Failure]:
        """The broken limits, in the summary's order; an undefined figure breaks its limit.

        Raises:
            InputError: as `check`.
        """
        rows = [row for row in summary["rows"] if row["view"] == "aware"]
        self.check({row["recipe"] for row in rows}, {row["defence"] for row in rows})
        chosen = [
            row
            for row in rows
            if (not self.recipes or row["recipe"] in self.recipes)
            and (not self.defences or row["defence"] in self.defences)
        ]
        found = []
        for row in chosen:
            for limits, kind in ((self.most, "at most"), (self.least, "at least")):
                for metric, limit in limits.items():
                    value = row["metrics"][metric]["value"]
                    if value is None or (value > limit if kind == "at most" else value < limit):
                        found.append(Failure(row["recipe"], row["defence"], metric, value, limit, kind))
        return found


def _limits(table: Any, where: str) -> dict[str, float]:
    if not isinstance(table, dict):
        raise InputError(f"gate: {where} must be a table of limits, got {brief(repr(table))}")
    for metric, limit in table.items():
        if metric not in METRICS:
            raise one_of("gate: metric", metric, list(METRICS))
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not math.isfinite(limit):
            raise InputError(f"gate: {metric} must be a number, got {brief(repr(limit))}")
    return {metric: float(limit) for metric, limit in table.items()}


def _names(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InputError(f"gate: {key} must be a list of names, got {brief(repr(value))}")
    return tuple(value)
