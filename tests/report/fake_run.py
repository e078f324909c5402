"""A run folder as `poise audit` writes it, made from random numbers: what the report's tests work on.

The metrics of its summary are computed here in plain numpy, independently of `poise.metrics`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors.numpy import save_file

NASTY = "</script><img src=x onerror=alert(1)>"
BUDGET = 1000
STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)

RECIPES: dict[str, dict[str, Any]] = {
    "sa-mma": {
        "summary": "right answers down, wrong ones up, by random squares",
        "paper": "Obadinma et al., Calibration Attacks",
        "whitebox": False,
        "keeps_label": True,
        "right": 0.7,
        "wrong": 0.6,
    },
    "sa-oca": {
        "summary": "all confidences up",
        "paper": "Obadinma et al., Calibration Attacks",
        "whitebox": False,
        "keeps_label": True,
        "right": -0.6,
        "wrong": 0.8,
    },
    "pgd-uca": {
        "summary": "all confidences down, with gradients",
        "paper": "Obadinma et al., Calibration Attacks",
        "whitebox": True,
        "keeps_label": True,
        "right": 0.85,
        "wrong": -0.5,
    },
    "pgd": {
        "summary": "wrong labels, with gradients",
        "paper": "Madry et al.",
        "whitebox": True,
        "keeps_label": False,
        "right": 0.3,
        "wrong": 0.5,
        "flips": 0.8,
    },
}

SUREST: dict[str, dict[str, Any]] = {
    "max-confidence": {
        "summary": "the surest wrong label",
        "paper": "Goodfellow et al.",
        "whitebox": True,
        "keeps_label": False,
        "max_confidence": True,
        "right": 0.6,
        "wrong": 0.0,
        "flips": 0.9,
    },
}
"""An attack that bounds what is possible; in no run unless it is asked for."""

MODELS: tuple[tuple[str, str, float], ...] = (
    ("none", "aware", 1.0),
    ("temperature", "aware", 0.95),
    ("temperature", "unaware", 0.8),
    ("compression", "aware", 0.6),
    ("compression", "unaware", 0.4),
    ("aaa-linear", "aware", 0.85),
    ("aaa-linear", "unaware", 0.1),
)
"""Defence, view, and how much of the attack's strength is left."""


@dataclass(frozen=True)
class Spec:
    """What kind of run is made."""

    n: int = 300
    classes: int = 10
    recipes: tuple[str, ...] = tuple(RECIPES)
    models: tuple[tuple[str, str, float], ...] = MODELS
    channels: int = 3
    side: int = 16
    costs: dict[str, float] | None = None
    threshold: float = 0.9
    nasty: bool = True
    curves: bool = True
    gallery: bool = True
    traces: bool = False
    seed: int = 0
    copies: int = 1


def build(path: Path, spec: Spec = Spec()) -> Path:
    """Writes a run folder and returns its path."""
    rng = np.random.default_rng(spec.seed)
    (path / "samples").mkdir(parents=True)
    recipes = {
        name if copy == 0 else f"{name}-{copy}": (RECIPES | SUREST)[name]
        for copy in range(spec.copies)
        for name in spec.recipes
    }
    label = rng.integers(0, spec.classes, spec.n)
    rows, curves = [], []
    clean = {defence: _clean(rng, spec, label) for defence, _, _ in spec.models}
    for recipe, about in recipes.items():
        for defence, view, strength in spec.models:
            table = _attack(rng, spec, label, clean[defence], about, strength)
            table = table.with_columns(recipe=pl.lit(recipe), defence=pl.lit(defence), view=pl.lit(view))
            for chunk, part in enumerate((table[: spec.n // 2], table[spec.n // 2 :])):
                part.write_parquet(path / "samples" / f"{recipe}.{defence}.{view}.{chunk:05d}.parquet")
            names = {"recipe": recipe, "defence": defence, "view": view}
            rows.append(names | {"n": spec.n, "metrics": metrics(table, spec)})
            curves.append(_curve(table))
    if spec.curves:
        (path / "curves").mkdir()
        pl.concat(curves).write_parquet(path / "curves" / "all.parquet")
    if spec.gallery:
        _gallery(path, rng, spec)
    if spec.traces:
        (path / "traces").mkdir()
        for recipe, about in recipes.items():
            made = trace(spec, steps=about["whitebox"]).with_columns(recipe=pl.lit(recipe))
            made.write_parquet(path / "traces" / f"{recipe}.none.aware.00000.parquet")
    model = NASTY if spec.nasty else "builtin:digits"
    (path / "audit.toml").write_text(f'model = "{model}"\nseed = {spec.seed}\neps = 0.05\n')
    (path / "summary.json").write_text(json.dumps(summary(spec, recipes, rows)))
    return path


def _clean(rng: np.random.Generator, spec: Spec, label: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    right = rng.random(spec.n) < 0.95
    right[: min(2, spec.n)] = [False, True][: min(2, spec.n)]
    prediction = np.where(right, label, (label + 1) % spec.classes)
    confidence = np.where(right, rng.beta(14, 0.6, spec.n), rng.beta(4, 3, spec.n))
    return prediction, np.clip(confidence, 1 / spec.classes, 1)


def _attack(
    rng: np.random.Generator,
    spec: Spec,
    label: NDArray[Any],
    clean: tuple[NDArray[Any], NDArray[Any]],
    about: dict[str, Any],
    strength: float,
) -> pl.DataFrame:
    prediction, confidence = clean
    right = prediction == label
    after = prediction.copy()
    flipped = (rng.random(spec.n) < about.get("flips", 0.0) * strength) & right
    after[flipped] = (label[flipped] + 1) % spec.classes
    push = np.where(right, about["right"], -about["wrong"]) * strength * rng.beta(8, 2, spec.n)
    low = 1 / spec.classes
    moved = np.where(push > 0, confidence - push * (confidence - low), confidence - push * (1 - confidence))
    moved[:2] = [spec.threshold, np.nextafter(spec.threshold, 1)][: spec.n]  # at the threshold and just above
    return pl.DataFrame(
        {
            "id": np.arange(spec.n),
            "label": label,
            "prediction_before": prediction,
            "prediction_after": after,
            "confidence_before": confidence,
            "confidence_after": np.clip(moved, low, 1),
            "queries": np.minimum(rng.geometric(0.004, spec.n), BUDGET),
            "brier_before": np.abs(right - confidence),
            "brier_after": np.abs((after == label) - moved),
            "wrong_confidence": _wrong_confidence(after == label, np.clip(moved, low, 1), about),
        }
    )


def _wrong_confidence(right: NDArray[Any], confidence: NDArray[Any], about: dict[str, Any]) -> list[float | None]:
    """The confidence of wrong answers, half of what is left of right ones, for an attack that looks for it."""
    if not about.get("max_confidence", False):
        return [None] * len(right)
    return [float(c if not ok else (1 - c) / 2) for ok, c in zip(right, confidence, strict=True)]


def _curve(table: pl.DataFrame) -> pl.DataFrame:
    parts = []
    for queries in STEPS:
        share = np.log(queries) / np.log(STEPS[-1])
        mixed = (1 - share) * table["confidence_before"] + share * table["confidence_after"]
        shown = table["prediction_after"] if share == 1 else table["prediction_before"]
        part = table.select("recipe", "defence", "view", "id", "label")
        parts.append(part.with_columns(queries=pl.lit(queries), confidence=mixed, prediction=shown))
    return pl.concat(parts)


def trace(spec: Spec, *, steps: bool, images: int = 16, iterations: int = 40) -> pl.DataFrame:
    """A trace in which the margin of image i falls from 10 + i by 1 / 4 an iteration, and odd images end early."""
    rows = [
        {
            "id": image,
            "iteration": at,
            "queries": at + 1,
            "margin": 10.0 + image - at / 4,
            "confidence": 0.9 / (1 + at / 10),
            "loss": -float(at),
            "step": 0.05 / (1 + at // 8) if steps and at else None,
        }
        for image in range(images)
        for at in range(iterations // (1 + image % 2) + 1)
    ]
    return pl.DataFrame(rows, schema_overrides={"step": pl.Float64}).with_columns(
        defence=pl.lit("none"), view=pl.lit("aware")
    )


def ece(confidence: NDArray[Any], correct: NDArray[Any], bins: int = 15) -> float:
    """Expected calibration error with bins (lo, hi], written as a loop."""
    total = 0.0
    for k in range(bins):
        inside = (confidence > k / bins) & (confidence <= (k + 1) / bins)
        if inside.any():
            total += abs(correct[inside].mean() - confidence[inside].mean()) * inside.sum() / len(confidence)
    return total


def ks(confidence: NDArray[Any], correct: NDArray[Any]) -> float:
    """Kolmogorov-Smirnov calibration error."""
    order = np.argsort(confidence)
    return float(np.abs(np.cumsum(correct[order] - confidence[order])).max() / len(order))


def metrics(table: pl.DataFrame, spec: Spec) -> dict[str, dict[str, float | None]]:
    """The metrics of one attack; the intervals are made up."""
    found: dict[str, float | None] = {}
    label = table["label"].to_numpy()
    for when in ("before", "after"):
        confidence, correct = table[f"confidence_{when}"].to_numpy(), table[f"prediction_{when}"].to_numpy() == label
        accepted = confidence > spec.threshold
        found |= {
            f"accuracy_{when}": correct.mean(),
            f"ece_{when}": ece(confidence, correct),
            f"ks_{when}": ks(confidence, correct),
            f"brier_{when}": float(table[f"brier_{when}"].mean()),  # type: ignore[arg-type]
            f"confidence_{when}": confidence.mean(),
            f"confidence_right_{when}": confidence[correct].mean() if correct.any() else None,
            f"confidence_wrong_{when}": confidence[~correct].mean() if (~correct).any() else None,
            f"accepted_right_{when}": (accepted & correct).mean(),
            f"accepted_wrong_{when}": (accepted & ~correct).mean(),
            f"deferred_{when}": (~accepted).mean(),
        }
    queries = table["queries"].to_numpy()
    won = queries < BUDGET
    found |= {
        "bound_share": found["ece_after"] / (1 - found["accuracy_before"] / spec.classes),  # type: ignore[operator]
        "labels_changed": (table["prediction_before"] != table["prediction_after"]).to_numpy().mean(),
        "queries_mean_success": queries[won].mean() if won.any() else None,
        "queries_median_success": np.median(queries[won]) if won.any() else None,
        "queries_mean_all": queries.mean(),
    }
    plain = {name: None if number is None else float(number) for name, number in found.items()}
    return {
        name: {"value": number, "low": _around(number, -0.03), "high": _around(number, 0.03)}
        for name, number in plain.items()
    }


def _around(number: float | None, by: float) -> float | None:
    return None if number is None else max(number + by, 0.0)


def _gallery(path: Path, rng: np.random.Generator, spec: Spec) -> None:
    count = 12
    clean = rng.random((count, spec.channels, spec.side, spec.side), dtype=np.float32)
    clean = np.sort(clean, axis=3)
    change = rng.choice(np.array([-0.05, 0.05], np.float32), clean.shape)
    save_file({"clean": clean, "adversarial": np.clip(clean + change, 0, 1)}, path / "gallery.safetensors")
    down = np.arange(count) < count // 2
    pl.DataFrame(
        {
            "recipe": [spec.recipes[0]] * count,
            "defence": ["none"] * count,
            "direction": np.where(down, "down", "up"),
            "id": np.arange(count),
            "label": np.arange(count) % spec.classes,
            "prediction": (np.arange(count) + ~down) % spec.classes,
            "confidence_before": np.where(down, 0.99, 0.42),
            "confidence_after": np.where(down, 0.19, 0.97),
            "delta_w": np.full(count, 0.048),
            "ssim": np.full(count, 0.912),
        }
    ).write_parquet(path / "gallery.parquet")


def summary(spec: Spec, recipes: dict[str, dict[str, Any]], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The summary around the rows."""
    kept = ("summary", "paper", "whitebox", "keeps_label")
    names = [str(k) for k in range(spec.classes)]
    if spec.nasty:
        names[0], names[1] = NASTY, 'a "quoted" & <b>bold</b> class'
    model = NASTY if spec.nasty else "builtin:digits"
    accuracy = {row["defence"]: row["metrics"]["accuracy_before"]["value"] for row in rows}
    return {
        "poise": "0.1.0",
        "created": "2026-11-21T10:00:00Z",
        "seconds": 81.2,
        "command": f"poise audit --model '{model}' --data builtin:digits",
        "target": {
            "model": model,
            "description": "small CNN",
            "num_classes": spec.classes,
            "access": "gradients",
            "parameters": 12345,
        },
        "data": {
            "name": "builtin:digits",
            "samples": spec.n,
            "available": spec.n,
            "fit_samples": 200,
            "shape": [spec.channels, spec.side, spec.side],
            "class_names": names,
        },
        "spec": {"budget": BUDGET, "eps": 0.05, "norm": "linf", "seed": spec.seed, "device": "cpu"},
        "fingerprints": {"weights": "sha256:" + "0f" * 32, "data": "sha256:" + "a7" * 32, "spec": "3b" * 8},
        "versions": {"python": "3.11", "torch": "2.13.0", "poise": "0.1.0"},
        "threshold": spec.threshold,
        "costs": spec.costs,
        "bound": {name: 1 - number / spec.classes for name, number in accuracy.items()},
        "recipes": {
            name: {key: about[key] for key in kept} | {"max_confidence": about.get("max_confidence", False)}
            for name, about in recipes.items()
        },
        "rows": rows,
        "checks": [
            {"name": "labels kept", "status": "passed", "figure": "0 of 900 changed", "advice": ""},
            {
                "name": "black box stronger than white box",
                "status": "warned",
                "figure": "sa-mma reaches ECE 0.61, pgd-uca 0.55",
                "advice": "The white-box figure understates the risk: raise its steps or try --recipe pgd-mma.",
            },
            {"name": "curve flat at the budget", "status": "passed", "figure": "ECE +0.004 at the end", "advice": ""},
        ],
    }
