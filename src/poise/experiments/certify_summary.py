"""summary.json of a certification: every figure per radius with its interval, in both conventions for abstentions."""

from __future__ import annotations

import math
import platform
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
import torch

from poise import __version__, metrics
from poise.certify import certified_brier_rows, certified_gap_rows, worst_ece_found
from poise.experiments.certify_spec import CertifySpec
from poise.metrics import Bootstrap
from poise.spec import fingerprint

Figure = dict[str, float | None]

BINS = 15
"""Bins of the ECE."""


def summarise(
    spec: CertifySpec,
    samples: pl.DataFrame,
    attacks: pl.DataFrame,
    about: dict[str, Any],
    *,
    seconds: float,
    command: str,
) -> dict[str, Any]:
    """What summary.json holds.

    Args:
        spec: what was done.
        samples, attacks: the tables of the run folder.
        about: target, data and fingerprints.
    """
    plan = Bootstrap(resamples=spec.bootstrap, seed=spec.seed % 2**32)
    at_zero = samples.unique("id", keep="first", maintain_order=True)
    return {
        "poise": __version__,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "seconds": round(seconds, 1),
        "command": command,
        **about,
        "spec": spec.model_dump(mode="json"),
        "fingerprints": {**about["fingerprints"], "spec": fingerprint(spec.measured())},
        "versions": {"poise": __version__, "python": platform.python_version(), "torch": torch.__version__},
        "epsilon": spec.smoothing.epsilon,
        "images": len(at_zero),
        "smoothed": {
            "accuracy": _figure(plan, at_zero["prediction"] == at_zero["label"]),
            "confidence": _figure(plan, at_zero["confidence"]),
            "abstained": _figure(plan, at_zero["abstained"]),
        },
        "judged_with": spec.attack_judged if len(attacks) else None,
        "rows": [_row(spec, radius, samples, attacks, plan) for radius in spec.radii],
    }


def _row(
    spec: CertifySpec, radius: float, samples: pl.DataFrame, attacks: pl.DataFrame, plan: Bootstrap
) -> dict[str, Any]:
    here = samples.filter(pl.col("radius") == radius)
    kept = ~here["abstained"].to_numpy()
    figures: dict[str, Figure] = {
        "certified_accuracy": _figure(plan, here["certified"] & (here["prediction"] == here["label"])),
        "certified": _figure(plan, here["certified"]),
    }
    for name in ("lower", "upper", "naive_lower", "naive_upper"):
        values = here[name].to_numpy()
        figures[name] = _figure(plan, values)
        figures[f"{name}_abstentions_zero"] = _figure(plan, np.where(kept, values, 0.0))
        figures[f"{name}_without_abstentions"] = _figure(plan, values, kept)
    if spec.measure == "pred_score":
        figures |= _calibration(here, plan)
    found = attacks.filter(pl.col("radius") == radius)
    for name, up in (("attacked_down", False), ("attacked_up", True)):
        part = found.filter(pl.col("up") == up)
        if len(part):
            figures[name] = _figure(plan, part["confidence"])
    row: dict[str, Any] = {"radius": radius, "metrics": figures}
    if not len(found):
        return row
    # three of the largest standard errors that the mean of scores in a range of this width can have
    slack = 3 * 0.5 * (spec.smoothing.measure.high - spec.smoothing.measure.low) / math.sqrt(spec.attack_judged)
    return row | {"attacks_outside_the_bounds": _outside(here, found, slack)}


def _calibration(here: pl.DataFrame, plan: Bootstrap) -> dict[str, Figure]:
    """Certified Brier and calibration error: of the certified images, and of all with the worst for the others."""
    lower, upper = (here[name].to_numpy().clip(0.0, 1.0) for name in ("lower", "upper"))
    hit = (here["prediction"] == here["label"]).to_numpy().astype(np.float64)
    sure = here["certified"].to_numpy()
    figures = {}
    for name, rows in (("brier", certified_brier_rows), ("ece_bound", certified_gap_rows)):
        worst = rows(lower, upper, hit)
        figures[f"{name}_certified_images"] = _figure(plan, worst, sure)
        figures[f"{name}_all_images"] = _figure(plan, np.where(sure, worst, 1.0))
    if sure.any():
        found, _ = worst_ece_found(lower[sure], upper[sure], hit[sure], bins=BINS)
        figures["ece_found_certified_images"] = {"value": found, "low": None, "high": None}
    return figures


def _outside(here: pl.DataFrame, found: pl.DataFrame, slack: float) -> int:
    """How many attacked images lie beyond their bounds by more than the error of judging."""
    both = found.join(here.select("id", "lower", "upper"), on="id")
    low, high = pl.col("confidence") < pl.col("lower") - slack, pl.col("confidence") > pl.col("upper") + slack
    return int(both.select((low | high).sum()).item())


def _figure(plan: Bootstrap, values: Any, where: Any = None) -> Figure:
    """A mean with its 95 % interval over images; None where no image is left."""
    column = np.asarray(values, dtype=np.float64)
    if where is None:
        found = plan.interval(metrics.mean, column)
    elif not np.any(where):
        return {"value": None, "low": None, "high": None}
    else:
        found = plan.interval(metrics.mean, column, np.asarray(where, dtype=np.float64))
    return {name: float(getattr(found, name)) for name in ("value", "low", "high")}
