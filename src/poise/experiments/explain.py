"""`--explain`: what the attacks do inside the model, as small tables and arrays in the run folder's `explain/`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from poise import metrics
from poise.errors import PoiseError, brief
from poise.experiments import files
from poise.experiments.explain_cams import MapLayer, cams, map_layer
from poise.experiments.explain_features import embed, features
from poise.experiments.explain_pictures import attacked, chosen, pictures, scores
from poise.experiments.run_folder import RunFolder
from poise.experiments.served import as_logits
from poise.targets import ModuleTarget

if TYPE_CHECKING:
    from poise.experiments.prepare import Prepared

CAM_IMAGES, FEATURE_IMAGES = 500, 200
"""Images, from the first, whose maps are compared and whose features are embedded (200 in the paper's Fig. 5)."""

CLEAN = "clean"
Maps = NDArray[np.float32]


@dataclass
class _Explained:
    """What has been found so far: tables and arrays by file name, facts, and a line for what was left out."""

    tables: dict[str, pl.DataFrame] = field(default_factory=dict)
    images: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def store_explanations(prepared: Prepared, folder: RunFolder, note: Callable[[str], None]) -> None:
    """Explains a run whose attacks are complete, where it is asked for and the run folder does not hold it yet.

    Writes pictures.parquet and pictures.safetensors (the images that moved most), scores.parquet (clean answers of
    every defence), cams.parquet (Grad-CAM similarity per image and recipe), features.parquet (t-SNE and principal
    components) and, last, explain.json. What cannot be made is told in one line there and through `note`.
    """
    home = folder.root / "explain"
    if not prepared.spec.explain or (home / "explain.json").exists():
        return
    found = _Explained()
    places = chosen(prepared, folder, CAM_IMAGES)
    found.tables["pictures"], found.images = pictures(prepared, folder, places)
    found.tables["scores"] = scores(prepared, folder)
    model = prepared.loaded.model
    if isinstance(model, ModuleTarget) and not prepared.loaded.paid:
        with model.session(prepared.spec.seed):
            _inside(prepared, folder, model, places, found)
    else:
        found.notes.append("Grad-CAM and features: left out, they need a PyTorch module that is not journaled")
    for name, table in found.tables.items():
        files.write_parquet(home / f"{name}.parquet", table)
    files.write_tensors(home / "pictures.safetensors", found.images)
    files.write_json(home / "explain.json", found.facts | {"notes": found.notes})
    for line in found.notes:
        note(f"explain: {line}")


def _inside(prepared: Prepared, folder: RunFolder, target: ModuleTarget, places: list[int], found: _Explained) -> None:
    """Grad-CAM and features, each of which may fail without the other."""
    model = as_logits(target)
    for name, part in (("Grad-CAM", _cams), ("features", _features)):
        try:
            part(prepared, folder, target, model, places, found)
        except (PoiseError, ValueError, RuntimeError, TypeError, IndexError) as error:  # the model is the user's
            found.notes.append(f"{name}: left out, {brief(error)}")


def _cams(
    prepared: Prepared, folder: RunFolder, target: ModuleTarget, model: nn.Module, places: list[int], found: _Explained
) -> None:
    first = prepared.attacked[:2].images
    layer = map_layer(model, first.to(target.device, target.dtype))
    if layer is None:
        found.notes.append("Grad-CAM: left out, no layer of the model has places (no convolution, no patch tokens)")
        return
    count, size = min(CAM_IMAGES, len(prepared.attacked)), prepared.spec.batch_size
    before = _all_cams(target, model, layer, prepared.attacked[:count].images)
    ids, rows = prepared.attacked.ids[:count].numpy(), []
    found.images["cam"] = torch.from_numpy(before[places])
    for recipe in prepared.spec.recipes:
        chunks = [folder.images(recipe, "none", number)["images"] for number in range(-(-count // size))]
        after = _all_cams(target, model, layer, torch.cat(chunks)[:count])
        found.images[f"cam.{recipe}"] = torch.from_numpy(after[places])
        similar = {
            "pearson": metrics.map_correlation(before, after),
            "ssim": metrics.ssim(before[:, None], after[:, None]),
            "overlap": metrics.map_overlap(before, after),
        }
        table = pl.DataFrame({"id": ids, **similar}).with_columns(pl.col(tuple(similar)).fill_nan(None))
        rows.append(table.select(pl.lit(recipe).alias("recipe"), "id", *similar))
    found.tables["cams"] = pl.concat(rows)
    found.facts |= {"layer": layer.name, "layer_kind": layer.kind, "cam_images": count}


def _all_cams(target: ModuleTarget, model: nn.Module, layer: MapLayer, images: Tensor) -> Maps:
    parts = torch.split(images, target.batch_size)
    return np.concatenate([cams(model, layer, part.to(target.device, target.dtype)) for part in parts])


def _features(
    prepared: Prepared, folder: RunFolder, target: ModuleTarget, model: nn.Module, places: list[int], found: _Explained
) -> None:
    part = prepared.attacked[:FEATURE_IMAGES]
    rows = list(range(len(part)))
    versions = {CLEAN: part.images}
    versions |= {recipe: attacked(prepared, folder, recipe, rows) for recipe in prepared.spec.recipes}
    points, predicted, tables, layer = {}, {}, {}, ""
    for name, images in versions.items():
        ready = images.to(target.device, target.dtype)
        layer, points[name], logits = features(model, ready, batch_size=target.batch_size)
        top = logits.double().softmax(dim=1).max(dim=1)
        predicted[name] = top.indices.numpy()
        tables[name] = pl.DataFrame(
            {
                "version": [name] * len(part),
                "id": part.ids.numpy(),
                "label": part.labels.numpy(),
                "prediction": top.indices.numpy(),
                "confidence": top.values.numpy(),
            }
        )
    flat = embed(points, predicted, seed=prepared.spec.seed)
    found.tables["features"] = pl.concat([_placed(tables[name], flat.tsne[name], flat.pca[name]) for name in versions])
    found.facts |= {
        "feature_layer": layer,
        "features": int(points[CLEAN].shape[1]),
        "feature_images": len(part),
        "variance": list(flat.variance),
        "perplexity": flat.perplexity,
        "separation": flat.separation,
    }


def _placed(table: pl.DataFrame, tsne: NDArray[np.float64], pca: NDArray[np.float64]) -> pl.DataFrame:
    return table.with_columns(
        pl.Series("tsne_x", tsne[:, 0]),
        pl.Series("tsne_y", tsne[:, 1]),
        pl.Series("pca_x", pca[:, 0]),
        pl.Series("pca_y", pca[:, 1]),
    )
