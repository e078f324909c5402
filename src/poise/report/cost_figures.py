"""What the attack costs: ECE, mean confidence and accuracy over queries, one line a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl

from poise import metrics
from poise.report.folder import Floats, Ints
from poise.report.style import INK, axis, escaped, layout, line_style, numbers, share_axis
from poise.report.words import MOVED, count, error, percent

HEIGHT = 400


@dataclass(frozen=True)
class Cost:
    """How far one attack has come after q queries.

    Args:
        queries: (t,) numbers of queries, ascending.
        ece: (t,) expected calibration error over all images.
        confidence: (t,) mean confidence over all images.
        accuracy: (t,) share of all images whose label is right.

    >>> import numpy as np
    >>> from poise.report import ece_over_queries
    >>> ece, confidence, accuracy = np.array([0.04, 0.3]), np.array([0.9, 0.6]), np.array([0.9, 0.9])
    >>> spent = Cost(np.array([1, 100]), ece, confidence, accuracy)
    >>> ece_over_queries({"sa-mma": spent}, budget=100).layout.title.text
    'sa-mma does most of its damage to the ECE near the budget of 100 queries'
    """

    queries: Ints
    ece: Floats
    confidence: Floats
    accuracy: Floats


def cost(curve: pl.DataFrame) -> Cost:
    """ECE, mean confidence and accuracy over queries from the curve rows of one attack; an image without a row at a
    checkpoint keeps its last one, and one that comes later counts from then on.

    >>> rows = {"id": [0, 0, 1], "label": [3, 3, 5], "queries": [1, 10, 1], "confidence": [0.9, 0.5, 0.7]}
    >>> cost(pl.DataFrame({**rows, "prediction": [3, 3, 5]})).confidence.round(2).tolist()
    [0.8, 0.6]
    """
    steps = curve["queries"].unique().sort()
    grid = curve.select("id").unique().join(steps.to_frame(), how="cross").sort("id", "queries")
    full = grid.join(curve.sort("id", "queries"), on=["id", "queries"], how="left").sort("id", "queries")
    columns = ["label", "confidence", "prediction"]
    full = full.with_columns(pl.col(name).forward_fill().over("id") for name in columns).drop_nulls("confidence")
    ece, confidence, accuracy = [], [], []
    for step in steps:
        part = full.filter(pl.col("queries") == step)
        values = part["confidence"].cast(pl.Float64).to_numpy()
        right = (part["prediction"] == part["label"]).cast(pl.Int64).to_numpy()
        ece.append(metrics.ece(values, right, bins=15))
        confidence.append(float(values.mean()))
        accuracy.append(float(right.mean()))
    return Cost(steps.cast(pl.Int64).to_numpy(), np.array(ece), np.array(confidence), np.array(accuracy))


def ece_over_queries(costs: Mapping[str, Cost], *, budget: int) -> go.Figure:
    """The ECE over queries on a logarithmic axis, one line a recipe, with the budget marked.

    >>> import numpy as np
    >>> from poise.report import Cost
    >>> half = np.array([0.5, 0.5])
    >>> ece_over_queries({"square": Cost(np.array([1, 100]), half, half, half)}, budget=100).layout.xaxis.type
    'log'
    """
    name = max(costs, key=lambda key: costs[key].ece[-1])
    worst = costs[name]
    rise = worst.ece[-1] - worst.ece[0]
    half = int(worst.queries[np.argmax(worst.ece - worst.ece[0] >= rise / 2)])
    if rise >= MOVED and half < budget:
        title = f"{name} does half of its damage to the ECE within {count(half, 'query', 'queries')}"
    elif rise >= MOVED:
        title = f"{name} does most of its damage to the ECE near the budget of {count(budget, 'query', 'queries')}"
    else:
        title = f"No recipe raises the ECE within {count(budget, 'query', 'queries')}"
    values = {key: entry.ece for key, entry in costs.items()}
    told = "; ".join(f"{key} {error(entry[0])} → {error(entry[-1])}" for key, entry in values.items())
    return _over_queries(costs, values, title=title, alt=f"ECE over queries: {told}.", y="ECE", budget=budget)


def confidence_over_queries(costs: Mapping[str, Cost], *, budget: int) -> go.Figure:
    """The mean confidence over queries on a logarithmic axis, one line a recipe, with the budget marked.

    >>> import numpy as np
    >>> from poise.report import Cost
    >>> half, falls = np.array([0.5, 0.5]), np.array([0.9, 0.6])
    >>> spent = {"sa-uca": Cost(np.array([1, 100]), half, falls, half)}
    >>> confidence_over_queries(spent, budget=100).layout.title.text
    'sa-uca moves the mean confidence from 90 % to 60 %'
    """
    moves = {key: entry.confidence[-1] - entry.confidence[0] for key, entry in costs.items()}
    name = max(moves, key=lambda key: abs(moves[key]))
    first, last = costs[name].confidence[[0, -1]]
    if abs(moves[name]) >= MOVED:
        title = f"{name} moves the mean confidence from {percent(first)} to {percent(last)}"
    else:
        title = f"No recipe moves the mean confidence within {count(budget, 'query', 'queries')}"
    values = {key: entry.confidence for key, entry in costs.items()}
    return _share_over_queries(costs, values, title=title, what="mean confidence", y="mean confidence", budget=budget)


def accuracy_over_queries(costs: Mapping[str, Cost], *, budget: int) -> go.Figure:
    """The accuracy left over queries on a logarithmic axis, one line a recipe, with the budget marked.

    >>> import numpy as np
    >>> from poise.report import Cost
    >>> half, falls = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    >>> accuracy_over_queries({"square": Cost(np.array([1, 100]), half, half, falls)}, budget=100).layout.title.text
    'square lowers the accuracy from 90 % to 10 %'
    """
    lost = {key: entry.accuracy[0] - entry.accuracy[-1] for key, entry in costs.items()}
    name = max(lost, key=lambda key: lost[key])
    first, last = costs[name].accuracy[[0, -1]]
    if lost[name] >= MOVED:
        title = f"{name} lowers the accuracy from {percent(first)} to {percent(last)}"
    else:
        title = f"No recipe lowers the accuracy within {count(budget, 'query', 'queries')}"
    values = {key: entry.accuracy for key, entry in costs.items()}
    return _share_over_queries(costs, values, title=title, what="accuracy", y="accuracy left", budget=budget)


def _share_over_queries(
    costs: Mapping[str, Cost], values: Mapping[str, Floats], *, title: str, what: str, y: str, budget: int
) -> go.Figure:
    told = "; ".join(f"{key} {percent(entry[0])} → {percent(entry[-1])}" for key, entry in values.items())
    return _over_queries(
        costs, values, title=title, alt=f"{what.capitalize()} over queries: {told}.", y=y, budget=budget
    )


def _over_queries(
    costs: Mapping[str, Cost], values: Mapping[str, Floats], *, title: str, alt: str, y: str, budget: int
) -> go.Figure:
    top = 1.0 if y != "ECE" else max(0.1, min(1.0, 1.1 * max(float(entry.max()) for entry in values.values())))
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "name": f"budget, {count(budget, 'query', 'queries')}",
            "x": [budget, budget],
            "y": [0, top],
            "mode": "lines",
            "line": {"color": INK, "dash": "dot", "width": 1.5},
            "hoverinfo": "skip",
        }
    ]
    note = f"{'%{y:.3f}' if y == 'ECE' else '%{y:.1%}'} after %{{x:,}} queries"
    for index, (name, entry) in enumerate(values.items()):
        line = {"type": "scatter", "name": escaped(name), "mode": "lines+markers", "hovertemplate": note}
        points = {"x": costs[name].queries.tolist(), "y": numbers(entry)}
        traces.append(line | points | line_style(index))
    last = max(budget, *(int(entry.queries[-1]) for entry in costs.values()))
    powers = [10**k for k in range(len(str(last)))]
    across = axis("queries per image (log scale)") | {"type": "log", "range": [-0.05, float(np.log10(last)) + 0.05]}
    across |= {"tickvals": powers, "ticktext": [f"{power:,}" for power in powers]}
    up = (axis(y) if y == "ECE" else share_axis(y)) | {"range": [0, top]}
    return go.Figure(data=traces, layout=layout(title=title, alt=alt, height=HEIGHT) | {"xaxis": across, "yaxis": up})
