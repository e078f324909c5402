"""Points that are counted from the answers before and after an attack (rows.parquet)."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from poise import metrics
from poise.experiments.bench.plan import UNATTACKED, Cell
from poise.experiments.bench.points.common import MOST, complete, joined, keyed, thinned
from poise.experiments.bench.reduce import Reader

Floats = NDArray[np.float64]

BINS, BARS = 15, 20
"""Bins of a reliability diagram, and of a histogram of the confidence."""

WHEN = ("before", "after")

CURVE = 200
"""Thresholds kept of a success-fail curve, evenly spaced along its length."""

GROUPS, FEWEST = 100, 3
"""Groups of sorted images, as in the paper; fewer where a group would hold fewer than 3 images."""


def _columns(rows: pl.DataFrame, when: str) -> tuple[Floats, Floats]:
    """Confidence and whether right, before or after the attack."""
    right = (rows[f"prediction_{when}"] == rows["label"]).cast(pl.Float64).to_numpy()
    return rows[f"confidence_{when}"].cast(pl.Float64).to_numpy(), right


def reliability(reader: Reader) -> pl.DataFrame:
    """Fifteen bins of the confidence of each attack, and of no attack: low, high, count, confidence, accuracy.

    Obadinma et al., Calibration Attacks, Fig. 1. Seeds are pooled; confidence and accuracy are empty where a bin is.
    """
    frames = []
    clean = []
    for group, found in complete(reader, "rows.parquet"):
        rows, cell = pl.concat(found), group.cells[0]
        if group.tells_clean:
            clean.append(keyed(_reliability(rows, "before"), cell, **UNATTACKED))
        frames.append(keyed(_reliability(rows, "after"), cell))
    return joined([*clean, *frames])


def _reliability(rows: pl.DataFrame, when: str) -> pl.DataFrame:
    found = metrics.reliability(*_columns(rows, when), bins=BINS)
    table = pl.DataFrame(
        {
            "low": found.edges[:-1],
            "high": found.edges[1:],
            "count": found.count,
            "confidence": found.confidence,
            "accuracy": found.accuracy,
        }
    )
    return table.with_columns(pl.col("confidence", "accuracy").fill_nan(None))


def distributions(reader: Reader) -> pl.DataFrame:
    """Histograms of the confidence, of right and wrong answers, before and after: when, answer, low, high, count.

    Martinez et al., Underconfidence Adversarial Training, Fig. 2. Answers are right or wrong by the prediction at that
    time; 20 bins, closed on the right; seeds are pooled.
    """
    frames = []
    for group, found in complete(reader, "rows.parquet"):
        rows = pl.concat(found)
        for when in WHEN:
            bins = metrics.reliability(*_columns(rows, when), bins=BARS)
            for answer, counts in (("right", bins.right), ("wrong", bins.wrong)):
                table = pl.DataFrame({"low": bins.edges[:-1], "high": bins.edges[1:], "count": counts})
                named = table.select(pl.lit(when).alias("when"), pl.lit(answer).alias("answer"), "low", "high", "count")
                frames.append(keyed(named, group.cells[0]))
    return joined(frames)


def by_class(reader: Reader) -> pl.DataFrame:
    """Confidence of every image by its predicted class before the attack: when, class, id, confidence.

    Martinez et al., Fig. S2. First seed; where all images would be too many rows, every k-th of them.
    """
    found = [(group.cells[0], frames[0]) for group, frames in complete(reader, "rows.parquet")]
    each = MOST // (len(WHEN) * max(len(found), 1))
    frames = []
    for cell, rows in found:
        kept = rows[thinned(len(rows), each)]
        for when in WHEN:
            table = kept.select(
                pl.lit(when).alias("when"),
                pl.col("prediction_before").alias("class"),
                "id",
                pl.col(f"confidence_{when}").cast(pl.Float64).alias("confidence"),
            )
            frames.append(keyed(table, cell))
    return joined(frames)


def success_fail(reader: Reader) -> pl.DataFrame:
    """A success-fail curve of each model under each attack: threshold, success, failure, upper, solid.

    Goodfellow, Qin and Berthelot, "Evaluation methodology for attacks against confidence thresholding models", Figs. 1
    to 3. Of an attack that keeps the highest wrong confidence seen (MaxConfidence) the curve is solid at thresholds of
    1/2 and above, and `upper` bounds the failure rate below: the share of images of which some wrong class was seen
    above the threshold. Any other attack's curve is a lower bound throughout, `upper` is empty. Seeds are pooled; at
    most 200 thresholds, evenly spaced along the curve.
    """
    frames = []
    for group, found in complete(reader, "rows.parquet"):
        frames.append(keyed(_success_fail(pl.concat(found)), group.cells[0]))
    return joined(frames)


def _success_fail(rows: pl.DataFrame) -> pl.DataFrame:
    clean, attacked = _columns(rows, "before"), _columns(rows, "after")
    bounded = rows["wrong_confidence"].null_count() == 0
    full = metrics.success_fail(*clean, *attacked, max_confidence=bounded)
    length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(full.failure)) + np.abs(np.diff(full.success)))])
    kept = np.searchsorted(length, np.linspace(0, length[-1], CURVE))
    kept = np.unique(np.concatenate([kept, [0, len(length) - 1], np.flatnonzero(full.threshold == 0.5)]))
    threshold = np.maximum(full.threshold[kept], 0.0)
    columns: dict[str, Any] = {
        "threshold": threshold,
        "success": full.success[kept],
        "failure": full.failure[kept],
        "upper": np.full(len(kept), np.nan),
        "solid": full.solid[kept],
    }
    if bounded:
        seen = rows["wrong_confidence"].cast(pl.Float64).to_numpy()
        wrong = metrics.success_fail(
            *(*clean, seen, np.zeros(len(seen))), max_confidence=False, thresholds=np.unique(threshold)
        )
        share = np.interp(threshold, wrong.threshold[::-1], wrong.failure[::-1])  # at its own thresholds: exact
        columns["upper"] = np.where(full.solid[kept], full.failure[kept], np.maximum(share, full.failure[kept]))
    return pl.DataFrame(columns).with_columns(pl.col("upper").fill_nan(None))


def by_probability(reader: Reader) -> pl.DataFrame:
    """Mean confidence, true-class probability and accuracy of groups of clean images: group, size and these.

    Chen et al., Adversarial Attack on Attackers, Fig. 3, left: the images are sorted by the true-class probability that
    the undefended model gives them (exp(-nll_before), ties by id) and parted into 100 groups or fewer. The undefended
    model is the one of the same data set and model without a defence; where there is none, of the same data set. First
    seed.
    """
    answered = _clean_answers(reader)
    bare = {(cell.keys["dataset"], cell.keys["model"]): rows for cell, rows in answered if _is_bare(cell)}
    frames = []
    for cell, rows in answered:
        data = cell.keys["dataset"]
        order = bare.get((data, cell.keys["model"])) or next((at for key, at in bare.items() if key[0] == data), None)
        if order is not None:
            frames.append(keyed(_grouped(order.table, rows.table), cell, **UNATTACKED))
    return joined(frames)


class _Answers:
    """The clean answers of a model: id, probability of the true class, confidence, right."""

    def __init__(self, rows: pl.DataFrame) -> None:
        self.table = rows.select(
            "id",
            (-pl.col("nll_before").cast(pl.Float64)).exp().alias("probability"),
            pl.col("confidence_before").cast(pl.Float64).alias("confidence"),
            (pl.col("prediction_before") == pl.col("label")).cast(pl.Float64).alias("right"),
        ).sort("probability", "id")


def _is_bare(cell: Cell) -> bool:
    return bool(cell.keys["defence"] == "none")


def _clean_answers(reader: Reader) -> list[tuple[Cell, _Answers]]:
    """Of every model behind every defence, once."""
    found: dict[tuple[Any, ...], tuple[Cell, _Answers]] = {}
    for group, frames in complete(reader, "rows.parquet"):
        cell = group.cells[0]
        name = tuple(cell.keys[key] for key in ("dataset", "model", "defence", "x"))
        if name not in found:
            found[name] = (cell, _Answers(frames[0]))
    return list(found.values())


def _grouped(order: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    both = order.select("id").join(rows, on="id", maintain_order="left")
    number = max(1, min(GROUPS, both.height // FEWEST))
    parts = np.array_split(np.arange(both.height), number)
    means = {
        name: [float(both[name].to_numpy()[part].mean()) for part in parts]
        for name in ("confidence", "probability", "right")
    }
    return pl.DataFrame(
        {
            "group": range(1, number + 1),
            "size": [len(part) for part in parts],
            "confidence": means["confidence"],
            "probability": means["probability"],
            "accuracy": means["right"],
        }
    )
