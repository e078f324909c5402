"""poise list: what there is, by name, with one line each."""

from __future__ import annotations

import json
from collections.abc import Callable

import typer

from poise import data, defenses, detectors, models
from poise.errors import one_of
from poise.objectives import OBJECTIVES
from poise.recipebook import PEERS, recipes
from poise.recipebook.calibration import GOALS
from poise.recipebook.queries import SCORES
from poise.searches import SEARCHES
from poise.training import training_recipes

HELP = """Name what there is: recipes, objectives, searches, defenses, detectors, training, models or data.

\b
Example:
  poise list recipes
  poise list models --json
"""


def _first_line(part: object) -> str:
    return (part.__doc__ or "").strip().splitlines()[0]


def _recipes() -> dict[str, str]:
    ours = {name: f"{recipe.summary} ({recipe.paper})" for name, recipe in recipes().items()}
    composed = {f"{search}-GOAL": f"{search} for a GOAL: {', '.join(GOALS)}" for search in SCORES}
    return ours | composed | {name: f"{peer.summary} ({peer.paper}; needs extra peers)" for name, peer in PEERS.items()}


KINDS: dict[str, Callable[[], dict[str, str]]] = {
    "recipes": _recipes,
    "objectives": lambda: {name: _first_line(kind) for name, kind in OBJECTIVES.items()},
    "searches": lambda: {name: _first_line(kind) for name, kind in SEARCHES.items()},
    "defenses": defenses.summaries,
    "detectors": detectors.summaries,
    "training": lambda: {name: f"{recipe.summary} ({recipe.paper})" for name, recipe in training_recipes().items()},
    "models": models.names,
    "data": data.names,
}
"""What can be listed, and how."""


def listing(
    kind: str = typer.Argument(help=", ".join(KINDS)),
    as_json: bool = typer.Option(False, "--json", help="Print a JSON object of names and lines."),
) -> None:
    if kind not in KINDS:
        raise one_of("list", kind, list(KINDS))
    found = KINDS[kind]()
    if as_json:
        typer.echo(json.dumps(found))
        return
    width = max(map(len, found))
    for name, line in found.items():
        typer.echo(f"{name:<{width}}  {line}")
