"""What the page shows of explanations: their figures by place, and one line of numbers for each attack."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import plotly.graph_objects as go
import polars as pl

from poise.report.explain_cams import cam_maps, cam_similarity
from poise.report.explain_features import feature_map
from poise.report.explain_folder import CLEAN, Explanation
from poise.report.explain_perturbations import perturbation_maps
from poise.report.explain_scores import score_change
from poise.report.folder import Run
from poise.report.trace_figures import crossings
from poise.report.words import count


@dataclass(frozen=True)
class Line:
    """What is measured of one attack, as text; a dash where it was not."""

    recipe: str
    pearson: str
    ssim: str
    overlap: str
    separation: str
    crossings: str


def explained_figures(run: Run) -> Iterator[tuple[str, go.Figure]]:
    """Figures of the undefended model by name: `explain-maps`, `explain-cams`, `explain-cam-R` for recipe R,
    `explain-tsne`, `explain-pca`, `explain-scores`, each with the column 0."""
    found = run.explained
    if found is None:
        return
    yield "explain-maps.0", perturbation_maps(found)
    if found.cams is not None:
        yield "explain-cams.0", cam_similarity(found.cams)
        for place, recipe in enumerate(found.recipes):
            yield f"explain-cam-{place}.0", cam_maps(found, recipe)
    if found.features is not None:
        names, apart = run.summary["data"].get("class_names") or [], found.facts.get("separation") or {}
        variance = tuple(found.facts.get("variance") or ()) or None
        for method in ("tsne", "pca"):
            figure = feature_map(found.features, method=method, class_names=names, separation=apart, variance=variance)
            yield f"explain-{method}.0", figure
    yield "explain-scores.0", score_change(found.scores)


def lines(run: Run) -> list[Line]:
    """The numbers behind the pictures, one line an attack, a first line for the clean images."""
    found = run.explained
    if found is None:
        return []
    apart = found.facts.get("separation") or {}
    first = Line("clean, no attack", "–", "–", "–", _short(apart.get(CLEAN)), "–")
    return [first, *(_line(run, found, recipe, apart.get(recipe)) for recipe in found.recipes)]


def _line(run: Run, found: Explanation, recipe: str, apart: float | None) -> Line:
    similar: dict[str, float | None] = dict.fromkeys(("pearson", "ssim", "overlap"))
    if found.cams is not None:
        mine = found.cams.filter(pl.col("recipe") == recipe)
        similar = mine.select(pl.median("pearson", "ssim", "overlap")).to_dicts()[0]
    told = "–"
    if run.traces is not None:
        part = run.traces.filter((pl.col("recipe") == recipe) & (pl.col("defence") == "none"))
        told = "–" if (times := crossings(part)) is None else f"{times:.1f}"
    return Line(
        recipe=recipe,
        pearson=_short(similar["pearson"]),
        ssim=_short(similar["ssim"]),
        overlap=_short(similar["overlap"]),
        separation=_short(apart),
        crossings=told,
    )


def read_at(found: Explanation) -> str:
    """Where maps and features were read, in words; empty where neither was.

    >>> read_at(Explanation({"layer": "1.layer4", "cam_images": 60}, *[pl.DataFrame()] * 3))
    'Grad-CAM is read at layer “1.layer4”, of 60 images.'
    """
    told, facts = [], found.facts
    if "layer" in facts:
        tokens = " (tokens of the patches)" if facts.get("layer_kind") == "tokens" else ""
        told.append(f"Grad-CAM is read at layer “{facts['layer']}”{tokens}, of {count(facts['cam_images'], 'image')}.")
    if "feature_layer" in facts:
        told.append(
            f"Features are the {facts['features']:,} numbers that layer “{facts['feature_layer']}” is given, of"
            f" {count(facts['feature_images'], 'image')}; t-SNE has perplexity {facts['perplexity']:.3g}."
        )
    return " ".join(told)


def _short(number: float | None) -> str:
    return "–" if number is None else f"{number:.2f}"
