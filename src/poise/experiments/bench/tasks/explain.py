"""Inside the model before and after attacks: Grad-CAM maps (Obadinma et al., Calibration Attacks, Fig. 3) and features
in two dimensions (Fig. 5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from poise import metrics
from poise.errors import InputError, one_of
from poise.experiments.bench.plan import Plain, Shard
from poise.experiments.bench.tasks import measured, packing
from poise.experiments.bench.tasks.attack import faced, run
from poise.experiments.bench.workbench import Inputs, Workbench
from poise.experiments.explain_cams import cams, check_installed, map_layer
from poise.experiments.explain_features import embed, features
from poise.experiments.served import as_logits
from poise.targets import ModuleTarget

CLEAN, IMAGE = "none", "image"
"""What the images without an attack, and the pixels of them, are called among the attacks."""

SIDE = 20
"""Pixels of a map's side in points.parquet, where the options name no other and the map is larger."""

MAP_SCHEMA = {
    "attack": pl.String, "id": pl.Int64, "label": pl.Int64, "prediction": pl.Int64, "confidence": pl.Float64,
    "row": pl.Int64, "column": pl.Int64, "value": pl.Float64,
}  # fmt: skip
"""Columns of the maps' points, one row per place; `attack` is "image" for the clean image's grey pixels, "none" for its
map, else the attack's name."""

EMBEDDING_SCHEMA = {
    "attack": pl.String, "id": pl.Int64, "label": pl.Int64, "prediction": pl.Int64, "confidence": pl.Float64,
    "x": pl.Float64, "y": pl.Float64,
}  # fmt: skip
"""Columns of the features' points, one row per version ("none" or the attack's name) and image."""


@dataclass(frozen=True)
class _Versions:
    """The images of a cell before ("none") and after each attack.

    Args:
        target: the bare model. images: by version. labels, ids: of the images. attacks: settings by name.
    """

    target: ModuleTarget
    images: dict[str, Tensor]
    labels: Tensor
    ids: Tensor
    attacks: dict[str, Plain]

    def ready(self, images: Tensor) -> Tensor:
        """The images where and as the model takes them."""
        return images.to(self.target.device, self.target.dtype)


def explain(bench: Workbench, shard: Shard, inputs: Inputs) -> dict[str, bytes]:
    """points.parquet and metrics.parquet of what the option `what` names.

    "cams": Grad-CAM of the predicted class; metrics `cam_pearson`, `cam_ssim`, `cam_overlap` of each attack over all
    images; points of the images at the places `images` ([0]), maps averaged down to `side` (20) pixels a side.
    "embedding": the last linear layer's features, all versions in one t-SNE (`method = "pca"`: principal components);
    metric `separation`, the mean silhouette of the predicted classes in all dimensions.
    """
    settings, what = shard.settings, shard.settings["options"].get("what", "cams")
    if what not in WHAT:
        raise one_of("explain: what", str(what), list(WHAT))
    if not settings.get("attacks"):
        raise InputError("explain: needs at least one attack, got none")
    points, rows = WHAT[what](_versions(bench, shard, inputs), settings)
    return {"points.parquet": packing.table(points), "metrics.parquet": packing.table(measured.table(rows))}


def _versions(bench: Workbench, shard: Shard, inputs: Inputs) -> _Versions:
    bare = bench.model(shard, inputs)
    if not isinstance(bare, ModuleTarget):
        raise InputError(f"explain: the model must be a PyTorch module, got a {type(bare).__name__}")
    target, part = bench.defended(shard, bare, inputs), bench.part(shard, bare)
    images, labels, ids = next(iter(part.batches(max(len(part), 1))))
    attacks = {one["name"]: measured.of_attack(shard.settings, one) for one in shard.settings["attacks"]}
    found = {CLEAN: images}
    for name, settings in attacks.items():
        found[name] = run(faced(settings, bare, target), settings, images, labels, ids).images
    return _Versions(bare, found, labels, ids, attacks)


def _answers(versions: _Versions, images: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Predictions and confidences of the bare model."""
    with versions.target.session(0):
        answer = versions.target.query(versions.ready(images), versions.ids.to(versions.target.device))
    return answer.labels.cpu().numpy(), answer.confidence.double().cpu().numpy()


def _cams(versions: _Versions, settings: Plain) -> tuple[pl.DataFrame, list[measured.Row]]:
    check_installed()
    options, target = settings["options"], versions.target
    places, side = [int(place) for place in options.get("images", [0])], int(options.get("side", SIDE))
    count = len(versions.ids)
    if any(not 0 <= place < count for place in places) or not places:
        raise InputError(f"explain: images must be places in 0..{count - 1}, got {places}")
    model, maps = as_logits(target), {}
    with target.session(settings["seed"]):
        layer = map_layer(model, versions.ready(versions.images[CLEAN][:2]))
        if layer is None:
            raise InputError("explain: no layer of the model has places (no convolution, no patch tokens)")
        for name, images in versions.images.items():
            parts = torch.split(images, target.batch_size)
            maps[name] = np.concatenate([cams(model, layer, versions.ready(part)) for part in parts])
    grey = versions.images[CLEAN].float().mean(dim=1).numpy()
    drawn = {IMAGE: (grey, versions.images[CLEAN])}
    drawn |= {name: (found, versions.images[name]) for name, found in maps.items()}
    points = pl.concat([_map_points(versions, name, *pair, places, side) for name, pair in drawn.items()])
    rows = []
    for name, one in versions.attacks.items():
        before, after = maps[CLEAN], maps[name]
        similar = {
            "cam_pearson": metrics.map_correlation(before, after),
            "cam_ssim": metrics.ssim(before[:, None], after[:, None]),
            "cam_overlap": metrics.map_overlap(before, after),
        }
        keys = measured.threat(one)
        rows += [keys | {"metric": metric, **measured.mean(values)} for metric, values in similar.items()]
    return points, rows


def _map_points(
    versions: _Versions, name: str, maps: NDArray[np.float32], images: Tensor, places: list[int], side: int
) -> pl.DataFrame:
    predictions, confidence = _answers(versions, images)
    frames = []
    for place in places:
        small = _smaller(maps[place], side)
        row, column = np.indices(small.shape)
        values = {"row": row.ravel(), "column": column.ravel(), "value": small.ravel()}
        about = {
            "attack": name,
            "id": int(versions.ids[place]),
            "label": int(versions.labels[place]),
            "prediction": int(predictions[place]),
            "confidence": float(confidence[place]),
        }
        frames.append(pl.DataFrame(values).with_columns(**{key: pl.lit(value) for key, value in about.items()}))
    return pl.concat(frames).select(pl.col(key).cast(kind) for key, kind in MAP_SCHEMA.items())


def _smaller(values: NDArray[np.float32], side: int) -> NDArray[np.float64]:
    """A map (H, W) averaged down so that no side is longer than `side`."""
    shape = tuple(min(length, side) for length in values.shape)
    if shape == values.shape:
        return values.astype(np.float64)
    found: Tensor = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(values).double()[None], shape)[0]
    return found.numpy()


def _embedding(versions: _Versions, settings: Plain) -> tuple[pl.DataFrame, list[measured.Row]]:
    target, method = versions.target, settings["options"].get("method", "tsne")
    if method not in ("tsne", "pca"):
        raise one_of("explain: method", str(method), ["tsne", "pca"])
    found, predicted, sure = {}, {}, {}
    with target.session(settings["seed"]):
        for name, images in versions.images.items():
            _, found[name], logits = features(as_logits(target), versions.ready(images), batch_size=target.batch_size)
            top = logits.double().softmax(dim=1).max(dim=1)
            predicted[name], sure[name] = top.indices.numpy(), top.values.numpy()
    flat = embed(found, predicted, seed=settings["seed"])
    at = flat.tsne if method == "tsne" else flat.pca
    frames, rows = [], []
    for name, places in at.items():
        columns = {"prediction": predicted[name], "confidence": sure[name], "x": places[:, 0], "y": places[:, 1]}
        about = {"id": versions.ids.numpy(), "label": versions.labels.numpy()}
        frames.append(pl.DataFrame({**about, **columns}).with_columns(pl.lit(name).alias("attack")))
        keys: dict[str, Any] = {"attack": CLEAN, "norm": None, "eps": None, "queries": None}
        if name != CLEAN:
            keys = measured.threat(versions.attacks[name])
        apart = {"value": flat.separation[name], "low": None, "high": None, "n": len(places)}
        rows.append(keys | {"metric": "separation", **apart})
    points = pl.concat(frames).select(pl.col(key).cast(kind) for key, kind in EMBEDDING_SCHEMA.items())
    return points, rows


WHAT: dict[str, Callable[[_Versions, Plain], tuple[pl.DataFrame, list[measured.Row]]]] = {
    "cams": _cams,
    "embedding": _embedding,
}
"""What can be explained, by the option `what`."""
