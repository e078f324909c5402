"""Reads what `poise audit --explain` left in a run folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from poise.errors import RunError, brief
from poise.table import read_parquet

Images = NDArray[np.float32]
CLEAN = "clean"

COLUMNS = {
    "pictures": (
        *("recipe", "id", "label", "prediction_before", "prediction_after", "confidence_before", "confidence_after"),
        *("delta_w", "ssim"),
    ),
    "scores": ("defence", "id", "probability", "right"),
    "cams": ("recipe", "id", "pearson", "ssim", "overlap"),
    "features": ("version", "id", "label", "prediction", "confidence", "tsne_x", "tsne_y", "pca_x", "pca_y"),
}
ALWAYS = ("pictures", "scores")
"""Tables that every explained run holds; the others need a look inside the model."""


@dataclass(frozen=True)
class Explanation:
    """What the attacks did, as `explain/` holds it.

    Args:
        facts: `explain.json`: where Grad-CAM and features were read, how many images, the lines of what was left out.
        pictures: rows of the images of which pictures are shown, under each recipe, in the order of the images.
        images: "clean" and "attacked.RECIPE" (g, C, H, W) in [0, 1]; "cam" and "cam.RECIPE" (g, H, W) in [0, 1] where
            there are maps.
        scores: every defence's answers to the clean images.
        cams: similarity of the Grad-CAM maps before and after, one row an image and recipe; None where there are none.
        features: places of the features in two dimensions, one row an image and version; None where there are none.
    """

    facts: dict[str, Any]
    pictures: pl.DataFrame
    images: dict[str, Images]
    scores: pl.DataFrame
    cams: pl.DataFrame | None = None
    features: pl.DataFrame | None = None

    @property
    def recipes(self) -> list[str]:
        """The attacks, in the order of the run."""
        return self.pictures["recipe"].unique(maintain_order=True).to_list()

    @property
    def notes(self) -> list[str]:
        """A line for everything that was left out."""
        return [str(line) for line in self.facts.get("notes", [])]


def read_explanation(run: Path) -> Explanation | None:
    """The explanations of a run folder; None where it holds none.

    Raises:
        RunError: a file is missing or damaged, or lacks a column.
    """
    home = Path(run) / "explain"
    if not (home / "explain.json").is_file():
        return None
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        facts = json.loads((home / "explain.json").read_text(encoding="utf-8"))
        tables = {name: read_parquet(path) for name in COLUMNS if (path := home / f"{name}.parquet").is_file()}
        images = {name: part.astype(np.float32) for name, part in load_file(home / "pictures.safetensors").items()}
    except (OSError, ValueError, RecursionError, SafetensorError, pl.exceptions.PolarsError) as error:
        raise RunError(f"report: the explanations of {run} must be readable, got: {brief(error)}") from None
    if not isinstance(facts, dict):
        raise RunError(f"report: {home / 'explain.json'} must hold an object, got another value")
    _check(home, tables, images)
    return Explanation(
        facts=facts,
        pictures=tables["pictures"],
        images=images,
        scores=tables["scores"],
        cams=tables.get("cams"),
        features=tables.get("features"),
    )


def _check(home: Path, tables: dict[str, pl.DataFrame], images: dict[str, Images]) -> None:
    """Checks that the tables have their columns, and that there is a picture for every row."""
    for name in (*ALWAYS, *(name for name in tables if name not in ALWAYS)):
        missing = COLUMNS[name] if name not in tables else [c for c in COLUMNS[name] if c not in tables[name].columns]
        if missing:
            raise RunError(
                f"report: {home / name}.parquet must have the columns {', '.join(missing)}, got none of them"
            )
    recipes = tables["pictures"]["recipe"].unique(maintain_order=True).to_list()
    shown = tables["pictures"].height // max(len(recipes), 1)
    for name in ("clean", *(f"attacked.{recipe}" for recipe in recipes)):
        if name not in images or images[name].ndim != 4 or len(images[name]) != shown:
            given = images[name].shape if name in images else "none"
            raise RunError(f"report: {home}/pictures.safetensors must hold {shown} images '{name}', got {given}")
