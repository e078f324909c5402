"""Points of pictures, features and certificates."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors.numpy import load

from poise import metrics
from poise.experiments.bench.plan import Cell
from poise.experiments.bench.points.common import MOST, complete, joined, keyed, thinned
from poise.experiments.bench.reduce import Reader, groups

Picture = NDArray[np.float32]

IMAGE = "image"
"""What the pixels of the image itself are called among the attacks."""


def perturbations(reader: Reader) -> pl.DataFrame:
    """What each attack adds to one image: row, column, value; the image itself as the attack "image", in grey.

    Martinez et al., Underconfidence Adversarial Training, Fig. 1. The image at the first of the figure's `samples`,
    first seed. `value` is the change with its sign, of colour images that of the channel that changes most; in a
    picture too large every k-th pixel is kept, since an average would hide the attack.
    """
    figure = reader.plan.spec.figure
    assert figure is not None
    found = [
        (group.cells[0], pair)
        for group in groups(reader.plan)
        if (pair := _pair(reader, group.cells[0], figure.samples[0]))
    ]
    if not found:
        return pl.DataFrame()
    owners: dict[tuple[str, str, str], tuple[Cell, Picture]] = {}
    for cell, (clean, _) in found:
        owners.setdefault(_owner(cell), (cell, clean))
    step = _stride(found[0][1][0].shape, MOST // (len(found) + len(owners)))
    frames = [keyed(_cells(clean.mean(axis=0), step), cell, attack=IMAGE) for cell, clean in owners.values()]
    frames += [keyed(_cells(_signed(*pair), step), cell) for cell, pair in found]
    return joined(frames)


def _owner(cell: Cell) -> tuple[str, str, str]:
    keys = cell.keys
    return keys["dataset"], keys["model"], keys["defence"]


def _pair(reader: Reader, cell: Cell, place: int) -> tuple[Picture, Picture] | None:
    """The image (C, H, W) at a place of a cell, before and after; None where it is not there."""
    for shard in cell.shards:
        content = reader.content(shard, "images.safetensors")
        if content is None:
            continue
        images = load(content)
        if place < len(images["clean"]):
            return images["clean"][place], images["images"][place]
        place -= len(images["clean"])
    return None


def _signed(clean: Picture, attacked: Picture) -> Picture:
    """The change (H, W), in each pixel that of the channel that changes most."""
    change = attacked - clean
    found: Picture = np.take_along_axis(change, np.abs(change).argmax(axis=0, keepdims=True), axis=0)[0]
    return found


def _stride(shape: tuple[int, ...], most: int) -> int:
    """Every how many-th pixel is kept so that no more than `most` are."""
    step = 1
    while -(-shape[-2] // step) * -(-shape[-1] // step) > most:
        step += 1
    return step


def _cells(values: Picture, step: int) -> pl.DataFrame:
    kept = values[::step, ::step].astype(np.float64)
    row, column = np.indices(kept.shape)
    return pl.DataFrame({"row": row.ravel(), "column": column.ravel(), "value": kept.ravel()})


def cams(reader: Reader) -> pl.DataFrame:
    """Grad-CAM maps of the chosen images: attack ("image", "none", or its name), id, label, prediction, confidence,
    row, column, value (task `explain`); Obadinma et al., Calibration Attacks, Fig. 3. First seed."""
    return joined([keyed(points[0], group.cells[0]) for group, points in complete(reader, "points.parquet")])


def embedding(reader: Reader) -> pl.DataFrame:
    """Features in two dimensions before and after each attack: attack, id, label, prediction, confidence, first, second
    (task `explain`); Obadinma et al., Calibration Attacks, Fig. 5.

    First seed; where all images would be too many rows, every k-th of them, the same in every version.
    """
    found = [(group.cells[0], points[0]) for group, points in complete(reader, "points.parquet")]
    frames = []
    for cell, points in found:
        ids = points["id"].unique(maintain_order=True)
        versions = points["attack"].n_unique()
        kept = ids[thinned(len(ids), MOST // (versions * len(found)))]
        part = points.filter(pl.col("id").is_in(kept.to_list())).rename({"x": "first", "y": "second"})
        frames.append(keyed(part, cell))
    return joined(frames)


def bounds(reader: Reader) -> pl.DataFrame:
    """Certified bounds of the smoothed confidence at each radius, means over the images of all seeds: radius, lower,
    lower_low, lower_high (95 % of the mean), upper, smoothed, n (task `certify`).

    Obadinma et al., Calibration Attacks, Fig. 7.
    """
    frames = []
    plan = metrics.Bootstrap(resamples=reader.plan.profile.bootstrap, seed=0)
    for group, found in complete(reader, "points.parquet"):
        rows = []
        for (radius,), part in pl.concat(found).partition_by("radius", as_dict=True).items():
            lower = plan.interval(metrics.mean, part["lower"].to_numpy())
            limits = {"lower": lower.value, "lower_low": lower.low, "lower_high": lower.high}
            means = {name: float(part[name].to_numpy().mean()) for name in ("upper", "smoothed")}
            rows.append({"radius": radius, **limits, **means, "n": len(part)})
        frames.append(keyed(pl.DataFrame(rows).sort("radius"), group.cells[0]))
    return joined(frames)
