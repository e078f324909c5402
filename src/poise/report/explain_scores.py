"""How a defence changes the scores of clean images: true-class probability and accuracy over groups of images."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from poise.report.folder import Floats
from poise.report.style import MUTED, axis, escaped, layout, line_style, numbers, share_axis
from poise.report.words import percent

HEIGHT = 420
GROUPS, FEWEST = 100, 3
"""Groups of images, as in the paper; fewer where a group would hold fewer than 3 images."""


def score_groups(scores: pl.DataFrame, *, groups: int = GROUPS) -> dict[str, tuple[Floats, Floats]]:
    """Mean true-class probability and accuracy of each group, by defence.

    The images are sorted by the true-class probability of the undefended model, ties by id, and parted into groups that
    differ by one image at most.

    Args:
        scores: defence, id, probability of the true class, and right (0 or 1); "none" is the undefended model.
        groups: how many; no more than a third of the images.

    Returns:
        by defence, two arrays (g,), from the lowest group to the highest.

    >>> answers = {"probability": [0.9, 0.2, 0.8, 0.1, 0.7, 0.3], "right": [1, 0] * 3}
    >>> rows = pl.DataFrame({"defence": ["none"] * 6, "id": range(6), **answers})
    >>> [part.round(2).tolist() for part in score_groups(rows)["none"]]
    [[0.2, 0.8], [0.0, 1.0]]
    """
    bare = scores.filter(pl.col("defence") == "none").sort("probability", "id")
    number = max(1, min(groups, bare.height // FEWEST))
    found = {}
    for defence in scores["defence"].unique(maintain_order=True):
        part = bare.select("id").join(scores.filter(pl.col("defence") == defence), on="id", maintain_order="left")
        columns = (part[name].cast(pl.Float64).to_numpy() for name in ("probability", "right"))
        means = [np.array([chunk.mean() for chunk in np.array_split(column, number)]) for column in columns]
        found[defence] = (means[0], means[1])
    return found


def score_change(scores: pl.DataFrame, *, groups: int = GROUPS) -> go.Figure:
    """True-class probability (solid) and accuracy (dotted) of each group of clean images, with and without defences.

    Chen et al., Adversarial Attack on Attackers, Fig. 3, left: the images are sorted by the true-class probability of
    the undefended model and parted into 100 groups of equal size; a defence that alters scores least lies nearest to
    the undefended line.

    Args:
        scores: as `score_groups`.
        groups: how many.

    Returns:
        a figure with two lines for each defence; the title names the defence that changes the probability most.
    """
    found = score_groups(scores, groups=groups)
    bare, number = found["none"], len(found["none"][0])
    moved = {name: float(np.abs(part[0] - bare[0]).mean()) for name, part in found.items() if name != "none"}
    most = max(moved, key=lambda name: moved[name]) if moved else None
    if most is None:
        title = (
            f"True-class probability of clean images: {percent(float(bare[0].mean()))} on average, no defence was tried"
        )
    else:
        title = f"{most} changes the true-class probability of clean images most: by {percent(moved[most])} on average"
    told = "; ".join(f"{name} {percent(value)}" for name, value in moved.items()) or "no defence"
    traces = [line for index, (name, part) in enumerate(found.items()) for line in _lines(name, part, index - 1)]
    across = axis("group of images, least sure first") | {"range": [0.5, number + 0.5]}
    up = share_axis("mean of the group") | {"range": [-0.02, 1.03]}
    shown = layout(title=title, alt=f"Mean change of the true-class probability: {told}.", height=HEIGHT)
    return go.Figure(data=traces, layout=shown | {"xaxis": across, "yaxis": up})


def _lines(name: str, part: tuple[Floats, Floats], index: int) -> list[dict[str, Any]]:
    """The probability as a solid line with about nine markers, the accuracy as a dotted one with hollow markers."""
    plain = {"line": {"color": MUTED, "width": 3}}
    style: dict[str, Any] = plain if index < 0 else line_style(index)
    if index >= 0:
        style["marker"]["maxdisplayed"] = 9
    shown = "no defence" if name == "none" else escaped(name)
    steps = list(range(1, len(part[0]) + 1))
    common: dict[str, Any] = {"type": "scatter", "x": steps, "legendgroup": name}
    solid = {"name": f"{shown}: probability", "y": numbers(part[0]), "mode": "lines" if index < 0 else "lines+markers"}
    dotted = {"name": f"{shown}: accuracy", "y": numbers(part[1]), "mode": "lines"}
    dotted |= {"line": style["line"] | {"dash": "dot", "width": 1.5}}
    if index >= 0:
        marker = style["marker"]
        dotted |= {"mode": "lines+markers", "marker": marker | {"symbol": f"{marker['symbol']}-open"}}
    note = "%{y:.1%} in group %{x}"
    return [common | style | solid | {"hovertemplate": note}, common | dotted | {"hovertemplate": note}]
