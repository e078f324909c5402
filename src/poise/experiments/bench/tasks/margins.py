"""Margins of every query of an attack, as the attacker sees them and as they are without the defence.

Chen et al., Adversarial Attack on Attackers, Figs. 2, 6 and 7.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import polars as pl
import torch
from torch import Tensor

from poise.errors import InputError
from poise.experiments.bench.plan import Shard
from poise.experiments.bench.tasks import measured, packing
from poise.experiments.bench.tasks.attack import faced, run
from poise.experiments.bench.workbench import Inputs, Workbench
from poise.objectives.base import logit_margin
from poise.targets import Target
from poise.targets.in_front import InFront
from poise.types import Outputs

SCHEMA = {"id": pl.Int64, "queries": pl.Int64, "seen": pl.Float64, "bare": pl.Float64}
"""Columns of points.parquet, one row per query: margin z_y - max z_j (j != y) of the true class y behind the defence
(`seen`) and without it (`bare`), in logits; an attacker drives it down, below 0 the answer is wrong."""


class _Watched(InFront):
    """A target whose every answer is kept as two margins; gives scores alone.

    Args:
        target: answers the attacker. seen, bare: whose margins are kept; where one of them is the target itself it is
            not asked twice.
        labels: true class by id.
    """

    def __init__(self, target: Target, seen: Target, bare: Target, labels: dict[int, int]) -> None:
        super().__init__(target)
        self._watched, self._labels = (seen, bare), labels
        self.margins: dict[int, list[tuple[float, float]]] = defaultdict(list)

    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        answer = self.target.query(x, ids)
        truth = torch.tensor([self._labels[name] for name in ids.tolist()], device=answer.scores.device)
        found = []
        for one in self._watched:
            outputs = answer if one is self.target else one.query(x, ids)
            found.append(logit_margin(outputs, truth.to(outputs.scores.device)).double().cpu().tolist())
        for name, *both in zip(ids.tolist(), *found, strict=True):
            self.margins[name].append((both[0], both[1]))
        return answer


def margins(bench: Workbench, shard: Shard, inputs: Inputs) -> dict[str, bytes]:
    """points.parquet, and metrics.parquet with `opposite_steps`.

    Options: `images`, how many of the cell's images, from the first (1). The attack needs scores alone and runs until
    its budget or goal; `against = "bare"` attacks the undefended model, as the figures do, and `seen` is then what the
    defence would have answered to the same queries. `opposite_steps`: share of the queries that move the bare margin
    whose defended margin moves the other way.
    """
    settings = shard.settings
    if settings.get("attack") is None:
        raise InputError("margins: needs an attack, got none")
    bare = bench.model(shard, inputs)
    target = bench.defended(shard, bare, inputs)
    part = bench.part(shard, bare)[: max(int(settings["options"].get("images", 1)) - shard.start, 0)]
    if len(part) == 0:
        return {"points.parquet": packing.table(pl.DataFrame(schema=SCHEMA))}
    images, labels, ids = next(iter(part.batches(len(part))))
    watched = _Watched(
        faced(settings, bare, target), target, bare, dict(zip(ids.tolist(), labels.tolist(), strict=True))
    )
    run(watched, settings, images, labels, ids)
    points = _points(watched, ids.tolist())
    return {"points.parquet": packing.table(points), "metrics.parquet": packing.table(_metrics(points))}


def _points(watched: _Watched, ids: list[int]) -> pl.DataFrame:
    frames = []
    for name in ids:
        seen, bare = zip(*watched.margins[name], strict=True)
        columns = {"queries": range(1, len(seen) + 1), "seen": seen, "bare": bare}
        frames.append(pl.DataFrame(columns).with_columns(pl.lit(name).alias("id")))
    return pl.concat(frames).select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())


def _metrics(points: pl.DataFrame) -> pl.DataFrame:
    shares = []
    for part in points.partition_by("id", maintain_order=True):
        seen, bare = np.diff(part["seen"].to_numpy()), np.diff(part["bare"].to_numpy())
        moved = bare != 0
        shares.append(float((seen * bare < 0)[moved].mean()) if moved.any() else float("nan"))
    return measured.table([{"metric": "opposite_steps", **measured.mean(shares)}])
