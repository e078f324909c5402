"""Certified bounds on the confidence in attacked images (Obadinma et al., Calibration Attacks, Fig. 7)."""

from __future__ import annotations

import numpy as np
import polars as pl

from poise.certify import MEASURES, Certificate, Smoothing
from poise.certify import certify as certificates_of
from poise.errors import InputError, brief
from poise.experiments.bench.plan import Plain, Shard
from poise.experiments.bench.tasks import measured, packing
from poise.experiments.bench.tasks.attack import faced, run
from poise.experiments.bench.workbench import Inputs, Workbench
from poise.experiments.rows import asked

RADII = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Radii (l2, pixel units) where the options name none."""

SCHEMA = {
    "id": pl.Int64, "label": pl.Int64, "prediction": pl.Int64, "radius": pl.Float64, "lower": pl.Float64,
    "upper": pl.Float64, "smoothed": pl.Float64, "confidence": pl.Float64,
}  # fmt: skip
"""Columns of points.parquet, one row per image and radius: `lower` and `upper` enclose the smoothed confidence within
the radius, `smoothed` is its mean over the draws, `confidence` that of the model itself."""

SMOOTHING = ("sigma", "n", "n0", "alpha")


def certify(bench: Workbench, shard: Shard, inputs: Inputs) -> dict[str, bytes]:
    """points.parquet, and metrics.parquet with the means over the images at every radius (key `x`).

    Every cell certifies the images as its attack leaves them. The clean images are a cell of their own: an attack
    called "none" with a budget of one query, which is the clean image's. Options: `sigma`, `n`, `n0`, `alpha` of
    `poise.certify.Smoothing`, `radii`, `measure`. Noise is keyed by image, so that versions of one share it.
    Metrics: `certified_lower`, `certified_upper`, `certified` (share of images whose prediction cannot change),
    `smoothed_confidence` (x = 0).
    """
    settings = shard.settings
    smoothing, radii = _smoothing(settings), np.array(settings["options"].get("radii", RADII), dtype=np.float64)
    bare = bench.model(shard, inputs)
    target = bench.defended(shard, bare, inputs)
    part = bench.part(shard, bare)
    if len(part) == 0:
        empty = pl.DataFrame(schema=SCHEMA)
        return {"points.parquet": packing.table(empty)}
    images, labels, ids = next(iter(part.batches(len(part))))
    if "attack" in settings:
        images = run(faced(settings, bare, target), settings, images, labels, ids).images
    (answer,) = asked(target, (images,), pl.Series(ids.numpy()))
    found = certificates_of(target, images, ids, smoothing)
    points = _points(found, labels.tolist(), answer.confidence.cpu().tolist(), radii)
    return {"points.parquet": packing.table(points), "metrics.parquet": packing.table(_metrics(found, radii))}


def _smoothing(settings: Plain) -> Smoothing:
    options = settings["options"]
    unknown = [name for name in options if name not in (*SMOOTHING, "radii", "measure")]
    measure = options.get("measure", "pred_score")
    if unknown or measure not in MEASURES:
        raise InputError(
            f"certify: options must be {', '.join(SMOOTHING)}, radii, measure ({', '.join(MEASURES)}), "
            f"got {', '.join(unknown) or measure}"
        )
    given = {name: options[name] for name in SMOOTHING if name in options}
    try:
        return Smoothing(**given, measure=MEASURES[measure], seed=settings["seed"])
    except TypeError as error:
        raise InputError(f"certify: options must be numbers, got {brief(error)}") from error


def _points(found: list[Certificate], labels: list[int], confidence: list[float], radii: np.ndarray) -> pl.DataFrame:
    frames = []
    for one, label, sure in zip(found, labels, confidence, strict=True):
        bounds = pl.DataFrame({"radius": radii, "lower": one.lower(radii), "upper": one.upper(radii)})
        about = {"id": one.id, "label": label, "prediction": one.prediction, "smoothed": one.mean, "confidence": sure}
        frames.append(bounds.with_columns(**{name: pl.lit(value) for name, value in about.items()}))
    return pl.concat(frames).select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())


def _metrics(found: list[Certificate], radii: np.ndarray) -> pl.DataFrame:
    rows: list[measured.Row] = [
        {"x": 0.0, "metric": "smoothed_confidence", **measured.mean([one.mean for one in found])}
    ]
    for radius in radii.tolist():
        columns = {
            "certified_lower": [float(one.lower(radius)) for one in found],
            "certified_upper": [float(one.upper(radius)) for one in found],
            "certified": [float(one.certified(radius)) for one in found],
        }
        rows += [{"x": radius, "metric": name, **measured.mean(values)} for name, values in columns.items()]
    return measured.table(rows)
