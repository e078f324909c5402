"""Points of what an attack does on its way: traces of gradient attacks, margins of every query."""

from __future__ import annotations

import polars as pl

from poise.experiments.bench.points.common import MOST, complete, joined, keyed, thinned
from poise.experiments.bench.reduce import Reader


def trace(reader: Reader) -> pl.DataFrame:
    """Confidence in the clean prediction, its margin and the step over the iterations of single images: place, id,
    iteration, confidence, margin, step.

    Martinez et al., Underconfidence Adversarial Training, Fig. S1. The images are those at the places that the figure
    names (`samples`), of the first seed. Where an attack asks for several points in one iteration, the one of lowest
    loss stands for them; iterations are thinned out evenly.
    """
    figure = reader.plan.spec.figure
    assert figure is not None
    cells = [(group.cells[0], rows[0]) for group, rows in complete(reader, "rows.parquet")]
    each = MOST // max(len(cells) * len(figure.samples), 1)
    frames = []
    for cell, rows in cells:
        found = reader.table(cell, "trace.parquet")
        if found is None:
            continue
        best = found.sort("id", "iteration", "loss").unique(["id", "iteration"], keep="first", maintain_order=True)
        for place in figure.samples:
            if place < len(rows):
                part = best.filter(pl.col("id") == rows["id"][place])
                part = part[thinned(len(part), each)] if len(part) else part
                kept = ("id", "iteration", "confidence", "margin", "step")
                frames.append(keyed(part.select(pl.lit(place, pl.Int64).alias("place"), *kept), cell))
    return joined(frames)


def margins(reader: Reader) -> pl.DataFrame:
    """Margin of the true class at every query, as the attacker sees it and without the defence: place, id, query,
    seen, bare (task `margins`).

    Chen et al., Adversarial Attack on Attackers, Figs. 2, 6 and 7. Images at the figure's `samples`, first seed;
    queries are thinned out evenly.
    """
    figure = reader.plan.spec.figure
    assert figure is not None
    cells = [(group.cells[0], points[0]) for group, points in complete(reader, "points.parquet")]
    each = MOST // max(len(cells) * len(figure.samples), 1)
    frames = []
    for cell, found in cells:
        parts = found.partition_by("id", maintain_order=True)
        for place in figure.samples:
            if place < len(parts):
                part = parts[place][thinned(len(parts[place]), each)]
                columns = (pl.lit(place, pl.Int64).alias("place"), "id", pl.col("queries").alias("query"))
                frames.append(keyed(part.select(*columns, "seen", "bare"), cell))
    return joined(frames)
