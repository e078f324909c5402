"""Metrics of a result as lines over a key and as grouped bars, the published values beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import plotly.graph_objects as go
import polars as pl

from poise.report.bench.frames import KEYS, Drawing, Drawn, Panels, label, panels_of, parts, style, title_of, written
from poise.report.curve_figures import _pale
from poise.report.style import CLEAR, INK, axis, escaped

Panel = tuple[str, str, pl.DataFrame]
"""Its name, its metric and its rows."""

FROM_ZERO = ("ece", "ks", "accuracy", "adv_accuracy", "avg_confidence", "detection_auc", "success", "brier")
"""Metrics whose axis begins at 0."""


def lines(result: Drawn) -> go.Figure:
    """Every metric `y` over the key (or metric) `x`: a line for each combination of `series`, a panel for each metric
    and combination of `panels`.

    The band is the 95 % interval. Open markers, joined by a dotted line, are the published values. A series without an
    `x`, such as the model that is not attacked, is a dashed level.
    """
    figure = result.spec.figure
    rows = _with_x(result.rows, figure)
    panels = _panels(rows, figure)
    drawn = Panels(len(panels))
    names = [name for name, _ in parts(rows, figure.series)]
    for place, (name, metric, part) in enumerate(panels):
        x = axis(label(figure.x, figure.x_label)) | ({"type": "log", "dtick": "D2"} if figure.log_x else {})
        traces = _all_lines(part, rows, figure, names)
        drawn.add(place, _heading(name, metric, figure), x, _up(metric, figure), traces)
    return drawn.figure(title_of(result), _alt("Lines", panels))


def _with_x(rows: pl.DataFrame, figure: Drawing) -> pl.DataFrame:
    """Rows of the metrics that are drawn, with the column `at`: where they lie along x."""
    kept = rows.filter(pl.col("metric").is_in(figure.y))
    kept = kept.unique([*KEYS, "metric"], keep="first", maintain_order=True)  # clean rows come once per radius
    if figure.x in KEYS:
        return kept.with_columns(pl.col(figure.x).alias("at"))
    other = rows.filter(pl.col("metric") == figure.x).select(*KEYS, pl.col("value").alias("at"))
    other = other.unique(KEYS, keep="first", maintain_order=True)
    return kept.join(other, on=KEYS, how="left", nulls_equal=True, maintain_order="left")


def _panels(rows: pl.DataFrame, figure: Drawing) -> list[Panel]:
    found = []
    for metric in figure.y:
        here = rows.filter(pl.col("metric") == metric)
        if len(here):
            found += [(name, metric, part) for name, part in panels_of(here, figure.panels)]
    return found


def _heading(name: str, metric: str, figure: Drawing) -> str:
    several = len(figure.y) > 1
    return ", ".join(part for part in (label(metric) if several else "", name) if part)


def _up(metric: str, figure: Drawing) -> dict[str, Any]:
    title = label(metric, figure.y_label) if len(figure.y) == 1 else ""  # of several, each panel's name says it
    return axis(title) | ({"rangemode": "tozero"} if metric in FROM_ZERO else {})


def _alt(kind: str, panels: list[Panel]) -> str:
    told = []
    for name, metric, part in panels:
        values = part["value"].drop_nulls().to_numpy()
        if len(values):
            told.append(f"{metric} {name or 'in all'}: from {values.min():.3g} to {values.max():.3g}")
    return f"{kind}. {'; '.join(told)}."


def _all_lines(part: pl.DataFrame, rows: pl.DataFrame, figure: Drawing, names: list[str]) -> Iterator[dict[str, Any]]:
    ends = rows["at"].drop_nulls()
    for name, one in parts(part, figure.series, like=rows):
        known = one.filter(pl.col("value").is_not_null())
        look = style(name, names.index(name))
        if known["at"].null_count() and len(ends):
            level = known.filter(pl.col("at").is_null())
            yield _level(level, (ends.min(), ends.max()), name, look)
        known = known.filter(pl.col("at").is_not_null()).sort("at")
        if len(known):
            yield from _line(known, name, look)
        published = one.filter(pl.col("published").is_not_null() & pl.col("at").is_not_null()).sort("at")
        if len(published):
            yield _published(published["at"].to_list(), published["published"].to_list(), name, look, joined=True)


def _level(rows: pl.DataFrame, ends: tuple[Any, Any], name: str, look: dict[str, Any]) -> dict[str, Any]:
    value = float(rows["value"].mean())  # type: ignore[arg-type]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": escaped(name),
        "x": list(ends),
        "y": [value, value],
        "line": look["line"] | {"dash": "dash"},
        "hovertemplate": f"%{{y:.3f}}<extra>{escaped(name)}</extra>",
    }


def _line(rows: pl.DataFrame, name: str, look: dict[str, Any]) -> Iterator[dict[str, Any]]:
    at = rows["at"].to_list()
    band = rows.filter(pl.col("low").is_not_null() & pl.col("high").is_not_null())
    if len(band) > 1:
        there = band["at"].to_list()
        yield {
            "type": "scatter",
            "mode": "lines",
            "name": escaped(name),
            "x": [*there, *reversed(there)],
            "y": [*band["high"].to_list(), *reversed(band["low"].to_list())],
            "fill": "toself",
            "fillcolor": _pale(look["line"]["color"]),
            "line": {"color": CLEAR, "width": 0},
            "hoverinfo": "skip",
            "showlegend": False,
        }
    shown: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": escaped(name) or "ours",
        "x": at,
        "y": rows["value"].to_list(),
        "hovertemplate": f"%{{y:.3f}} at %{{x}}<extra>{escaped(name)}</extra>",
        **look,
    }
    if len(band) == 1:
        shown["error_y"] = _errors(rows)
    yield shown


def _errors(rows: pl.DataFrame) -> dict[str, Any]:
    above = (rows["high"] - rows["value"]).fill_null(0.0).clip(0.0)
    below = (rows["value"] - rows["low"]).fill_null(0.0).clip(0.0)
    values = {"array": above.to_list(), "arrayminus": below.to_list()}
    return {"type": "data", "symmetric": False, **values, "color": INK, "thickness": 1.2, "width": 3}


def _published(at: list[Any], values: list[float], name: str, look: dict[str, Any], *, joined: bool) -> dict[str, Any]:
    symbol = look["marker"]["symbol"]
    return {
        "type": "scatter",
        "mode": "lines+markers" if joined else "markers",
        "name": "published",
        "legendgroup": "published",
        "x": at,
        "y": values,
        "line": look["line"] | {"dash": "dot", "width": 1},
        "marker": look["marker"] | {"symbol": f"{symbol}-open", "size": 9, "line": {"width": 1.6}},
        "hovertemplate": f"published %{{y:.3f}}<extra>{escaped(name)}</extra>",
    }


def bars(result: Drawn) -> go.Figure:
    """Every metric `y` as bars: a group for each value of the key `x`, a bar for each combination of `series`.

    Whiskers are the 95 % interval; open diamonds are the published values. Bars differ in hatching besides colour.
    """
    figure = result.spec.figure
    rows = _with_x(result.rows, figure)
    panels = _panels(rows, figure)
    most = max((part.select("at", *figure.series).n_unique() for _, _, part in panels), default=1)
    drawn = Panels(len(panels), columns=2 if most <= 12 and len(panels) > 1 else 1)
    for place, (name, metric, part) in enumerate(panels):
        groups = part["at"].unique(maintain_order=True).to_list()
        ticks = [escaped(written(figure.x, at)) for at in groups]
        x = axis(label(figure.x, figure.x_label) if figure.x not in ("dataset", "model", "attack", "defence") else "")
        x |= {"tickvals": list(range(len(groups))), "ticktext": ticks, "range": [-0.5, len(groups) - 0.5]}
        traces = _all_bars(part, rows, figure, groups)
        drawn.add(place, _heading(name, metric, figure), x | {"showgrid": False}, _up(metric, figure), traces)
    return drawn.figure(title_of(result), _alt("Bars", panels), barmode="overlay")


HATCHES = ("", "/", "x", "\\", ".", "-", "|", "+")


def _all_bars(part: pl.DataFrame, rows: pl.DataFrame, figure: Drawing, groups: list[Any]) -> Iterator[dict[str, Any]]:
    names, here = [name for name, _ in parts(rows, figure.series)], parts(part, figure.series, like=rows)
    at_each = {value: [name for name, one in here if value in one["at"].to_list()] for value in groups}
    wide = 0.8 / max(len(present) for present in at_each.values())

    def places(name: str, values: list[Any]) -> list[float]:
        """Where the bars of a series lie: those of one group side by side around its middle."""
        shifts = [at_each[value].index(name) - (len(at_each[value]) - 1) / 2 for value in values]
        return [round(groups.index(value) + wide * shift, 4) for value, shift in zip(values, shifts, strict=True)]

    for name, one in here:
        known, at = one.filter(pl.col("value").is_not_null()), names.index(name)
        colour = style(name, at)["line"]["color"]
        hatch = {"shape": HATCHES[at % len(HATCHES)], "fillmode": "replace", "size": 7, "solidity": 0.3}
        yield {
            "type": "bar",
            "name": escaped(name or label(figure.y[0])),
            "x": places(name, known["at"].to_list()),
            "y": known["value"].to_list(),
            "width": round(wide * 0.92, 4),
            "marker": {"color": colour, "pattern": hatch if at else {}, "line": {"color": colour, "width": 1}},
            "error_y": _errors(known),
            "hovertemplate": f"%{{y:.3f}}<extra>{escaped(name)}</extra>",
        }
        published = one.filter(pl.col("published").is_not_null())
        if len(published):
            mark = {"line": {"color": INK}, "marker": {"symbol": "diamond", "color": INK}}
            where = places(name, published["at"].to_list())
            yield _published(where, published["published"].to_list(), name, mark, joined=False)
