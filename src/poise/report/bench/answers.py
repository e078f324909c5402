"""Figures counted from the answers before and after attacks: reliability, distributions, classes, success against
failure, sorted images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from poise.metrics import SuccessFail
from poise.report.bench.frames import Drawn, Panels, differing, named, panels_of, parts, style, title_of
from poise.report.curve_figures import TOLERATED, _attack_lines
from poise.report.style import INK, MUTED, PAPER, RIGHT, WRONG, axis, escaped, share_axis
from poise.report.words import error, percent

QUARTERS = (0, 25, 50, 75, 100)


def _each(result: Drawn) -> list[tuple[str, pl.DataFrame]]:
    """The points of every combination of the panels' and the series' keys."""
    figure = result.spec.figure
    return parts(result.points, tuple(dict.fromkeys((*figure.panels, *figure.series))))


def reliability(result: Drawn) -> go.Figure:
    """Reliability diagrams: the accuracy of each bin as a bar, its mean confidence as a dot, a panel for each attack.

    Obadinma et al., Calibration Attacks, Fig. 1. A bar is paler where fewer images are in the bin; the ECE stands over
    the panel.
    """
    found, told, figure = _each(result), [], result.spec.figure
    drawn = Panels(len(found))
    for place, (name, part) in enumerate(found):
        full = part.filter(pl.col("count") > 0)
        gap, counts = (full["accuracy"] - full["confidence"]).abs().to_numpy(), full["count"].to_numpy()
        ece = float((gap * counts).sum() / max(int(counts.sum()), 1))
        told.append(f"{name} {error(ece)}")
        x = share_axis(named(figure.x_label, "confidence"), steps=QUARTERS) | {"range": [0, 1], "showgrid": False}
        up = share_axis(named(figure.y_label, "accuracy"), steps=QUARTERS) | {"range": [0, 1.02]}
        drawn.add(place, f"{name} · ECE {error(ece)}", x, up, _diagram(full))
    alt = f"Reliability diagrams, ECE: {'; '.join(told)}."
    return drawn.figure(title_of(result), alt, barmode="overlay", bargap=0)


def _diagram(full: pl.DataFrame) -> Iterator[dict[str, Any]]:
    low, high = full["low"].to_numpy(), full["high"].to_numpy()
    centre, counts = (low + high) / 2, full["count"].to_numpy()
    accuracy, confidence = full["accuracy"].to_numpy(), full["confidence"].to_numpy()
    yield {
        "type": "bar",
        "name": "accuracy in the bin (paler: fewer images)",
        "x": centre.tolist(),
        "y": accuracy.tolist(),
        "width": (high - low).tolist(),
        "marker": {
            "color": RIGHT,
            "opacity": np.clip(np.sqrt(counts / max(counts.max(initial=1), 1)), 0.3, 1).round(3).tolist(),
            "line": {"color": PAPER, "width": 1},
        },
        "customdata": counts.tolist(),
        "hovertemplate": "%{customdata:,} images, accuracy %{y:.1%}<extra></extra>",
    }
    yield {
        "type": "scatter",
        "name": "calibrated",
        "mode": "lines",
        "x": [0, 1],
        "y": [0, 1],
        "line": {"color": MUTED, "dash": "dash", "width": 1.5},
        "hoverinfo": "skip",
    }
    yield {
        "type": "scatter",
        "name": "gap to the mean confidence (dot)",
        "mode": "lines+markers",
        "x": [value for at in centre.tolist() for value in (at, at, None)],
        "y": [value for pair in zip(accuracy.tolist(), confidence.tolist(), strict=True) for value in (*pair, None)],
        "line": {"color": WRONG, "width": 2},
        "marker": {"color": WRONG, "size": [0, 6, 0] * len(centre), "opacity": 1},
        "hoverinfo": "skip",
    }


def distributions(result: Drawn) -> go.Figure:
    """Histograms of the confidence before (left) and after an attack (right), right answers upwards, wrong ones
    downwards, each as a share of all images; a row for each model.

    Martinez et al., Underconfidence Adversarial Training, Fig. 2.
    """
    found = _each(result)
    drawn, told = Panels(2 * len(found), columns=2, tall=150), []
    for line, (name, part) in enumerate(found):
        means = {}
        for column, when in enumerate(("before", "after")):
            here = part.filter(pl.col("when") == when)
            counts, middle = here["count"].to_numpy(), (here["low"] + here["high"]).to_numpy() / 2
            total = max(int(counts.sum()), 1)
            means[when] = float((middle * counts).sum() / total)
            x = share_axis(named(result.spec.figure.x_label, "confidence"), steps=QUARTERS) | {
                "range": [0, 1],
                "showgrid": False,
            }
            ticks = {"tickvals": [-1, -0.5, 0, 0.5, 1], "ticktext": ["100 %", "50 %", "0 %", "50 %", "100 %"]}
            up = axis("share of images") | ticks | {"range": [-1.05, 1.05]}
            drawn.add(2 * line + column, f"{name}, {when}" if name else when, x, up, _histograms(here, total))
        told.append(f"{name} {percent(means['before'])} to {percent(means['after'])}")
    return drawn.figure(
        title_of(result), f"Mean confidence before to after, by bins: {'; '.join(told)}.", barmode="overlay"
    )


def _histograms(here: pl.DataFrame, total: int) -> Iterator[dict[str, Any]]:
    for answer, sign, colour in (("right", 1, RIGHT), ("wrong", -1, WRONG)):
        part = here.filter((pl.col("answer") == answer) & (pl.col("count") > 0))
        hatch = {"shape": "/", "fillmode": "replace", "size": 6, "solidity": 0.35}
        yield {
            "type": "bar",
            "name": "right, upwards" if sign > 0 else "wrong, downwards",
            "x": ((part["low"] + part["high"]) / 2).to_list(),
            "y": (sign * part["count"] / total).to_list(),
            "width": (0.94 * (part["high"] - part["low"])).to_list(),
            "marker": {"color": colour, "pattern": {} if sign > 0 else hatch, "line": {"color": colour, "width": 1}},
            "customdata": part["count"].to_list(),
            "hovertemplate": "%{customdata:,} images<extra></extra>",
        }


MIDDLE = 0.5
"""The confidence that the dashed line of Fig. S2 marks: below it a binary classifier's answer would turn."""


def by_class(result: Drawn) -> go.Figure:
    """The confidence of every image before (grey, left) and after an attack (right), by the class predicted before.

    Martinez et al., Underconfidence Adversarial Training, Fig. S2. Within a class images are spread out by their id.
    """
    found = _each(result)
    drawn, told = Panels(len(found), columns=2 if len(found) > 1 else 1), []
    for place, (name, part) in enumerate(found):
        classes = sorted(part["class"].unique().to_list())
        ticks = {"tickvals": list(range(len(classes))), "ticktext": [str(at) for at in classes]}
        x = (
            axis(named(result.spec.figure.x_label, "class predicted before the attack"))
            | ticks
            | {"range": [-0.6, len(classes) - 0.4]}
        )
        up = share_axis(named(result.spec.figure.y_label, "confidence"), steps=QUARTERS) | {"range": [-0.02, 1.04]}
        drawn.add(place, name, x | {"showgrid": False}, up, _strips(part, classes))
        drawn.level(place, MIDDLE, INK)
        after = part.filter(pl.col("when") == "after")
        below = after.group_by("class").agg((pl.col("confidence") < MIDDLE).mean()).sort("class")
        told.append(f"{name} " + ", ".join(f"class {at} {percent(share)}" for at, share in below.iter_rows()))
    alt = f"Confidence by predicted class; share of images below 50 % after the attack: {'; '.join(told)}."
    return drawn.figure(title_of(result), alt)


def _strips(part: pl.DataFrame, classes: list[int]) -> Iterator[dict[str, Any]]:
    for when, shift, colour, symbol in (("before", -0.2, MUTED, "circle-open"), ("after", 0.2, RIGHT, "circle")):
        here = part.filter(pl.col("when") == when)
        spread = (here["id"].to_numpy() * 0.6180339887) % 1 - 0.5  # the golden ratio spreads whole numbers evenly
        at = np.array([classes.index(value) for value in here["class"].to_list()], dtype=np.float64)
        yield {
            "type": "scatter",
            "mode": "markers",
            "name": f"{when} the attack",
            "x": (at + shift + 0.3 * spread).round(4).tolist(),
            "y": here["confidence"].to_list(),
            "marker": {"color": colour, "symbol": symbol, "size": 4, "opacity": 0.75},
            "hovertemplate": "confidence %{y:.1%}<extra></extra>",
        }


def success_fail(result: Drawn) -> go.Figure:
    """Success rate on clean images against failure rate on attacked ones at every threshold, a curve for each model.

    Goodfellow, Qin and Berthelot, Figs. 1 to 3. Solid where an optimal attacker of that kind can do no more, dashed
    where the curve is a lower bound; the band ends at the upper bound.
    """
    figure = result.spec.figure
    panels = panels_of(result.points, figure.panels)
    drawn, left = Panels(len(panels), columns=2, tall=300), []
    names = [name for name, _ in parts(result.points, figure.series)]
    for place, (heading, part) in enumerate(panels):
        traces: list[dict[str, Any]] = []
        for name, one in parts(part, figure.series, like=result.points):
            curve, bound = _curve(one)
            note = "success %{y:.1%} at failure %{x:.1%}"
            shown = name or "model"
            traces += _attack_lines(curve, bound, name=shown, index=names.index(name), note=note)
            kept = float(curve.success[curve.failure <= TOLERATED].max(initial=0.0))
            left.append(f"{heading} {shown} {percent(kept)}".strip())
        across = share_axis(named(figure.x_label, "failure rate, attacked"), steps=QUARTERS) | {"range": [-0.02, 1.02]}
        up = share_axis(named(figure.y_label, "success rate, clean"), steps=QUARTERS) | {"range": [-0.02, 1.02]}
        drawn.add(place, heading, across, up, iter(traces))
    return drawn.figure(title_of(result), f"Success-fail curves. Success at 1 % failures: {'; '.join(left)}.")


def _curve(rows: pl.DataFrame) -> tuple[SuccessFail, np.ndarray | None]:
    """The curve again, from the highest threshold to the lowest, and its upper bound where it has one."""
    rows = rows.sort("threshold", descending=True)
    columns = {name: rows[name].cast(pl.Float64).to_numpy() for name in ("threshold", "success", "failure")}
    unknown = np.full(len(rows), np.nan)
    solid = rows["solid"].cast(pl.Boolean).to_numpy()
    empty = dict.fromkeys(("clean_coverage", "adv_coverage", "upper_coverage", "upper_wrong", "upper_cleverhans"))
    curve = SuccessFail(**columns, solid=solid, **dict.fromkeys(empty, unknown))
    upper = rows["upper"].cast(pl.Float64)
    return curve, None if upper.null_count() == len(upper) else upper.to_numpy()


def sorted_images(result: Drawn) -> go.Figure:
    """Mean confidence (solid) and accuracy (dotted) of groups of clean images, sorted by the true-class probability of
    the undefended model; a line for each defence.

    Chen et al., Adversarial Attack on Attackers, Fig. 3, left.
    """
    figure, points = result.spec.figure, result.points
    panels = panels_of(points, figure.panels)
    drawn, told = Panels(len(panels), columns=2 if len(panels) > 1 else 1, tall=320), []
    series = differing(points, (*figure.series, "defence")) or ("defence",)
    names = [name for name, _ in parts(points, series)]
    for place, (heading, part) in enumerate(panels):
        traces = []
        for name, one in parts(part, series, like=points):
            look = style(name, names.index(name))
            traces += list(_sorted_lines(one, name, look))
            told.append(f"{name} {percent(float(one['confidence'].to_numpy().mean()))}")
        x = axis(named(figure.x_label, "group of images, lowest true-class probability without a defence first"))
        up = share_axis(named(figure.y_label, "mean of the group"), steps=QUARTERS) | {"range": [-0.02, 1.04]}
        drawn.add(place, heading, x, up, iter(traces))
    return drawn.figure(title_of(result), f"Sorted images; mean confidence: {'; '.join(told)}.")


def _sorted_lines(one: pl.DataFrame, name: str, look: dict[str, Any]) -> Iterator[dict[str, Any]]:
    one = one.sort("group")
    for column, dash, open_ in (("confidence", "solid", ""), ("accuracy", "dot", "-open")):
        marker = look["marker"] | {"symbol": look["marker"]["symbol"] + open_, "maxdisplayed": 9}
        yield {
            "type": "scatter",
            "mode": "lines+markers",
            "name": f"{escaped(name)}: {column}",
            "x": one["group"].to_list(),
            "y": one[column].to_list(),
            "line": look["line"] | {"dash": dash, "width": 2 if dash == "solid" else 1.5},
            "marker": marker,
            "hovertemplate": f"{column} %{{y:.1%}} in group %{{x}}",
        }
