"""What an attack does on its way: margin, confidence and step size over its iterations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from poise.report.folder import Floats, Ints
from poise.report.style import BAND, CLEAR, MUTED, RIGHT, WRONG, axis, layout, numbers, share_axis
from poise.report.words import count, percent

HEIGHT = 540
POINTS = 200
"""Iterations kept of a trace, evenly spaced: no screen shows more."""

SINGLES = 3
"""Images, from the first, that are drawn one by one."""

GAP = 0.05
"""Empty height between two panels, as a share of the figure."""


@dataclass(frozen=True)
class Trace:
    """One quantity over the iterations of an attack.

    Args:
        iteration: (t,) numbers of iterations, ascending; 0 is the clean image.
        median, low, high: (t,) the median, lower and upper quartile of the images.
        singles: iterations and values of the first `SINGLES` images.
    """

    iteration: Ints
    median: Floats
    low: Floats
    high: Floats
    singles: list[tuple[Ints, Floats]]


def trace(rows: pl.DataFrame, name: str, *, carried: bool = False) -> Trace | None:
    """Median, quartiles and single images of the column `name` of one attack's trace; None where it is empty.

    Where an attack asks for several points of an image in one iteration, the one of lowest loss stands for them.
    `carried`: an image that is not asked for in an iteration, because its attack has ended, keeps its last value.

    >>> rows = {"id": [0, 1, 0, 1, 1], "iteration": [0, 0, 1, 1, 1], "loss": [0.0, 0.0, 0.0, 2.0, 1.0]}
    >>> trace(pl.DataFrame({**rows, "margin": [4.0, 2.0, 1.0, 9.0, 2.0]}), "margin").median.tolist()
    [3.0, 1.5]
    """
    best = rows.sort("id", "iteration", "loss").unique(["id", "iteration"], keep="first", maintain_order=True)
    known = best.select("id", "iteration", pl.col(name).cast(pl.Float64).alias("value")).drop_nulls("value")
    if not known.height:
        return None
    everyone, value = _carried(known) if carried else known, pl.col("value")
    quartiles = (
        everyone.group_by("iteration")
        .agg(
            value.median().alias("median"),
            value.quantile(0.25, "linear").alias("low"),
            value.quantile(0.75, "linear").alias("high"),
        )
        .sort("iteration")
    )
    quartiles = quartiles[_thinned(quartiles.height)]
    first = known["id"].unique().sort()[:SINGLES].to_list()
    parts = [known.filter(pl.col("id") == one) for one in first]
    parts = [part[_thinned(part.height)] for part in parts]
    return Trace(
        iteration=quartiles["iteration"].to_numpy(),
        median=quartiles["median"].to_numpy(),
        low=quartiles["low"].to_numpy(),
        high=quartiles["high"].to_numpy(),
        singles=[(part["iteration"].to_numpy(), part["value"].to_numpy()) for part in parts],
    )


def crossings(rows: pl.DataFrame) -> float | None:
    """How often the margin changes its sign on the way of an attack, on average over the images; None without a margin.

    An attack whose steps are too long near the boundary goes back and forth between two classes, as dropout does in
    Fig. S1 of Martinez et al. Of several points in one iteration the one of lowest loss counts.

    >>> rows = {"id": [0] * 4, "iteration": [0, 1, 2, 3], "loss": [0.0] * 4, "margin": [2.0, -1.0, 1.0, 0.5]}
    >>> crossings(pl.DataFrame(rows))
    2.0
    """
    best = rows.sort("id", "iteration", "loss").unique(["id", "iteration"], keep="first", maintain_order=True)
    known = best.select("id", (pl.col("margin").cast(pl.Float64) > 0).alias("above")).drop_nulls("above")
    if not known.height:
        return None
    changed = known.with_columns((pl.col("above") != pl.col("above").shift(1).over("id")).fill_null(False))
    return float(changed.group_by("id").agg(pl.col("above").sum())["above"].to_numpy().mean())


def _carried(known: pl.DataFrame) -> pl.DataFrame:
    grid = known.select("id").unique().join(known.select("iteration").unique(), how="cross").sort("id", "iteration")
    full = grid.join(known, on=["id", "iteration"], how="left").sort("id", "iteration")
    return full.with_columns(pl.col("value").forward_fill().over("id")).drop_nulls("value")


def _thinned(length: int) -> Ints:
    """At most POINTS places, evenly spaced, both ends included."""
    places: Ints = np.unique(np.linspace(0, length - 1, min(length, POINTS)).round().astype(np.int64))
    return places


def attack_trace(rows: pl.DataFrame, *, name: str) -> go.Figure:
    """Margin, confidence and step size of one attack over its iterations, in panels one above the other.

    As Fig. S1 of Martinez et al. (step size and confidence oscillate where a step is undone) and Fig. 2 of Chen et al.,
    Adversarial Attack on Attackers (margin and confidence). Median, the middle half of the images, single images.

    Args:
        rows: the columns of `poise.table.TRACE` of one attack, one row a point that was asked for.
        name: the recipe.

    Returns:
        a figure of three panels, of two where the attack has no step size.
    """
    panels = [
        ("margin", axis("margin (logits)")),
        ("confidence", share_axis("confidence", steps=(0, 50, 100)) | {"range": [-0.02, 1.02]}),
        ("step", axis("step (pixel units)") | {"rangemode": "tozero"}),
    ]
    found = [(column, up, part) for column, up in panels if (part := trace(rows, column, carried=column != "step"))]
    confidence = next(part for column, _, part in found if column == "confidence")
    ends = f"{percent(float(confidence.median[0]))} → {percent(float(confidence.median[-1]))}"
    images, iterations = rows["id"].n_unique(), int(confidence.iteration[-1])
    title = f"{name}: median confidence {ends} in {count(iterations, 'iteration')}"
    told = "; ".join(f"{column} {part.median[0]:.3g} → {part.median[-1]:.3g}" for column, _, part in found)
    alt = f"{name} on {count(images, 'image')} over {count(iterations, 'iteration')}, medians: {told}."
    shown = layout(title=title, alt=alt, height=HEIGHT * len(found) // len(panels) + 40)
    shown["legend"]["y"] = -64 / (shown["height"] - shown["margin"]["t"] - shown["margin"]["b"])
    tall, whole = (1 + GAP) / len(found), {"dtick": 1} if iterations <= 10 else {}
    traces: list[dict[str, Any]] = []
    for place, (column, up, part) in enumerate(found):
        panel, last = str(place + 1) if place else "", place == len(found) - 1
        low = max(0.0, 1 - (place + 1) * tall + GAP)
        across = axis("iteration" if last else "") | {"anchor": f"y{panel}", "showticklabels": last, "matches": "x"}
        across |= whole
        shown[f"xaxis{panel}"] = across if place else across | {"matches": None}
        shown[f"yaxis{panel}"] = up | {"anchor": f"x{panel}", "domain": [low, low + tall - GAP]}
        form = "%{y:.1%}" if column == "confidence" else "%{y:.4g}"
        traces += [line | {"xaxis": f"x{panel}", "yaxis": f"y{panel}"} for line in _lines(part, form, key=not place)]
    if any(column == "margin" for column, _, _ in found):
        zero = {"type": "line", "xref": "x domain", "x0": 0, "x1": 1, "yref": "y", "y0": 0, "y1": 0}
        shown["shapes"] = [zero | {"line": {"color": MUTED, "width": 1, "dash": "dot"}}]
    return go.Figure(data=traces, layout=shown)


def _lines(part: Trace, form: str, *, key: bool) -> Iterator[dict[str, Any]]:
    """The band, the single images, and the median on top."""
    steps = part.iteration.tolist()
    common: dict[str, Any] = {"type": "scatter", "showlegend": key}
    yield common | {
        "name": "middle half of the images",
        "legendgroup": "band",
        "x": steps + steps[::-1],
        "y": numbers(np.concatenate([part.high, part.low[::-1]])),
        "mode": "lines",
        "fill": "toself",
        "fillcolor": BAND,
        "line": {"color": CLEAR, "width": 0},
        "hoverinfo": "skip",
    }
    for place, (at, values) in enumerate(part.singles):
        yield common | {
            "name": "single images",
            "legendgroup": "single",
            "showlegend": key and not place,
            "x": at.tolist(),
            "y": numbers(values),
            "mode": "lines",
            "line": {"color": WRONG, "width": 1, "dash": ("solid", "dash", "dot")[place % 3]},
            "hovertemplate": f"{form}, iteration %{{x}}<extra>image {place + 1}</extra>",
        }
    yield common | {
        "name": "median",
        "legendgroup": "median",
        "x": steps,
        "y": numbers(part.median),
        "mode": "lines+markers" if len(steps) == 1 else "lines",
        "line": {"color": RIGHT, "width": 2.5},
        "hovertemplate": f"{form}, iteration %{{x}}<extra>median</extra>",
    }
