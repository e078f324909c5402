"""What a threshold costs, without an attack and under each: the figure behind the choice of a threshold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from poise import metrics
from poise.report.deferral import CASES, CLEAN, money
from poise.report.folder import Answers, Ints
from poise.report.style import INK, MUTED, axis, escaped, layout, line_style, numbers
from poise.report.words import threshold as written

HEIGHT = 420
POINTS = 200
"""Thresholds at which the costs are drawn, besides the best one."""


def cost_over_threshold(
    clean: Answers,
    attacked: Mapping[str, Answers],
    costs: metrics.Costs,
    *,
    labels: Ints | None = None,
    threshold: float | None = None,
) -> go.Figure:
    """Expected cost of 1,000 cases over the threshold, without an attack and under each, the worst case marked.

    Args:
        clean: answers to n clean images.
        attacked: answers under each attack, by name, to the same images in the same order.
        costs: what a case costs.
        labels: (n,) true classes, needed where costs differ from class to class.
        threshold: draws a line at the one in use.

    Returns:
        a figure with a line for each case; the star is the threshold whose worst case is the cheapest.

    >>> clean = Answers(np.array([0.9, 0.8, 0.3]), np.array([1, 1, 0]))
    >>> attacked = {"sa-mma": Answers(np.array([0.6, 0.8, 0.7]), np.array([1, 1, 0]))}
    >>> cost_over_threshold(clean, attacked, metrics.Costs(wrong_accepted=9, deferred=1)).layout.title.text
    'In the worst case the threshold 0.70 is the least bad: 667 per 1,000 cases'
    """
    parts = {CLEAN: clean, **attacked}
    cases = {name: (part.confidence, part.correct) for name, part in parts.items()}
    best = metrics.worst_case_threshold(cases, costs, labels)
    at = np.unique(np.append(np.linspace(0, 1, POINTS + 1), best.threshold))
    lines = {name: CASES * metrics.mean_costs(*part, at, costs, labels) for name, part in cases.items()}
    where = f"the threshold {written(best.threshold)} is the least bad"
    title = f"In the worst case {where}: {money(best.cost)} per 1,000 cases"
    told = "; ".join(f"{name} {money(cost)}" for name, cost in best.costs.items())
    top = max(float(line.max()) for line in lines.values())
    low = min(0.0, *(float(line.min()) for line in lines.values()))
    traces = [_line(at, line, name, index - 1) for index, (name, line) in enumerate(lines.items())]
    traces.append(_star(best.threshold, CASES * best.cost))
    if threshold is not None:
        traces.append(_vertical(threshold, low, top))
    across = axis("confidence threshold") | {"range": [0, 1.01], "dtick": 0.2}
    up = axis("expected cost per 1,000 cases") | {"range": [low - 0.03 * (top - low), top + 0.05 * (top - low) + 1e-9]}
    shown = layout(
        title=title, alt=f"Expected cost over the threshold. At {written(best.threshold)}: {told}.", height=HEIGHT
    )
    return go.Figure(data=traces, layout=shown | {"xaxis": across, "yaxis": up})


def _line(at: Any, cost: Any, name: str, index: int) -> dict[str, Any]:
    plain = {"mode": "lines", "line": {"color": MUTED, "width": 3, "shape": "hv"}}
    style: dict[str, Any] = plain if index < 0 else line_style(index) | {"mode": "lines+markers"}
    if index >= 0:
        style["line"]["shape"] = "hv"
        style["marker"]["maxdisplayed"] = 9
    note = "%{y:,.0f} per 1,000 cases at threshold %{x:.3f}"
    shown = {
        "type": "scatter",
        "name": "no attack" if index < 0 else escaped(name),
        "x": numbers(at),
        "y": numbers(cost),
    }
    return shown | style | {"hovertemplate": note}


def _star(at: float, cost: float) -> dict[str, Any]:
    return {
        "type": "scatter",
        "name": "least bad in the worst case",
        "x": [round(at, 5)],
        "y": [round(cost, 5)],
        "mode": "markers",
        "marker": {"symbol": "star", "size": 15, "color": INK},
        "hovertemplate": "least bad in the worst case: %{y:,.0f} at %{x:.3f}<extra></extra>",
    }


def _vertical(threshold: float, low: float, top: float) -> dict[str, Any]:
    return {
        "type": "scatter",
        "name": "your threshold",
        "x": [threshold, threshold],
        "y": [round(low, 5), round(top, 5)],
        "mode": "lines",
        "line": {"color": INK, "dash": "dot", "width": 1.5},
        "hoverinfo": "skip",
    }
