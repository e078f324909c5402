"""Penultimate features in two dimensions, before and after each attack, all panels in one frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from poise.report.explain_folder import CLEAN
from poise.report.explain_grid import SCALE, text
from poise.report.style import GRID, INK, MUTED, axis, escaped, layout, numbers
from poise.report.words import count, percent

METHODS = {"tsne": ("t-SNE", ("t-SNE 1", "t-SNE 2")), "pca": ("principal components", ("component 1", "component 2"))}
PANEL, MOST_CLASSES = 250, 12
"""Pixels that a row of panels takes; classes, at most, whose names are written into the panels."""

COLUMNS = 2
MARKS = (("right", "circle", 7), ("wrong", "x", 9))
"""Name, symbol and size of the two kinds of points."""


def feature_map(
    features: pl.DataFrame,
    *,
    method: str = "tsne",
    class_names: list[str] | None = None,
    separation: Mapping[str, float | None] | None = None,
    variance: tuple[float, float] | None = None,
) -> go.Figure:
    """Features of the images before and after each attack, one panel a version, as Fig. 5 of Obadinma et al.

    All versions lie in one embedding, so that a place means the same in every panel. The colour is the confidence, a
    cross a wrong answer; the names of the classes stand where the clean images of that prediction lie.

    Args:
        features: version, id, label, prediction, confidence and the places in two dimensions.
        method: "tsne" or "pca".
        class_names: names by number.
        separation: by version, the mean silhouette s of the predicted classes, written over the panels.
        variance: shares of the variance in the two components, written at the axes of "pca".

    Returns:
        a figure of panels; the title says which attack mixes the classes most.
    """
    name, axes = METHODS[method]
    if method == "pca" and variance:
        axes = (f"{axes[0]} ({percent(variance[0])})", f"{axes[1]} ({percent(variance[1])})")
    versions = features["version"].unique(maintain_order=True).to_list()
    apart = dict(separation or {})
    title = _title(apart, name)
    if method == "pca" and variance:
        title = f"Two directions that hold {percent(sum(variance))} of what differs between all features"
    told = "; ".join(f"{version} {_short(apart.get(version))}" for version in versions)
    lines = -(-len(versions) // COLUMNS)
    alt = f"Features of {count(features['id'].n_unique(), 'image')} by {name}, separation of the classes: {told}."
    shown = layout(title=title, alt=alt, height=lines * PANEL + 150)
    shown["margin"] |= {"b": 116}
    shown["coloraxis"] = _colour_bar()
    shown["legend"] |= {"y": -62 / (lines * PANEL), "x": 0}
    limits = [_limits(features[f"{method}_{letter}"]) for letter in "xy"]
    shown["annotations"], traces = [], _key()
    centres = _centres(features.filter(pl.col("version") == versions[0]), method, class_names or [])
    for place, version in enumerate(versions):
        part = features.filter(pl.col("version") == version)
        _panel(shown, place, (lines, place + COLUMNS >= len(versions)), limits, axes)
        traces += _points(part, method, place, class_names or [])
        shown["annotations"] += [*_names(centres, place), _heading(version, apart.get(version), place)]
    return go.Figure(data=traces, layout=shown)


def _title(apart: dict[str, float | None], method: str) -> str:
    known = {name: value for name, value in apart.items() if value is not None}
    clean = known.pop(CLEAN, None)
    if clean is None or not known:
        return f"Features before and after each attack, by {method}"
    lowest = min(known, key=lambda name: known[name])
    told = f"their separation (silhouette) is {clean:.2f} before and {known[lowest]:.2f} after"
    return f"{'No attack' if known[lowest] >= clean - 0.01 else lowest} mixes the classes: {told}"


def _panel(
    shown: dict[str, Any], place: int, rows: tuple[int, bool], limits: list[tuple[float, float]], axes: tuple[str, str]
) -> None:
    lines, last = rows  # how many rows of panels, and whether this one is the lowest of its column
    line, column, key = place // COLUMNS, place % COLUMNS, str(place + 1) if place else ""
    wide, tall = 1 / COLUMNS, 1 / lines
    bare = {"showticklabels": False, "ticks": "", "showgrid": False, "mirror": True, "linecolor": GRID}
    across = axis(axes[0] if last else "") | bare
    up = axis(axes[1] if not column else "") | bare
    shown[f"xaxis{key}"] = across | {
        "domain": [column * wide + 0.01, (column + 1) * wide - 0.01],
        "anchor": f"y{key}",
        "range": limits[0],
    }
    top = 1 - line * tall
    shown[f"yaxis{key}"] = up | {"domain": [top - tall + 0.02, top - 22 / (lines * PANEL)], "anchor": f"x{key}"}
    shown[f"yaxis{key}"] |= {"range": limits[1]}


def _points(part: pl.DataFrame, method: str, place: int, class_names: list[str]) -> list[dict[str, Any]]:
    key = str(place + 1) if place else ""
    found = []
    for right, (name, symbol, size) in zip((True, False), MARKS, strict=True):
        rows = part.filter((pl.col("prediction") == pl.col("label")) == right)
        told = [
            f"predicted {_class(p, class_names)}, in truth {_class(y, class_names)}, confidence {c:.1%}"
            for p, y, c in rows.select("prediction", "label", "confidence").iter_rows()
        ]
        found.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "showlegend": False,
                "x": numbers(rows[f"{method}_x"].to_numpy()),
                "y": numbers(rows[f"{method}_y"].to_numpy()),
                "marker": {
                    "symbol": symbol,
                    "size": size,
                    "color": numbers(rows["confidence"].to_numpy()),
                    "coloraxis": "coloraxis",
                    "line": {"color": MUTED if right else INK, "width": 0.6},
                },
                "text": told,
                "hovertemplate": "%{text}<extra></extra>",
                "xaxis": f"x{key}",
                "yaxis": f"y{key}",
            }
        )
    return found


def _key() -> list[dict[str, Any]]:
    """What the two marks mean, in the colour of the text: that of the points tells their confidence."""
    nowhere: dict[str, Any] = {"type": "scatter", "mode": "markers", "x": [None], "y": [None], "hoverinfo": "skip"}
    return [
        nowhere | {"name": name, "marker": {"symbol": mark, "size": size, "color": INK}} for name, mark, size in MARKS
    ]


def _centres(part: pl.DataFrame, method: str, class_names: list[str]) -> list[tuple[str, float, float]]:
    """Name and median place of each predicted class; none where they are too many to write."""
    where = (pl.col(f"{method}_x").median(), pl.col(f"{method}_y").median())
    rows = part.group_by("prediction").agg(*where).sort("prediction")
    if rows.height > MOST_CLASSES:
        return []
    return [(_class(k, class_names), float(x), float(y)) for k, x, y in rows.iter_rows()]


def _names(centres: list[tuple[str, float, float]], place: int) -> list[dict[str, Any]]:
    key = str(place + 1) if place else ""
    where = {"xref": f"x{key}", "yref": f"y{key}", "bgcolor": "rgba(253, 253, 252, 0.75)", "borderpad": 1}
    return [text(f"<b>{name}</b>", x=x, y=y, size=11, colour="#000", **where) for name, x, y in centres]


def _heading(version: str, apart: float | None, place: int) -> dict[str, Any]:
    key = str(place + 1) if place else ""
    told = escaped(version) + ("" if apart is None else f" · s {apart:.2f}")
    where = {"xref": f"x{key} domain", "yref": f"y{key} domain", "xanchor": "left", "yanchor": "bottom"}
    return text(told, x=0, y=1, size=12, colour=INK, **where)


def _colour_bar() -> dict[str, Any]:
    bar = {"orientation": "h", "x": 1, "xanchor": "right", "y": 0, "yanchor": "top", "len": 0.55, "thickness": 10}
    ticks = {"tickvals": [0, 0.5, 1], "ticktext": ["0 %", "50 %", "100 %"], "tickfont": {"size": 11}}
    title = {"text": "confidence", "side": "bottom", "font": {"size": 12}}
    bar |= {"ypad": 40, "xpad": 0, "outlinecolor": GRID}
    return {"cmin": 0, "cmax": 1, "colorscale": SCALE, "colorbar": bar | ticks | {"title": title}}


def _limits(values: pl.Series) -> tuple[float, float]:
    low, high = float(np.min(values.to_numpy())), float(np.max(values.to_numpy()))
    space = 0.06 * (high - low) or 1.0
    return round(low - space, 4), round(high + space, 4)


def _class(index: int, class_names: list[str]) -> str:
    return escaped(str(class_names[index])) if 0 <= index < len(class_names) else str(index)


def _short(number: float | None) -> str:
    return "–" if number is None else f"{number:.2f}"
