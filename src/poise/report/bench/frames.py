"""What the figures of `poise bench` share: what a result must have, how keys are written, panels on a grid."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import plotly.graph_objects as go
import polars as pl

from poise.report.explain_grid import text
from poise.report.style import INK, escaped, layout, line_style

KEYS = ("dataset", "model", "defence", "attack", "norm", "eps", "queries", "x")
"""What names a row of a result, as `poise.experiments.bench.reduce.KEYS`, which this package may not import."""

NUMBERS = ("eps", "queries", "x")

WIDTH = 900
"""Pixels of a figure where it is made into a picture."""

ABOVE, LINE, HEADING, BELOW = 40, 18, 24, 64
"""Pixels above the first row of panels (more for each further line of the title), above each panel (for its name), and
below each (for its axis)."""

LABELS = {
    "eps": "radius ε (pixel units, images in [0, 1])",
    "queries": "queries per image",
    "x": "x",
    "accuracy": "accuracy",
    "adv_accuracy": "accuracy under attack",
    "avg_confidence": "mean confidence",
    "confidence_right": "mean confidence, answers right before",
    "ece": "ECE",
    "ks": "KS calibration error",
    "avg_queries": "queries per image, mean",
    "median_queries": "queries per image, median",
    "delta_w": "ΔW (pixel units)",
    "ssim": "SSIM",
    "brier": "Brier score",
    "nll": "negative log-likelihood (nats)",
    "success": "share of attacks that succeed",
    "detection_auc": "AUROC of the detector",
    "detection_accuracy": "accuracy of the detector",
    "separation": "mean silhouette of the predicted classes",
    "opposite_steps": "share of steps shown reversed",
    "certified_lower": "certified lower bound of the confidence",
    "certified_upper": "certified upper bound of the confidence",
    "temperature": "temperature",
    "inference_ms": "ms per image",
    "gflops": "GFLOPs per image",
}
"""Axis titles of keys and metrics, with their units; others are called by their own name."""


class Drawing(Protocol):
    """What is read of the figure of a spec (`poise.experiments.bench.spec.Figure`)."""

    @property
    def draw(self) -> str: ...
    @property
    def x(self) -> str: ...
    @property
    def y(self) -> tuple[str, ...]: ...
    @property
    def series(self) -> tuple[str, ...]: ...
    @property
    def panels(self) -> tuple[str, ...]: ...
    @property
    def x_label(self) -> str: ...
    @property
    def y_label(self) -> str: ...
    @property
    def log_x(self) -> bool: ...


class Described(Protocol):
    """What is read of a spec (`poise.experiments.bench.spec.BenchSpec`)."""

    @property
    def shows(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def figure(self) -> Any: ...
    def profile(self, name: str) -> Any: ...


class Drawn(Protocol):
    """What is drawn: a result (`poise.experiments.bench.result.Result`)."""

    @property
    def name(self) -> str: ...
    @property
    def spec(self) -> Any: ...
    @property
    def rows(self) -> pl.DataFrame: ...
    @property
    def points(self) -> pl.DataFrame: ...
    @property
    def about(self) -> dict[str, Any]: ...


def title_of(result: Drawn) -> str:
    """The figure's name in its paper and what it shows, in two lines where it is long."""
    told = f"{result.spec.shows}: {' '.join(result.spec.title.split())}"
    return "<br>".join(escaped(line) for line in textwrap.wrap(told, 110))


def typed(points: pl.DataFrame) -> pl.DataFrame:
    """Points as they were before they lay in a CSV file: a key without any value is read as text there."""
    kinds = {name: pl.Float64 if name in NUMBERS else pl.String for name in KEYS}
    return points.with_columns(pl.col(name).cast(kind) for name, kind in kinds.items() if name in points.columns)


def label(name: str, own: str = "") -> str:
    """The title of an axis: the spec's own, else the known one, else the name."""
    return escaped(own or LABELS.get(name, name.replace("_", " ")))


def named(own: str, usual: str) -> str:
    """An axis title: the spec's own, else the usual one of the kind of figure."""
    return escaped(own) or usual


def written(key: str, value: Any) -> str:
    """A key's value as a name in a figure.

    >>> written("eps", 8 / 255), written("eps", 0.2), written("queries", 1000.0), written("attack", "none")
    ('ε 8/255', 'ε 0.2', '1,000 queries', 'no attack')
    """
    if key == "attack" and value == "none":
        return "no attack"
    if key == "defence" and value == "none":
        return "no defence"
    if value is None:
        return "–"
    if key == "place":
        return f"image {value + 1}"
    if key == "eps":
        whole = abs(255 * value - round(255 * value)) < 1e-3 and len(f"{value:g}") > 5
        return f"ε {round(255 * value)}/255" if whole else f"ε {value:g}"
    if key == "queries":
        return f"{value:,.0f} queries"
    return f"{value:g}" if isinstance(value, float) else str(value)


def parts(
    rows: pl.DataFrame, keys: tuple[str, ...], *, like: pl.DataFrame | None = None
) -> list[tuple[str, pl.DataFrame]]:
    """The rows of every combination of the keys, in the order of their first row, by a name.

    A key that is the same everywhere in `like` (the rows themselves, unless given) is left out of the names.
    """
    if not keys or rows.is_empty():
        return [("", rows)]
    varying = differing(rows if like is None else like, keys) or keys[-1:]
    found = []
    for part in rows.partition_by(*keys, maintain_order=True):
        names = [written(key, part[key][0]) for key in varying]
        found.append((", ".join(dict.fromkeys(names)), part))
    return found


def panels_of(rows: pl.DataFrame, keys: tuple[str, ...]) -> list[tuple[str, pl.DataFrame]]:
    """The same for panels: one alone has no name."""
    return parts(rows, keys) if differing(rows, keys) else [("", rows)]


def differing(rows: pl.DataFrame, keys: tuple[str, ...]) -> tuple[str, ...]:
    """Of the keys those that differ from row to row."""
    return tuple(key for key in dict.fromkeys(keys) if rows[key].n_unique() > 1)


def style(name: str, at: int) -> dict[str, Any]:
    """Line and marker of the at-th series; what was not attacked or not defended is the same grey everywhere."""
    found = line_style(6 if name in ("no attack", "no defence") else at if at < 6 else at + 1)
    return {"line": found["line"], "marker": found["marker"]}


@dataclass
class Panels:
    """Panels of equal size on a grid, each with its own axes.

    Args:
        count: how many. columns: side by side. tall: pixels of one panel.
        legend: room for a legend under the last row.
    """

    count: int
    columns: int = 3
    tall: int = 230
    legend: bool = True
    traces: list[dict[str, Any]] = field(default_factory=list)
    axes: dict[str, Any] = field(default_factory=dict)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    shapes: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.columns = max(1, min(self.columns, self.count))

    @property
    def rows(self) -> int:
        """Rows of panels."""
        return max(1, -(-self.count // self.columns))

    def key(self, place: int) -> str:
        """How plotly numbers the axes of a panel."""
        return str(place + 1) if place else ""

    def add(
        self, place: int, heading: str, x: dict[str, Any], y: dict[str, Any], traces: Iterator[dict[str, Any]]
    ) -> None:
        """A panel with its name, axes and traces; axis titles stand at the left and under every panel."""
        key, (line, column) = self.key(place), divmod(place, self.columns)
        each = HEADING + self.tall + BELOW
        whole = self.rows * each
        top = 1 - (line * each + HEADING) / whole
        wide, gap = 1 / self.columns, 0.075 if self.columns > 1 else 0.0
        left = column * wide + (gap / 2 if column else 0)
        right = (column + 1) * wide - (gap / 2 if column < self.columns - 1 else 0)
        if column:
            y = y | {"title": {"text": ""}}
        self.axes[f"xaxis{key}"] = x | {"domain": [round(left, 4), round(right, 4)], "anchor": f"y{key}"}
        self.axes[f"yaxis{key}"] = y | {"domain": [round(top - self.tall / whole, 4), round(top, 4)]}
        self.axes[f"yaxis{key}"]["anchor"] = f"x{key}"
        where = {"xref": f"x{key} domain", "yref": f"y{key} domain", "xanchor": "left", "yanchor": "bottom"}
        if heading:
            self.annotations.append(text(escaped(heading), x=0, y=1.01, size=12, colour=INK, **where))
        self.traces += [trace | {"xaxis": f"x{key}", "yaxis": f"y{key}"} for trace in traces]

    def level(self, place: int, at: float, colour: str) -> None:
        """A dotted horizontal line through a panel."""
        key = self.key(place)
        line = {"color": colour, "width": 1, "dash": "dot"}
        where = {"xref": f"x{key} domain", "x0": 0, "x1": 1, "yref": f"y{key}", "y0": at, "y1": at}
        self.shapes.append({"type": "line", **where, "line": line})

    def figure(self, title: str, alt: str, **more: Any) -> go.Figure:
        """All panels as one figure; a name stands once in the legend."""
        inner = self.rows * (HEADING + self.tall + BELOW)
        names = {str(trace.get("name", "")) for trace in self.traces if trace.get("showlegend", True)}
        lines = -(-sum(len(name) + 8 for name in names) // 110) if self.legend else 0
        top, bottom = ABOVE + LINE * title.count("<br>"), 12 + 22 * lines
        shown = layout(title=title, alt=alt, height=top + inner + bottom)
        shown["margin"] = {"l": 62, "r": 22, "t": top, "b": bottom}
        shown["legend"] |= {"y": -4 / inner, "yanchor": "top"}
        shown["showlegend"] = self.legend
        seen: set[str] = set()
        for trace in self.traces:
            group = str(trace.get("legendgroup") or trace.get("name", ""))
            trace["legendgroup"] = group
            trace["showlegend"] = bool(trace.get("showlegend", True)) and group not in seen
            if trace["showlegend"]:
                seen.add(group)
        return go.Figure(
            data=self.traces,
            layout=shown | self.axes | {"annotations": self.annotations, "shapes": self.shapes} | more,
        )
