"""Colours and the common layout of the figures: colour-blind safe, in a light and a dark variant."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

INK, MUTED, GRID, PAPER = "#1d2126", "#565d66", "#dfe3e8", "#fdfdfc"
CLEAR = "rgba(0,0,0,0)"
RIGHT, WRONG, DEFERRED = "#0072b2", "#c85200", "#8b939d"
BAND = "rgba(0, 114, 178, 0.16)"
LINES = (RIGHT, WRONG, "#00805c", "#a8478a", "#8f6400", "#1f8795", "#4a5058")
"""Line colours after Okabe and Ito, darkened until each has a contrast of 3 : 1 or more on the page."""

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")

DARK: dict[str, str] = {
    INK: "#e8eaed",
    MUTED: "#a5adb7",
    GRID: "#343b44",
    PAPER: "#14171b",
    RIGHT: "#5aa9e6",
    WRONG: "#f0874a",
    DEFERRED: "#7c8590",
    BAND: "rgba(90, 169, 230, 0.3)",
    "#00805c": "#2fbf93",
    "#a8478a": "#d98fbb",
    "#8f6400": "#e0b13a",
    "#1f8795": "#6fd0d6",
    "#4a5058": "#c3c9d1",
}
"""What each colour of a figure becomes on a dark page."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def line_style(index: int) -> dict[str, Any]:
    """Line and marker of the index-th recipe: lines are told apart by colour and by the marker's shape.

    >>> line_style(1)["marker"]["symbol"], line_style(8)["marker"]["symbol"]
    ('square', 'diamond')
    """
    colour = LINES[index % len(LINES)]
    symbol = SYMBOLS[(index + index // len(LINES)) % len(SYMBOLS)]
    return {"line": {"color": colour, "width": 2}, "marker": {"color": colour, "symbol": symbol, "size": 7}}


def escaped(name: str) -> str:
    """A name as plotly shows it unchanged: plotly reads a few HTML tags in its texts.

    >>> escaped("a<b>")
    'a&lt;b>'
    """
    return name.replace("&", "&amp;").replace("<", "&lt;")


def layout(*, title: str, alt: str, height: int) -> dict[str, Any]:
    """A figure's layout in the page's style; `alt` is its text alternative, kept in `layout.meta`."""
    return {
        "template": "none",
        "title": {"text": title, "font": {"size": 14}},
        "meta": {"alt": alt},
        "height": height,
        "margin": {"l": 52, "r": 22, "t": 40, "b": 46},
        "font": {"family": FONT, "size": 12, "color": INK},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "dragmode": False,
        "legend": {"orientation": "h", "x": 0, "y": -0.22, "yanchor": "top", "font": {"size": 12}},
        "hoverlabel": {"font": {"family": FONT, "size": 12, "color": INK}, "bgcolor": PAPER, "bordercolor": MUTED},
    }


def share_axis(title: str, *, steps: tuple[int, ...] = (0, 20, 40, 60, 80, 100)) -> dict[str, Any]:
    """An axis of shares, marked in percent."""
    return axis(title) | {"tickvals": [step / 100 for step in steps], "ticktext": [f"{step} %" for step in steps]}


def axis(title: str) -> dict[str, Any]:
    """An axis in the page's style; the page scrolls under a finger, so axes do not zoom."""
    return {
        "title": {"text": title, "standoff": 8},
        "fixedrange": True,
        "gridcolor": GRID,
        "linecolor": MUTED,
        "tickcolor": MUTED,
        "ticks": "outside",
        "ticklen": 4,
        "zeroline": False,
        "showline": True,
        "automargin": True,
    }


def numbers(values: NDArray[np.float64]) -> list[float]:
    """The values as plotly takes them, to five decimals: a page needs no more."""
    return [round(float(number), 5) for number in values]
