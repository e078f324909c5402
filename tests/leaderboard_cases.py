"""What the leaderboard's tests share: the summary of an audit that was never run, with figures that fit together."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import polars as pl

from poise import metrics
from poise.experiments.leaderboard import Entry, entries_from
from poise.experiments.measure import measure

N, CLASSES = 120, 10
DEFENCES = (("none", "aware"), ("ts", "aware"), ("ts", "unaware"))


def rows(strength: float, seed: int = 0) -> pl.DataFrame:
    """Result rows in which right answers lose the share `strength` of their confidence and wrong ones gain it."""
    rng = np.random.default_rng(seed)
    right = np.arange(N) % 10 > 0
    before = rng.uniform(0.6, 0.99, N)
    after = np.where(right, np.maximum(before * (1 - strength), 1.01 / CLASSES), before + (1 - before) * strength)
    label = np.zeros(N, np.int64)
    table = {"label": label, "prediction_before": ~right + label, "prediction_after": ~right + label}
    ones = ("brier_before", "brier_after", "nll_before", "nll_after", "gradients", "delta_w", "ssim")
    return pl.DataFrame(
        table
        | {name: np.ones(N) for name in ones}
        | {"confidence_before": before, "confidence_after": after, "linf": np.full(N, 0.03)}
        | {"queries": np.full(N, 400), "queries_to_success": pl.Series([None] * N, dtype=pl.Int64)}
    )


def summary(
    *, strengths: tuple[float, ...] = (0.8, 0.5, 0.6), weights: str = "1", images: str = "2", **spec: Any
) -> dict[str, Any]:
    """A summary with one row of `standard` per entry of DEFENCES; `spec` replaces what the audit was asked for."""
    plan = metrics.Bootstrap(resamples=200, seed=0)
    found = [
        {
            "recipe": "standard", "defence": defence, "view": view, "n": N,
            "metrics": measure(rows(strength), threshold=0.9, num_classes=CLASSES, plan=plan),
        }
        for (defence, view), strength in zip(DEFENCES, strengths, strict=True)
    ]  # fmt: skip
    asked = {
        "model": "builtin:resnet20-cifar10?weights=/srv/somebody/secret/resnet20.safetensors",
        "data": "npz:/srv/somebody/secret/cifar10.npz", "norm": "linf", "eps": 8 / 255, "budget": 400, "steps": None,
        "seed": 0, "threshold": 0.9, "view": None, "eight_bit": False, "defences": ["none", "ts"],
    }  # fmt: skip
    return {
        "poise": "0.1.0",
        "created": "2026-11-20T10:00:00Z",
        "target": {"model": asked["model"], "num_classes": CLASSES},
        "data": {"name": asked["data"], "samples": N},
        "spec": asked | spec,
        "fingerprints": {
            "weights": "sha256:" + weights * 64, "data": "sha256:" + images * 64, "fit_data": "sha256:" + "3" * 64,
            "spec": "0123456789ab",
        },
        "threshold": 0.9,
        "bound": {"none": 0.91, "ts": 0.91},
        "recipes": {"standard": {"whitebox": True, "keeps_label": True}},
        "rows": found,
        "checks": [{"name": "budget", "status": "warned"}, {"name": "saturation", "status": "passed"}],
    }  # fmt: skip


_MADE = summary()


def made() -> dict[str, Any]:
    """The usual summary, a copy that may be changed."""
    return copy.deepcopy(_MADE)


def entry(**told: Any) -> Entry:
    """The undefended entry of the usual summary."""
    return entries_from(made(), name=told.pop("name", "Net"), **told)[0]
