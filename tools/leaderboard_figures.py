"""The leaderboard's tables, for tools/render.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

ENTRIES = Path(__file__).resolve().parent.parent / "leaderboard"


def _groups() -> list[dict[str, Any]]:
    from poise.experiments.leaderboard import rank, read_entries

    return [group.plain() for group in rank(read_entries(ENTRIES))]


def table() -> str:
    """Every group of entries as a table."""
    from poise.report import leaderboard

    return leaderboard.markdown(_groups())


def legend() -> str:
    """What the column of costs counts."""
    from poise.experiments.leaderboard import COSTS, THRESHOLD
    from poise.report import leaderboard

    return leaderboard.costs_told(COSTS.plain(), THRESHOLD) + "\n"


def page() -> str:
    """The page of the leaderboard."""
    from poise.experiments.leaderboard import COSTS, THRESHOLD
    from poise.report import leaderboard

    return leaderboard.render(_groups(), costs=COSTS.plain(), threshold=THRESHOLD)


def on_files(files: Any, config: Any) -> Any:
    """Hook of MkDocs: the page is part of the site, made from the entries whenever the site is."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "assets/leaderboard.html", content=page()))
    return files


FIGURES: dict[str, Callable[[], str]] = {"leaderboard": table, "leaderboard-costs": legend}
