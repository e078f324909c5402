"""Curves over thresholds: success against failure, risk against coverage; one line a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from poise import metrics
from poise.report.folder import Answers, Floats, Ints
from poise.report.style import MUTED, escaped, layout, line_style, numbers, share_axis
from poise.report.words import percent

HEIGHT = 420
POINTS = 80
"""Points kept of a curve, spread evenly along its length: no screen shows more."""

TOLERATED = 0.01
"""The failure rate at which the title of the success-fail figure compares the attacks."""


def success_fail(
    clean: Answers, attacked: Mapping[str, Answers], *, max_confidence: frozenset[str] = frozenset()
) -> go.Figure:
    """Success rate (clean, right and accepted) against failure rate (attacked, wrong and accepted) at every threshold.

    Goodfellow, Qin and Berthelot, "Evaluation methodology for attacks against confidence thresholding models".

    Args:
        clean: answers to n clean images.
        attacked: answers under each attack, by name.
        max_confidence: the names of those attacks that are MaxConfidence. Only for them does the result table bound
            what a better attack could reach (section 6.1); their bound is drawn dashed. Others get none.

    Returns:
        a figure with the curve of each attack and that of no attack.

    >>> import numpy as np
    >>> clean = Answers(np.array([0.9, 0.8]), np.array([1, 1]))
    >>> success_fail(clean, {"pgd": Answers(np.array([0.9, 0.8]), np.array([0, 1]))}).layout.title.text
    'With at most 1 % failures, pgd leaves a success of 0 % instead of 100 %'
    """
    curves = {"no attack": _success_fail(clean, clean, bounded=False)}
    curves |= {name: _success_fail(clean, part, bounded=name in max_confidence) for name, part in attacked.items()}
    left = {name: float(curve.success[curve.failure <= TOLERATED].max()) for name, curve in curves.items()}
    worst = min((name for name in curves if name != "no attack"), key=lambda name: left[name])
    told = f"{percent(left[worst])} instead of {percent(left['no attack'])}"
    title = f"With at most {percent(TOLERATED)} failures, {worst} leaves a success of {told}"
    alt = "Success-fail curves. Success at 1 % failures: " + _listed(left) + "."
    traces = []
    for index, (name, curve) in enumerate(curves.items()):
        x, y = curve.staircase()
        traces.append(_line(x, y, name=name, index=index - 1, note="success %{y:.1%} at failure %{x:.1%}"))
        if name in max_confidence:
            x, y = curve.staircase(curve.upper_coverage)
            traces.append(_bound(x, y, name=f"{name}, upper bound", colour=line_style(index - 1)["line"]["color"]))
    right = max(0.1, *(float(curve.failure.max()) for curve in curves.values())) * 1.02
    step = next(step for step in (2, 5, 10, 20) if 100 * right / step <= 6)
    marks = tuple(range(0, int(100 * right) + 1, step))
    across = share_axis("failure rate, attacked", steps=marks) | {"range": [-0.02 * right, right]}
    up = share_axis("success rate, clean") | {"range": [-0.02, 1.02]}
    shown = layout(title=title, alt=alt, height=HEIGHT) | {"xaxis": across, "yaxis": up}
    return go.Figure(data=traces, layout=shown)


def risk_coverage(clean: Answers, attacked: Mapping[str, Answers]) -> go.Figure:
    """Error rate among the accepted cases against their share, clean and under each attack.

    The dashed lines are the best and the worst order of answers with the clean accuracy: errors last, errors first.

    Args:
        clean: answers to n clean images.
        attacked: answers under each attack, by name.

    Returns:
        a figure with the curve of each attack, that of no attack, and the two bounds.

    >>> import numpy as np
    >>> clean = Answers(np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 1, 1, 0]))
    >>> attacked = {"sa-mma": Answers(np.array([0.3, 0.4, 0.5, 0.9]), np.array([1, 1, 1, 0]))}
    >>> risk_coverage(clean, attacked).layout.title.text
    'Accepting the surest half of the cases errs in 0 % without attack and in 50 % under sa-mma'
    """
    curves = {"no attack": clean, **attacked}
    points = {name: _risk(part) for name, part in curves.items()}
    half = {name: float(y[np.argmax(x >= 0.5)]) for name, (x, y) in points.items()}
    worst = max((name for name in half if name != "no attack"), key=lambda name: half[name])
    title = (
        f"Accepting the surest half of the cases errs in {percent(half['no attack'])} without attack"
        f" and in {percent(half[worst])} under {worst}"
    )
    alt = "Risk-coverage curves. Error rate at half coverage: " + _listed(half) + "."
    share, accuracy = np.linspace(1 / POINTS, 1, POINTS), float(clean.correct.mean())
    traces = [
        _bound(share, np.minimum(1, (1 - accuracy) / share), name="worst order", colour=MUTED),
        _bound(share, np.maximum(0, 1 - accuracy / share), name="best order", colour=MUTED),
    ]
    for index, (name, (x, y)) in enumerate(points.items()):
        kept = _spread(x, y)
        traces.append(
            _line(x[kept], y[kept], name=name, index=index - 1, note="%{y:.1%} wrong among the surest %{x:.1%}")
        )
    across = share_axis("coverage: cases accepted") | {"range": [0, 1.02]}
    up = share_axis("risk: wrong among these") | {"range": [-0.02, 1.02]}
    shown = layout(title=title, alt=alt, height=HEIGHT) | {"xaxis": across, "yaxis": up}
    return go.Figure(data=traces, layout=shown)


def _success_fail(clean: Answers, part: Answers, *, bounded: bool) -> metrics.SuccessFail:
    """The success-fail curve at thresholds spread along its length."""
    columns = (clean.confidence, clean.correct, part.confidence, part.correct)
    full = metrics.success_fail(*columns, max_confidence=bounded)
    kept = _spread(full.failure, full.success)
    return metrics.success_fail(*columns, max_confidence=bounded, thresholds=np.maximum(full.threshold[kept], 0))


def _risk(part: Answers) -> tuple[Floats, Floats]:
    curve = metrics.risk_coverage(part.confidence, part.correct)
    return curve.coverage, curve.risk


def _spread(x: Floats, y: Floats) -> Ints:
    """Places of at most POINTS points of a curve, both ends included, evenly spaced along its length.

    >>> _spread(np.linspace(0, 1, 500), np.zeros(500))[[0, 1, -1]].tolist()
    [0, 7, 499]
    """
    if len(x) <= POINTS:
        return np.arange(len(x))
    length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    kept = np.searchsorted(length, np.linspace(0, length[-1], POINTS))
    return np.unique(np.append(kept, [0, len(x) - 1]))


def _line(x: Floats, y: Floats, *, name: str, index: int, note: str) -> dict[str, Any]:
    """A solid line with about nine markers; index -1 is the curve without attack, in grey and without markers."""
    plain = {"mode": "lines", "line": {"color": MUTED, "width": 3}}
    style: dict[str, Any] = plain if index < 0 else line_style(index) | {"mode": "lines+markers"}
    if index >= 0:
        style["marker"]["maxdisplayed"] = 9
    shown = {"type": "scatter", "name": escaped(name), "x": numbers(x), "y": numbers(y), "hovertemplate": note}
    return shown | style


def _bound(x: Floats, y: Floats, *, name: str, colour: str) -> dict[str, Any]:
    line = {"color": colour, "dash": "dash", "width": 1.5}
    shown = {"type": "scatter", "name": escaped(name), "x": numbers(x), "y": numbers(y), "mode": "lines"}
    return shown | {"line": line, "hoverinfo": "skip"}


def _listed(values: Mapping[str, float]) -> str:
    return "; ".join(f"{name} {percent(number)}" for name, number in values.items())
