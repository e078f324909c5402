"""Curves over thresholds: success against failure, risk against coverage; one line a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from poise import metrics
from poise.report.folder import Answers, Floats, Ints
from poise.report.style import CLEAR, MUTED, escaped, layout, line_style, numbers, share_axis
from poise.report.words import percent

HEIGHT = 420
POINTS = 80
"""Points kept of a curve, spread evenly along its length: no screen shows more."""

TOLERATED = 0.01
"""The failure rate at which the title of the success-fail figure compares the attacks."""


def success_fail(
    clean: Answers,
    attacked: Mapping[str, Answers],
    *,
    max_confidence: Mapping[str, Floats] | None = None,
    classes: int = 2**53,
) -> go.Figure:
    """Success rate (clean, right and accepted) against failure rate (attacked, wrong and accepted) at every threshold.

    Goodfellow, Qin and Berthelot, "Evaluation methodology for attacks against confidence thresholding models". Solid
    where an optimal attacker of that kind can do no more: MaxConfidence at thresholds of 1/2 and above. Dashed below,
    and for all other attacks: what was observed, a lower bound. The band ends at the upper bound, the share of images
    of which some wrong class was seen above the threshold.

    Args:
        clean: answers to n clean images.
        attacked: answers under each attack, by name.
        max_confidence: of those attacks that are MaxConfidence, the highest probability of a wrong class (n,) that was
            seen of each image. Attacks that are not named bound nothing.
        classes: their number K, which makes the upper bound tighter: no image fails by a class of less than 1 / K.

    Returns:
        a figure with the curve of each attack and that of no attack.

    >>> import numpy as np
    >>> clean = Answers(np.array([0.9, 0.8]), np.array([1, 1]))
    >>> success_fail(clean, {"pgd": Answers(np.array([0.9, 0.8]), np.array([0, 1]))}).layout.title.text
    'With at most 1 % failures, pgd leaves a success of 0 % instead of 100 %'
    """
    seen = max_confidence or {}
    plain = _success_fail(clean, clean, bounded=False)
    curves = {name: _success_fail(clean, part, bounded=name in seen) for name, part in attacked.items()}
    left = {name: float(curve.success[curve.failure <= TOLERATED].max()) for name, curve in curves.items()}
    left = {"no attack": float(plain.success[plain.failure <= TOLERATED].max()), **left}
    worst = min(curves, key=lambda name: left[name])
    told = f"{percent(left[worst])} instead of {percent(left['no attack'])}"
    title = f"With at most {percent(TOLERATED)} failures, {worst} leaves a success of {told}"
    alt = "Success-fail curves. Success at 1 % failures: " + _listed(left) + "."
    note = "success %{y:.1%} at failure %{x:.1%}"
    traces = [_line(*plain.staircase(), name="no attack", index=-1, note=note)]
    for index, (name, curve) in enumerate(curves.items()):
        bound = None if name not in seen else _wrong_share(clean, seen[name], curve, classes)
        traces += _attack_lines(curve, bound, name=name, index=index, note=note)
    right = max(0.1, *(max(trace["x"]) for trace in traces)) * 1.02
    step = next(step for step in (2, 5, 10, 20) if 100 * right / step <= 6)
    marks = tuple(range(0, int(100 * right) + 1, step))
    across = share_axis("failure rate, attacked", steps=marks) | {"range": [-0.02 * right, right]}
    up = share_axis("success rate, clean") | {"range": [-0.02, 1.02]}
    shown = layout(title=title, alt=alt, height=HEIGHT) | {"xaxis": across, "yaxis": up}
    return go.Figure(data=traces, layout=shown)


def _attack_lines(
    curve: metrics.SuccessFail, bound: Floats | None, *, name: str, index: int, note: str
) -> list[dict[str, Any]]:
    """The curve of one attack: solid and dashed part, and the band up to the upper bound where there is one."""
    solid = int(curve.solid.sum())  # thresholds come from the highest to the lowest
    if bound is None or not solid:
        dashed = _line(*curve.staircase(), name=name, index=index, note=note)
        dashed["line"] = dashed["line"] | {"dash": "dash"}
        return [dashed]
    certain = _line(*_stairs(curve.failure[:solid], curve.success[:solid]), name=name, index=index, note=note)
    below = slice(solid - 1, None)  # joined to the solid part
    lower_x, lower_y = _stairs(curve.failure[below], curve.success[below])
    upper_x, upper_y = _stairs(bound[below], curve.success[below])
    colour = line_style(index)["line"]["color"]
    lower = _bound(lower_x, lower_y, name=f"{name}, below 1/2", colour=colour, dash="dash")
    upper = _bound(upper_x, upper_y, name=f"{name}, upper bound", colour=colour, dash="dot")
    band = {
        "type": "scatter",
        "x": numbers(np.concatenate([lower_x, upper_x[::-1]])),
        "y": numbers(np.concatenate([lower_y, upper_y[::-1]])),
        "mode": "lines",
        "line": {"color": CLEAR, "width": 0},
        "fill": "toself",
        "fillcolor": _pale(colour),
        "hoverinfo": "skip",
        "showlegend": False,
    }
    return [band, certain, lower | {"hovertemplate": note, "hoverinfo": "all"}, upper]


def _wrong_share(clean: Answers, seen: Floats, curve: metrics.SuccessFail, classes: int) -> Floats:
    """Share of images of which a wrong class was seen above each threshold and no lower than 1 / K.

    No attack can fail more images if MaxConfidence was perfect: the class that wins is above the threshold, and has at
    least a K-th of the probability. At 1/2 and above it is the failure rate itself.
    """
    least = np.nextafter((1 - 1e-6) / classes, 0)  # a K-th itself counts, as do probabilities rounded below it
    wrong = metrics.success_fail(
        *(clean.confidence, clean.correct, seen, np.zeros(len(seen))),
        max_confidence=False,
        thresholds=np.maximum(curve.threshold, least),
    )
    bound: Floats = np.where(curve.solid, curve.failure, np.maximum(wrong.failure, curve.failure))
    return bound


def _stairs(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """From point to point first right, then up, so that the line never overstates the success."""
    return np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]


def _pale(colour: str) -> str:
    """A colour "#rrggbb", nearly transparent.

    >>> _pale("#0072b2")
    'rgba(0, 114, 178, 0.13)'
    """
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.13)"


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
    kept = np.union1d(_spread(full.failure, full.success), np.flatnonzero(full.threshold == 0.5))
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


def _bound(x: Floats, y: Floats, *, name: str, colour: str, dash: str = "dash") -> dict[str, Any]:
    line = {"color": colour, "dash": dash, "width": 1.5}
    shown = {"type": "scatter", "name": escaped(name), "x": numbers(x), "y": numbers(y), "mode": "lines"}
    return shown | {"line": line, "hoverinfo": "skip"}


def _listed(values: Mapping[str, float]) -> str:
    return "; ".join(f"{name} {percent(number)}" for name, number in values.items())
