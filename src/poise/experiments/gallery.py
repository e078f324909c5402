"""The cases whose confidence moved most, down and up, with their images: what the report shows as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import torch

from poise.experiments import files
from poise.experiments.run_folder import RunFolder

if TYPE_CHECKING:
    from poise.experiments.prepare import Prepared

SHOWN = 6
"""Cases per direction."""

SMALLEST = 0.01
"""A confidence that moved less is not worth a picture."""


def write_gallery(prepared: Prepared, folder: RunFolder) -> None:
    """Writes gallery.parquet and gallery.safetensors: per direction the samples that moved most, each once."""
    chosen = pl.concat([_most_moved(prepared, folder, direction) for direction in ("down", "up")])
    if not len(chosen):
        return
    clean, adversarial = [], []
    size = prepared.spec.batch_size
    position = {int(name): row for row, name in enumerate(prepared.attacked.ids)}
    for case in chosen.iter_rows(named=True):
        row = position[case["id"]]
        stored = folder.images(case["recipe"], "none", row // size)
        adversarial.append(stored["images"][row % size].float())
        clean.append(prepared.attacked[row : row + 1].images[0].float())
    files.write_tensors(
        folder.root / "gallery.safetensors", {"clean": torch.stack(clean), "adversarial": torch.stack(adversarial)}
    )
    files.write_parquet(folder.root / "gallery.parquet", chosen)


def _most_moved(prepared: Prepared, folder: RunFolder, direction: str) -> pl.DataFrame:
    sign = -1 if direction == "down" else 1
    rows = pl.concat([folder.rows(recipe, "none", "aware") for recipe in prepared.spec.recipes])
    moved = rows.with_columns(
        ((pl.col("confidence_after") - pl.col("confidence_before")) * sign).alias("moved"),
        pl.lit(direction).alias("direction"),
        pl.col("prediction_before").alias("prediction"),
    ).filter((pl.col("moved") > SMALLEST) & (pl.col("prediction_after") == pl.col("prediction_before")))
    best = moved.sort("moved", descending=True, maintain_order=True).unique("id", keep="first", maintain_order=True)
    wanted = ("recipe", "defence", "direction", "id", "label", "prediction", "confidence_before", "confidence_after")
    return best.head(SHOWN).select(*wanted, "delta_w", "ssim")
