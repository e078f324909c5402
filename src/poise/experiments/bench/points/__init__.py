"""What a figure draws that no metric says: one tidy table of points, by the kind of the figure.

Every table has the keys of a result (`reduce.KEYS`) and columns of its own, at most `common.MOST` rows for a figure of
the paper; what is thinned out, and how, stands at the function. Pictures of single images, and what comes from a task
that measures single images, are those of the first seed.
"""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from poise.experiments.bench.plan import Plan
from poise.experiments.bench.points import answers, inside, steps
from poise.experiments.bench.reduce import Reader
from poise.experiments.bench.store import Store

POINTS: dict[str, Callable[[Reader], pl.DataFrame]] = {
    "reliability": answers.reliability,
    "distributions": answers.distributions,
    "by-class": answers.by_class,
    "success-fail": answers.success_fail,
    "sorted": answers.by_probability,
    "trace": steps.trace,
    "margins": steps.margins,
    "perturbations": inside.perturbations,
    "cams": inside.cams,
    "embedding": inside.embedding,
    "bounds": inside.bounds,
}
"""Kind of figure to what collects its points; kinds that draw metrics (lines, bars) are not here."""


def points(plan: Plan, store: Store) -> pl.DataFrame:
    """The points of the spec's figure; an empty table where it draws metrics, there is none, or nothing is finished."""
    figure = plan.spec.figure
    if figure is None or figure.draw not in POINTS:
        return pl.DataFrame()
    return POINTS[figure.draw](Reader(plan, store))


__all__ = ["POINTS", "points"]
