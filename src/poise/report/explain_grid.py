"""Grids of small pictures: one column an image, one row a version of it, all on the same scales."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.report.gallery import data_uri
from poise.report.style import GRID, INK, MUTED, escaped, layout

SIDE, PHOTO = 48, 96
"""Of maps and of images with a longer side every k-th pixel is drawn: an average would hide the attack."""

ROW = 128
"""Pixels that a row of pictures takes, with the two lines under it."""

LEFT, LINES, GAP = 0.075, 34, 0.02
"""Width of the row names and of the gaps, as shares of the figure; pixels for two lines under a picture."""

SCALE = "Cividis"
"""From dark blue to light yellow; its lightness rises evenly, so it reads the same in grey and for the colour-blind."""

Picture = NDArray[np.float32]


def grid(rows: list[str], columns: int, *, title: str, alt: str, below: int) -> dict[str, Any]:
    """The layout of a grid of pictures with a name at the left of each row; `below` pixels stay free under it."""
    shown = layout(title=title, alt=alt, height=0)
    shown["margin"] |= {"l": 6, "r": 6, "b": below}
    shown["height"] = len(rows) * ROW + shown["margin"]["t"] + below
    wide, tall = (1 - LEFT) / columns, 1 / len(rows)
    shown["annotations"] = []
    for line, name in enumerate(rows):
        top = 1 - line * tall
        for column in range(columns):
            key = axis_key(line, column, columns)
            left = LEFT + column * wide
            bare = {"visible": False, "fixedrange": True}
            shown[f"xaxis{key}"] = bare | {"domain": [left + GAP / 2, left + wide - GAP / 2], "anchor": f"y{key}"}
            low = top - tall * (1 - LINES / ROW)
            shown[f"yaxis{key}"] = bare | {"domain": [low, top], "anchor": f"x{key}", "autorange": "reversed"}
            shown[f"yaxis{key}"] |= {"scaleanchor": f"x{key}", "constrain": "domain", "constraintoward": "top"}
            shown[f"xaxis{key}"] |= {"constrain": "domain"}
        middle = top - tall * (1 - LINES / ROW) / 2
        shown["annotations"].append(
            text(escaped(name), x=0.0, y=middle, xanchor="left", yanchor="middle", textangle=-90, size=12, colour=INK)
        )
    return shown


def axis_key(line: int, column: int, columns: int) -> str:
    """How plotly numbers the axes of a cell: "", "2", "3", …

    >>> axis_key(0, 0, 4), axis_key(1, 2, 4)
    ('', '7')
    """
    place = line * columns + column
    return str(place + 1) if place else ""


def caption(told: str, line: int, column: int, columns: int) -> dict[str, Any]:
    """Two short lines under a picture."""
    key = axis_key(line, column, columns)
    return text(
        told, x=0.5, y=0, xref=f"x{key} domain", yref=f"y{key} domain", xanchor="center", yanchor="top", size=10
    )


def text(told: str, *, x: float, y: float, size: int, colour: str = MUTED, **place: Any) -> dict[str, Any]:
    """A text in a figure, placed by default in shares of it."""
    usual = {"xref": "paper", "yref": "paper", "showarrow": False, "align": "center"}
    return usual | {"text": told, "x": x, "y": y, "font": {"size": size, "color": colour}} | place


def photo(picture: Picture, line: int, column: int, columns: int) -> dict[str, Any]:
    """An image (C, H, W) in [0, 1] as a trace."""
    step = stride(picture.shape[1:], PHOTO)
    key = axis_key(line, column, columns)
    source = data_uri(picture[:, ::step, ::step])
    return {"type": "image", "source": source, "xaxis": f"x{key}", "yaxis": f"y{key}", "hoverinfo": "skip"}


def heat(values: Picture, line: int, column: int, columns: int, *, note: str, side: int = SIDE) -> dict[str, Any]:
    """A map (H, W) as a trace on the figure's one colour axis; `note` names the value under the pointer."""
    step = stride(values.shape, side)
    key = axis_key(line, column, columns)
    return {
        "type": "heatmap",
        "z": np.round(values[::step, ::step].astype(np.float64), 3).tolist(),
        "coloraxis": "coloraxis",
        "xaxis": f"x{key}",
        "yaxis": f"y{key}",
        "hovertemplate": f"{note} %{{z:.3f}}<extra></extra>",
    }


def colour_bar(title: str, low: float, high: float, ticks: list[float]) -> dict[str, Any]:
    """The colour axis of a grid, its bar lying under the pictures."""
    return {
        "cmin": low,
        "cmax": high,
        "colorscale": SCALE,
        "colorbar": {
            "orientation": "h",
            "x": 0.5,
            "xanchor": "center",
            "y": 0,
            "yanchor": "top",
            "len": 0.8,
            "thickness": 10,
            "outlinecolor": GRID,
            "tickvals": ticks,
            "tickfont": {"size": 11},
            "title": {"text": title, "side": "bottom", "font": {"size": 12}},
        },
    }


def stride(shape: tuple[int, ...], side: int) -> int:
    """Every how many-th pixel of a picture is drawn.

    >>> stride((28, 28), 48), stride((224, 160), 48)
    (1, 5)
    """
    return -(-max(shape) // side)
