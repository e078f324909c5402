"""Grad-CAM before and after an attack: how alike the maps are, and the maps of the images that moved most."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from poise.report.explain_folder import Explanation
from poise.report.explain_grid import caption, colour_bar, grid, heat, photo
from poise.report.folder import Floats
from poise.report.style import RIGHT, axis, escaped, layout
from poise.report.words import count, percent

MEASURES = {"pearson": "Pearson", "ssim": "SSIM", "overlap": "IoU at 0.5"}
"""The similarities of two maps, 1 where they are equal."""


SIDE = 24
"""Of maps with a longer side every k-th pixel is drawn: they come from far fewer places."""


def cam_similarity(cams: pl.DataFrame) -> go.Figure:
    """How alike the Grad-CAM maps of each image are before and after each attack: the distribution over the images.

    The box holds the middle half of the images, the line in it is the median, the whiskers hold 90 % of them.

    Args:
        cams: recipe, id, pearson, ssim, overlap, one row an image and recipe; empty cells where a similarity is
            undefined, because a map is constant or has no bright part.

    Returns:
        a figure of three panels, one a similarity, with a box for each recipe; the title names the recipe that moves
        the maps most.

    >>> similar = {"pearson": [0.9, 0.7], "ssim": [0.8, 0.6], "overlap": [1.0, 0.5]}
    >>> cam_similarity(pl.DataFrame({"recipe": ["sa-uca"] * 2, "id": [0, 1], **similar})).layout.title.text
    'sa-uca moves the Grad-CAM maps most: median Pearson correlation 0.80 (overlap 0.75) over 2 images'
    """
    recipes = cams["recipe"].unique(maintain_order=True).to_list()
    found = {name: {m: _known(cams, name, m) for m in MEASURES} for name in recipes}
    medians = {name: {m: _median(values) for m, values in part.items()} for name, part in found.items()}
    worst = min(recipes, key=lambda name: _or(medians[name]["pearson"], 2.0))
    images = count(cams["id"].n_unique(), "image")
    told = (
        f"median Pearson correlation {_short(medians[worst]['pearson'])} (overlap {_short(medians[worst]['overlap'])})"
    )
    alt = "Similarity of Grad-CAM maps before and after, medians of Pearson, SSIM and IoU: " + "; ".join(
        f"{name} {', '.join(_short(value) for value in part.values())}" for name, part in medians.items()
    )
    height = 110 + 34 * len(recipes)
    shown = layout(title=f"{worst} moves the Grad-CAM maps most: {told} over {images}", alt=f"{alt}.", height=height)
    wide, traces = 1 / len(MEASURES), []
    for place, (measure, name) in enumerate(MEASURES.items()):
        key = str(place + 1) if place else ""
        low = min(0.0, *(float(part[measure].min()) for part in found.values() if len(part[measure])), 0.0)
        across = axis(name) | {"domain": [place * wide + 0.015, (place + 1) * wide - 0.015], "anchor": f"y{key}"}
        shown[f"xaxis{key}"] = across | {"range": [low - 0.04, 1.04], "tickvals": [-1, 0, 0.5, 1], "tickangle": 0}
        up = axis("") | {"anchor": f"x{key}", "autorange": "reversed", "showgrid": False, "ticks": ""}
        shown[f"yaxis{key}"] = up | {"showticklabels": not place, "matches": "y" if place else None}
        drawn = {recipe: part[measure] for recipe, part in found.items() if len(part[measure])}
        traces.append(_boxes(drawn, name) | {"xaxis": f"x{key}", "yaxis": f"y{key}"})
    return go.Figure(data=traces, layout=shown)


def _boxes(values: dict[str, Floats], name: str) -> dict[str, Any]:
    """One box a recipe, with its numbers worked out here."""
    quantiles = {recipe: np.quantile(part, [0.05, 0.25, 0.5, 0.75, 0.95]) for recipe, part in values.items()}
    low, first, middle, third, high = (
        zip(*(q.tolist() for q in quantiles.values()), strict=True) if quantiles else [()] * 5
    )
    return {
        "type": "box",
        "name": name,
        "orientation": "h",
        "y": [escaped(recipe) for recipe in values],
        "lowerfence": [round(x, 4) for x in low],
        "q1": [round(x, 4) for x in first],
        "median": [round(x, 4) for x in middle],
        "q3": [round(x, 4) for x in third],
        "upperfence": [round(x, 4) for x in high],
        "line": {"color": RIGHT, "width": 1.5},
        "fillcolor": "rgba(0, 114, 178, 0.16)",
        "whiskerwidth": 0.6,
        "showlegend": False,
    }


def cam_maps(explained: Explanation, recipe: str) -> go.Figure:
    """Images, their Grad-CAM maps, and the maps after an attack, for the class that the model predicts.

    Obadinma et al., Calibration Attacks, Fig. 3 shows such maps laid over the images; here they stand under them, on
    one scale from dark to light.

    Args:
        explained: explanations with maps.
        recipe: one of its attacks.

    Returns:
        a figure with three rows of pictures; under each map the confidence, under the second one the Pearson
        correlation r and the overlap of the two.
    """
    rows = explained.pictures.filter(pl.col("recipe") == recipe)
    similar = {} if explained.cams is None else _by_image(explained.cams.filter(pl.col("recipe") == recipe))
    clean, before, after = explained.images["clean"], explained.images["cam"], explained.images[f"cam.{recipe}"]
    pearson = [similar.get(name, {}).get("pearson") for name in rows["id"]]
    told = ", ".join(_short(value) for value in pearson)
    title = f"{recipe}: where the answer comes from, before and after (Pearson {told})"
    names, columns = ["image", "before", "after"], len(clean)
    shown = grid(names, columns, title=title, alt=f"Grad-CAM maps of {count(columns, 'image')}. {title}.", below=58)
    traces = []
    for place, row in enumerate(rows.iter_rows(named=True)):
        traces.append(photo(clean[place], 0, place, columns))
        maps = (before[place], after[place])
        traces += [heat(m, 1 + k, place, columns, note="Grad-CAM", side=SIDE) for k, m in enumerate(maps)]
        values = similar.get(row["id"], {})
        alike = f"r {_brief(values.get('pearson'))} IoU {_brief(values.get('overlap'))}"
        under = (f"image {row['id']}", _sure(row["confidence_before"]), f"{_sure(row['confidence_after'])}<br>{alike}")
        shown["annotations"] += [caption(line, k, place, columns) for k, line in enumerate(under)]
    shown["coloraxis"] = colour_bar("Grad-CAM, share of the map’s largest value", 0, 1, [0, 0.5, 1])
    return go.Figure(data=traces, layout=shown)


def _by_image(table: pl.DataFrame) -> dict[int, dict[str, float | None]]:
    return {row["id"]: row for row in table.iter_rows(named=True)}


def _known(cams: pl.DataFrame, recipe: str, measure: str) -> Floats:
    return numbers_of(cams.filter(pl.col("recipe") == recipe)[measure])


def numbers_of(column: pl.Series) -> Floats:
    """The cells of a column that are not empty."""
    values: Floats = column.drop_nulls().cast(pl.Float64).to_numpy()
    return values


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _median(values: Floats) -> float | None:
    return float(np.median(values)) if len(values) else None


def _short(number: float | None) -> str:
    return "–" if number is None else f"{number:.2f}"


def _brief(number: float | None) -> str:
    """A similarity in the little room under a picture: .97, 1, -.45."""
    return "–" if number is None else f"{number:.2f}".replace("0.", ".", 1).replace("1.00", "1")


def _sure(confidence: float) -> str:
    return percent(confidence).replace("over ", "&gt;").replace("under ", "&lt;") + " sure"
