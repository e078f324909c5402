"""poise list: what there is, by name, with one line each."""

from __future__ import annotations

import json
from collections.abc import Callable

import typer

from poise.errors import one_of

HELP = """Name what there is: recipes, objectives, searches, defenses, detectors, training, models, data, experiments.

\b
Example:
  poise list recipes
  poise list models --json
"""


def _first_line(part: object) -> str:
    return (part.__doc__ or "").strip().splitlines()[0]


def _recipes() -> dict[str, str]:
    from poise.recipebook import PEERS, recipes
    from poise.recipebook.calibration import GOALS
    from poise.recipebook.queries import SCORES

    ours = {name: f"{recipe.summary} ({recipe.paper})" for name, recipe in recipes().items()}
    composed = {f"{search}-GOAL": f"{search} for a GOAL: {', '.join(GOALS)}" for search in SCORES}
    others = {name: f"{peer.summary} ({peer.paper}; needs extra {peer.attack.extra})" for name, peer in PEERS.items()}
    return ours | composed | others


def _objectives() -> dict[str, str]:
    from poise.objectives import OBJECTIVES

    return {name: _first_line(kind) for name, kind in OBJECTIVES.items()}


def _searches() -> dict[str, str]:
    from poise.searches import SEARCHES

    return {name: _first_line(kind) for name, kind in SEARCHES.items()}


def _defenses() -> dict[str, str]:
    from poise import defenses

    return defenses.summaries()


def _detectors() -> dict[str, str]:
    from poise import detectors

    return detectors.summaries()


def _training() -> dict[str, str]:
    from poise.training import training_recipes

    return {name: f"{recipe.summary} ({recipe.paper})" for name, recipe in training_recipes().items()}


def _models() -> dict[str, str]:
    from poise import models

    return models.names()


def _data() -> dict[str, str]:
    from poise import data

    return data.names()


def _experiments() -> dict[str, str]:
    from poise.experiments.bench.catalog import summaries

    return summaries()


KINDS: dict[str, Callable[[], dict[str, str]]] = {
    "recipes": _recipes,
    "objectives": _objectives,
    "searches": _searches,
    "defenses": _defenses,
    "detectors": _detectors,
    "training": _training,
    "models": _models,
    "data": _data,
    "experiments": _experiments,
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
