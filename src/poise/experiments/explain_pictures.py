"""What explanations are shown of: the images that the attacks moved most, and every defence's clean answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch
from torch import Tensor

from poise.experiments.run_folder import RunFolder

if TYPE_CHECKING:
    from poise.experiments.prepare import Prepared

SHOWN = 4
"""Images of which pictures are shown."""

PICTURE = (
    *("recipe", "id", "label", "prediction_before", "prediction_after", "confidence_before", "confidence_after"),
    *("delta_w", "ssim"),
)


def chosen(prepared: Prepared, folder: RunFolder, among: int) -> list[int]:
    """Places, ascending, of the images that some recipe moved most on the bare model, among the first `among`."""
    tables = [folder.rows(recipe, "none", "aware") for recipe in prepared.spec.recipes]
    moved = pl.concat([table.select("id", _moved()) for table in tables]).group_by("id").agg(pl.col("moved").max())
    place = {int(name): row for row, name in enumerate(prepared.attacked.ids[:among])}
    inside = moved.filter(pl.col("id").is_in(list(place))).sort(["moved", "id"], descending=[True, False])
    return sorted(place[name] for name in inside["id"].head(SHOWN).to_list())


def _moved() -> pl.Expr:
    return (pl.col("confidence_after") - pl.col("confidence_before")).abs().alias("moved")


def attacked(prepared: Prepared, folder: RunFolder, recipe: str, places: list[int]) -> Tensor:
    """Images (g, C, H, W) at these places as a recipe has attacked them on the bare model."""
    size = prepared.spec.batch_size
    chunks = {number: folder.images(recipe, "none", number)["images"] for number in {row // size for row in places}}
    return torch.stack([chunks[row // size][row % size] for row in places])


def pictures(prepared: Prepared, folder: RunFolder, places: list[int]) -> tuple[pl.DataFrame, dict[str, Tensor]]:
    """Rows of the chosen images under each recipe, and the images: "clean" and "attacked.RECIPE", (g, C, H, W)."""
    names = [int(prepared.attacked.ids[row]) for row in places]
    order = pl.DataFrame({"id": names})
    rows, images = [], {"clean": torch.stack([prepared.attacked[row : row + 1].images[0] for row in places])}
    for recipe in prepared.spec.recipes:
        table = folder.rows(recipe, "none", "aware").select(PICTURE)
        rows.append(order.join(table, on="id", how="left", maintain_order="left").select(PICTURE))
        images[f"attacked.{recipe}"] = attacked(prepared, folder, recipe, places)
    return pl.concat(rows), {name: part.float() for name, part in images.items()}


def scores(prepared: Prepared, folder: RunFolder) -> pl.DataFrame:
    """Every defence's answers to the clean images: defence, id, probability of the true class, and whether right.

    Chen et al., Adversarial Attack on Attackers, Fig. 3, is drawn from them. A probability below 1e-12 is 1e-12.
    """
    parts = []
    for defence in prepared.spec.defences:
        rows = folder.rows(prepared.spec.recipes[0], defence, "aware")
        right = (rows["prediction_before"] == rows["label"]).cast(pl.Int64)
        probability = np.exp(-rows["nll_before"].cast(pl.Float64).to_numpy())
        parts.append(
            pl.DataFrame({"id": rows["id"], "probability": probability, "right": right}).select(
                pl.lit(defence).alias("defence"), "id", "probability", "right"
            )
        )
    return pl.concat(parts)
