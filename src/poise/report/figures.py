"""All figures of a page, by place, as what plotly.js draws: without titles, which the page sets itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import plotly.graph_objects as go
import polars as pl

from poise.report.confidence_figures import confidence_histograms, reliability
from poise.report.cost_figures import accuracy_over_queries, confidence_over_queries, cost, ece_over_queries
from poise.report.curve_figures import risk_coverage, success_fail
from poise.report.deferral import matrix
from poise.report.explain_page import explained_figures
from poise.report.folder import Block, Run
from poise.report.tables import Scoreboard
from poise.report.threshold_figures import cost_over_threshold
from poise.report.trace_figures import attack_trace

ALIKE = ("reliability", "histogram")
"""Figures that share one key, which the page sets itself."""

TITLE = 24
"""Pixels that the title takes in a figure; the page sets it as text, which wraps."""


def embedded(run: Run, board: Scoreboard) -> dict[str, dict[str, Any]]:
    """Figures by name: `reliability.R.C`, `histogram.R.C` for recipe R and column C of the scoreboard; `success.C`,
    `risk.C`; `threshold.C` where the run has costs; `ece.C`, `confidence.C` where it has curves; `trace.R.C` where it
    has traces; those of `explained_figures`."""
    return {name: _plain(figure, legend=not name.startswith(ALIKE)) for name, figure in _figures(run, board)}


def _figures(run: Run, board: Scoreboard) -> Iterator[tuple[str, go.Figure]]:
    threshold = float(run.summary["threshold"])
    for place, (defence, view) in enumerate(board.columns):
        blocks = {r: run.blocks[r, defence, view] for r in board.recipes if (r, defence, view) in run.blocks}
        for line, recipe in enumerate(board.recipes):
            if recipe in blocks:
                pair = (blocks[recipe].clean, blocks[recipe].attacked)
                yield f"reliability.{line}.{place}", reliability(*pair, name=recipe)
                yield f"histogram.{line}.{place}", confidence_histograms(*pair, name=recipe, threshold=threshold)
        yield from _threshold_curves(run, blocks, place)
        if run.summary.get("costs"):
            yield f"threshold.{place}", _threshold_cost(run, blocks)
        yield from _cost_curves(run, (defence, view), list(blocks), place)
        yield from _traces(run, (defence, view), board.recipes, place)
    yield from explained_figures(run)


def _threshold_curves(run: Run, blocks: dict[str, Block], place: int) -> Iterator[tuple[str, go.Figure]]:
    clean = next(iter(blocks.values())).clean
    attacked = {recipe: block.attacked for recipe, block in blocks.items()}
    about = run.summary["recipes"]
    free = {recipe for recipe in blocks if not about.get(recipe, {}).get("keeps_label", False)} or set(blocks)
    bounds = {
        recipe: block.wrong_confidence
        for recipe, block in blocks.items()
        if block.wrong_confidence is not None and about.get(recipe, {}).get("max_confidence", False)
    }
    chosen = {recipe: part for recipe, part in attacked.items() if recipe in free}
    classes = int(run.summary["target"]["num_classes"])
    yield f"success.{place}", success_fail(clean, chosen, max_confidence=bounds, classes=classes)
    yield f"risk.{place}", risk_coverage(clean, attacked)


def _threshold_cost(run: Run, blocks: dict[str, Block]) -> go.Figure:
    first = next(iter(blocks.values()))
    attacked = {recipe: block.attacked for recipe, block in blocks.items()}
    costs, threshold = matrix(run.summary["costs"]), float(run.summary["threshold"])
    return cost_over_threshold(first.clean, attacked, costs, labels=first.label, threshold=threshold)


def _traces(run: Run, model: tuple[str, str], recipes: list[str], place: int) -> Iterator[tuple[str, go.Figure]]:
    if run.traces is None:
        return
    here = run.traces.filter((pl.col("defence") == model[0]) & (pl.col("view") == model[1]))
    for line, recipe in enumerate(recipes):
        part = here.filter(pl.col("recipe") == recipe)
        if part.height:
            yield f"trace.{line}.{place}", attack_trace(part, name=recipe)


def _cost_curves(run: Run, model: tuple[str, str], recipes: list[str], place: int) -> Iterator[tuple[str, go.Figure]]:
    if run.curves is None:
        return
    here = run.curves.filter((pl.col("defence") == model[0]) & (pl.col("view") == model[1]))
    parts = {recipe: here.filter(pl.col("recipe") == recipe) for recipe in recipes}
    costs = {recipe: cost(part) for recipe, part in parts.items() if part.height}
    if costs:
        budget = int(run.summary["spec"].get("budget") or max(here["queries"].to_list()))
        yield f"ece.{place}", ece_over_queries(costs, budget=budget)
        yield f"confidence.{place}", confidence_over_queries(costs, budget=budget)
        yield f"accuracy.{place}", accuracy_over_queries(costs, budget=budget)


def _plain(figure: go.Figure, *, legend: bool) -> dict[str, Any]:
    spec = json.loads(figure.to_json())
    layout = spec["layout"]
    title, alt = layout.pop("title")["text"], layout.pop("meta")["alt"]
    layout.pop("template", None)
    layout["height"] -= TITLE
    layout["margin"]["t"] -= TITLE
    layout["showlegend"] = legend
    return {"title": title, "alt": alt, "height": layout["height"], "data": spec["data"], "layout": layout}
