"""A result of `poise bench` as a figure, and as a page of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import polars as pl

from poise.errors import InputError, RunError
from poise.report.bench import answers, inside, lines
from poise.report.bench.frames import Drawn, typed

FIGURES: dict[str, Callable[[Drawn], go.Figure]] = {
    "lines": lines.lines,
    "bars": lines.bars,
    "reliability": answers.reliability,
    "distributions": answers.distributions,
    "by-class": answers.by_class,
    "success-fail": answers.success_fail,
    "sorted": answers.sorted_images,
    "trace": inside.trace,
    "margins": inside.margins,
    "perturbations": inside.perturbations,
    "cams": inside.cams,
    "embedding": inside.embedding,
    "bounds": inside.bounds,
}
"""What draws each kind of figure."""


@dataclass(frozen=True)
class _Ready:
    """A result whose points have their types again."""

    name: str
    spec: Any
    rows: pl.DataFrame
    points: pl.DataFrame
    about: dict[str, Any]


METRICS = ("lines", "bars")
"""Kinds that draw metrics; all others draw points."""


def figure(result: Drawn) -> go.Figure:
    """The figure of a result.

    Raises:
        InputError: the spec has no figure; RunError: nothing of it is finished.
    """
    if result.spec.figure is None:
        raise InputError(f"figure: {result.name} must have a table [figure], it has none")
    draw = result.spec.figure.draw
    if draw in METRICS:
        missing = result.rows.is_empty() or not set(result.rows["metric"]) & set(result.spec.figure.y)
    else:
        missing = result.points.is_empty()
    if missing:
        raise RunError(f"figure: {result.name} must have something to draw ({draw}), found nothing; run it first")
    return FIGURES[draw](_Ready(result.name, result.spec, result.rows, typed(result.points), result.about))


def to_html(result: Drawn, trends: Sequence[tuple[str, ...]] = ()) -> str:
    """The figure as one page that loads nothing, with its setting and what differs from the paper's.

    Args:
        result: what is drawn. trends: rows of a table, as `page` takes them.

    Raises:
        InputError: the spec has no figure; RunError: nothing of it is finished.
    """
    from poise.report.bench.page import page

    return page(result, figure(result), trends)
