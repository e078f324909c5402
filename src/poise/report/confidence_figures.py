"""Before and after: reliability diagrams and confidence histograms, clean beside attacked on equal axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from poise import metrics
from poise.report.folder import Answers, Floats, Ints
from poise.report.style import CLEAR, INK, MUTED, PAPER, RIGHT, WRONG, axis, layout, numbers, share_axis
from poise.report.words import MOVED, count, error, percent

HEIGHT = 320
PANELS = ("", "2")
"""How plotly names the axes of the clean and of the attacked panel."""

STRIP = -0.17
"""Where the strip with the counts under a reliability diagram ends."""


def reliability(clean: Answers, attacked: Answers, *, name: str, bins: int = 15) -> go.Figure:
    """Reliability diagrams, clean and attacked: accuracy per confidence bin, its gap to the mean confidence, counts.

    Args:
        clean: answers to n clean images.
        attacked: answers to the attacked ones.
        name: the recipe, for the text alternative.
        bins: number of bins of equal width in [0, 1].

    Returns:
        a figure of two panels with equal axes; the title says how the ECE changes.

    >>> import numpy as np
    >>> sure = Answers(np.array([0.9, 0.8]), np.array([1, 1]))
    >>> unsure = Answers(np.array([0.3, 0.2]), np.array([1, 1]))
    >>> reliability(sure, unsure, name="sa-uca").layout.title.text
    'Attacked, the bars leave the diagonal: ECE 0.15 → 0.75'
    """
    before, after = (metrics.ece(part.confidence, part.correct, bins=bins) for part in (clean, attacked))
    told = f"ECE {error(before)} → {error(after)}"
    if after - before >= MOVED:
        title = f"Attacked, the bars leave the diagonal: {told}"
    elif before - after >= MOVED:
        title = f"Attacked, the bars lie nearer to the diagonal: {told}"
    else:
        title = f"The attack hardly moves the calibration error: {told}"
    alt = (
        f"Two reliability diagrams of {name} with {bins} bins. Clean: accuracy {percent(_mean(clean.correct))}, mean"
        f" confidence {percent(_mean(clean.confidence))}. Attacked: accuracy {percent(_mean(attacked.correct))},"
        f" mean confidence {percent(_mean(attacked.confidence))}. {told}."
    )
    parts = zip(PANELS, (clean, attacked), strict=True)
    traces = [trace for panel, part in parts for trace in _reliability_traces(part, panel, bins)]
    shown = _panels(title, alt, share_axis("accuracy", steps=(0, 25, 50, 75, 100)) | {"range": [STRIP, 1.02]})
    shown["annotations"].append(_note("n", x=0, xref="x domain", xanchor="right", xshift=-7, y=STRIP / 2, yref="y"))
    line = {"type": "line", "x0": 0, "x1": 1, "y0": 0, "y1": 0, "line": {"color": MUTED, "width": 1}}
    shown["shapes"] = [line | {"xref": f"x{panel} domain", "yref": f"y{panel}"} for panel in PANELS]
    return go.Figure(data=traces, layout=shown | {"barmode": "overlay", "bargap": 0})


def confidence_histograms(
    clean: Answers, attacked: Answers, *, name: str, threshold: float | None = None, bins: int = 15
) -> go.Figure:
    """Histograms of the confidence, right answers upwards and wrong ones downwards, each as a share of its own group.

    Args:
        clean: answers to n clean images.
        attacked: answers to the attacked ones.
        name: the recipe, for the text alternative.
        threshold: draws a line at this confidence.
        bins: number of bins of equal width in [0, 1].

    Returns:
        a figure of two panels with equal axes; the title says how the mean confidences change.

    >>> import numpy as np
    >>> sure = Answers(np.array([0.9, 0.8]), np.array([1, 0]))
    >>> unsure = Answers(np.array([0.3, 0.9]), np.array([1, 0]))
    >>> confidence_histograms(sure, unsure, name="sa-mma").layout.title.text
    'Mean confidence: right 90 % → 30 %, wrong 80 % → 90 %'
    """
    right, wrong = (
        tuple(percent(_mean(part.confidence[part.correct == group])) for part in (clean, attacked)) for group in (1, 0)
    )
    title = f"Mean confidence: right {right[0]} → {right[1]}, wrong {wrong[0]} → {wrong[1]}"
    alt = f"Two histograms of the confidence under {name}, split by right and wrong answers. {title}."
    traces = []
    for panel, part in zip(PANELS, (clean, attacked), strict=True):
        traces += [_histogram(part, group, panel, bins) for group in (1, 0)]
        if threshold is not None:
            traces.append(_vertical(threshold, panel))
    ticks = {"tickvals": [-1, -0.5, 0, 0.5, 1], "ticktext": ["100 %", "50 %", "0 %", "50 %", "100 %"]}
    shown = _panels(title, alt, axis("share of its group") | ticks | {"range": [-1.05, 1.05]})
    return go.Figure(data=traces, layout=shown | {"barmode": "overlay"})


def _panels(title: str, alt: str, y: dict[str, Any]) -> dict[str, Any]:
    """The layout of two panels, clean and attacked, with the same axes."""
    x = axis("confidence") | {
        "range": [0, 1],
        "tickvals": [0, 0.5, 1],
        "ticktext": ["0", "0.5", "1"],
        "showgrid": False,
    }
    return layout(title=title, alt=alt, height=HEIGHT) | {
        "xaxis": x | {"domain": [0, 0.475], "anchor": "y"},
        "yaxis": y | {"anchor": "x"},
        "xaxis2": x | {"domain": [0.525, 1], "anchor": "y2"},
        "yaxis2": y | {"anchor": "x2", "matches": "y", "showticklabels": False, "title": {"text": ""}},
        "annotations": [
            _note(
                name, x=0.5, xref=f"x{panel} domain", xanchor="center", y=1, yref=f"y{panel} domain", yanchor="bottom"
            )
            for panel, name in zip(PANELS, ("clean", "attacked"), strict=True)
        ],
    }


def _note(text: str, **place: float | str) -> dict[str, Any]:
    return {"text": text, "showarrow": False, "font": {"size": 12, "color": MUTED}, **place}


def _in_panel(panel: str, group: str) -> dict[str, Any]:
    """The axes of a trace, and one key for both panels."""
    return {"xaxis": f"x{panel}", "yaxis": f"y{panel}", "showlegend": panel == PANELS[0], "legendgroup": group}


def _reliability_traces(part: Answers, panel: str, bins: int) -> list[dict[str, Any]]:
    found = metrics.reliability(part.confidence, part.correct, bins=bins)
    full = found.count > 0
    accuracy, confidence, counts = found.accuracy[full], found.confidence[full], found.count[full]
    centre = numbers(_centres(bins)[full])
    note = (
        "%{customdata[0]:,} images<br>accuracy %{customdata[1]:.1%}<br>confidence %{customdata[2]:.1%}<extra></extra>"
    )
    bars: dict[str, Any] = {
        "type": "bar",
        "name": "accuracy in the bin (paler: fewer images)",
        "x": centre,
        "y": numbers(accuracy),
        "width": 1 / bins,
        "marker": {
            "color": RIGHT,
            "opacity": numbers(np.clip(np.sqrt(counts / counts.max()), 0.3, 1)),
            "line": {"color": PAPER, "width": 1},
        },
        "customdata": np.stack([counts, accuracy, confidence], axis=1).round(4).tolist(),
        "hovertemplate": note,
    }
    diagonal: dict[str, Any] = {
        "type": "scatter",
        "name": "calibrated",
        "x": [0, 1],
        "y": [0, 1],
        "mode": "lines",
        "line": {"color": MUTED, "dash": "dash", "width": 1.5},
        "hoverinfo": "skip",
    }
    gaps: dict[str, Any] = {
        "type": "scatter",
        "name": "gap to the mean confidence (dot)",
        "x": [value for x in centre for value in (x, x, None)],
        "y": [v for pair in zip(numbers(accuracy), numbers(confidence), strict=True) for v in (*pair, None)],
        "mode": "lines+markers",
        "line": {"color": WRONG, "width": 2.5},
        "marker": {"color": WRONG, "size": [0, 6, 0] * len(centre), "opacity": 1},
        "hoverinfo": "skip",
    }
    drawn = [trace | _in_panel(panel, trace["name"]) for trace in (bars, diagonal, gaps)]
    return [*drawn, _count_strip(centre, counts, panel, bins)]


def _count_strip(centre: list[float], counts: Ints, panel: str, bins: int) -> dict[str, Any]:
    """The number of images of each bin, written upright in a strip under the diagram."""
    return {
        "type": "bar",
        "x": centre,
        "y": [-STRIP * 0.92] * len(centre),
        "base": STRIP,
        "width": 1 / bins,
        "text": [_compact(int(number)) for number in counts],
        "textangle": -90,
        "textposition": "inside",
        "insidetextanchor": "end",
        "constraintext": "none",
        "textfont": {"size": 10, "color": INK},
        "marker": {"color": CLEAR},
        "hoverinfo": "skip",
        **_in_panel(panel, "count"),
        "showlegend": False,
    }


def _histogram(part: Answers, group: int, panel: str, bins: int) -> dict[str, Any]:
    """Bars of the right answers (group 1) upwards or of the wrong ones (group 0) downwards."""
    found = metrics.reliability(part.confidence, part.correct, bins=bins)
    counts = found.right if group else found.wrong
    total, full = int(counts.sum()), counts > 0
    share = counts[full] / max(total, 1)
    colour, name = (RIGHT, "right, upwards") if group else (WRONG, "wrong, downwards")
    hatch = {"shape": "/", "fillmode": "replace", "size": 6, "solidity": 0.35}
    return {
        "type": "bar",
        "name": name,
        "x": numbers(_centres(bins)[full]),
        "y": numbers(share if group else -share),
        "width": 0.94 / bins,
        "marker": {"color": colour, "pattern": {} if group else hatch, "line": {"color": colour, "width": 1}},
        "customdata": np.stack([counts[full], share], axis=1).round(4).tolist(),
        "hovertemplate": f"%{{customdata[0]:,}} of {count(total, 'image')}, %{{customdata[1]:.1%}}<extra></extra>",
        **_in_panel(panel, name),
    }


def _vertical(threshold: float, panel: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "name": "your threshold",
        "x": [threshold, threshold],
        "y": [-1.05, 1.05],
        "mode": "lines",
        "line": {"color": INK, "dash": "dot", "width": 1.5},
        "hoverinfo": "skip",
        **_in_panel(panel, "threshold"),
    }


def _centres(bins: int) -> Floats:
    centres: Floats = (np.arange(bins) + 0.5) / bins
    return centres


def _mean(values: Floats | Ints) -> float | None:
    return float(values.mean()) if len(values) else None


def _compact(number: int) -> str:
    """A count in at most four signs."""
    return str(number) if number < 10000 else f"{number / 1000:.0f}k"
