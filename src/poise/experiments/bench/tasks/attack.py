"""One attack on some images of one victim behind one defence: rows, and what else the spec keeps."""

from __future__ import annotations

import dataclasses
import time

import polars as pl
import torch
from torch import Tensor

from poise import table as tables
from poise.attacks import Watch
from poise.constraints import Box
from poise.constraints.eight_bit import EightBit
from poise.data import Dataset
from poise.experiments.bench.plan import Plain, Shard
from poise.experiments.bench.spec import PLAIN
from poise.experiments.bench.tasks import packing
from poise.experiments.bench.workbench import Inputs, Workbench
from poise.experiments.rows import answered_by, asked, similarity, with_scores
from poise.objectives import KeepLabel, Moved, ThroughTemperature
from poise.recipebook import Recipe, Setting, ball
from poise.recipebook import recipe as recipe_named
from poise.targets import ModuleTarget, Target
from poise.types import AttackResult

TIMED = 5
"""Passes of which the median is the time of one, where costs are asked for."""


def attack(bench: Workbench, shard: Shard, inputs: Inputs) -> dict[str, bytes]:
    """Rows of the images, the curve over queries, traces and images where they are kept."""
    settings = shard.settings
    bare = bench.model(shard, inputs)
    target = bench.defended(shard, bare, inputs)
    part = bench.part(shard, bare)
    if len(part) == 0:
        return {"rows.parquet": packing.table(_nothing())}
    images, labels, ids = next(iter(part.batches(len(part))))
    attacked = faced(settings, bare, target)
    result = run(attacked, settings, images, labels, ids)
    similar = similarity(images, result.images)
    if attacked is not target:
        clean, after = asked(target, (images, result.images), result.table["id"])
        result = answered_by(result, clean, after)
    found = {"rows.parquet": packing.table(with_scores(result, labels, target.kind, similar))}
    if settings["checkpoints"] or "curve" in settings["keep"]:
        curve = result.curve.join(result.table.select("id", "label"), on="id")
        found["curve.parquet"] = packing.table(curve)
    if "trace" in settings["keep"]:
        found["trace.parquet"] = packing.table(result.trace)
    if "images" in settings["keep"]:
        found["images.safetensors"] = packing.tensors(ids=ids, clean=images, images=result.images, labels=labels)
    if settings["options"].get("costs"):
        found["costs.parquet"] = packing.table(costs(target, part, settings["batch_size"]))
    return found


def faced(settings: Plain, bare: Target, defended: Target) -> Target:
    """The model that the attack of the settings searches on."""
    return bare if settings["attack"]["against"] == "bare" else defended


def _nothing() -> pl.DataFrame:
    """The rows of no image."""
    more = ("brier_before", "nll_before", "brier_after", "nll_after", "delta_w", "ssim")
    return tables.joined([], tables.SCHEMA).with_columns(pl.lit(None, pl.Float64).alias(name) for name in more)


def run(target: Target, settings: Plain, images: Tensor, labels: Tensor, ids: Tensor) -> AttackResult:
    """The attack that the settings name."""
    recipe = changed(settings["attack"])
    constraint = ball(settings["norm"], settings["eps"])
    if settings["eight_bit"]:
        constraint = EightBit(constraint, box=Box(*target.bounds))
    setting = Setting(constraint, settings["budget"], settings["steps"])
    watch = Watch(checkpoints=tuple(settings["checkpoints"]), trace="trace" in settings["keep"])
    return recipe.run(target, images, labels, setting, ids=ids, seed=settings["seed"], watch=watch)


def changed(wanted: Plain) -> Recipe:
    """The recipe with another objective, through another temperature, or with an earlier end."""
    found = recipe_named(wanted["recipe"])
    objective = found.objective
    if wanted["objective"] is not None:
        objective = PLAIN[wanted["objective"]]
    if wanted["moves"] is not None:
        inner = objective.objective if isinstance(objective, KeepLabel) else objective
        objective = KeepLabel(Moved(inner, wanted["moves"]))
    if wanted["through"] is not None:
        objective = ThroughTemperature(objective, wanted["through"])
    return found if objective is found.objective else dataclasses.replace(found, objective=objective)


def costs(target: Target, part: Dataset, batch_size: int) -> pl.DataFrame:
    """Milliseconds and floating-point operations (multiply and add count as two) of one image's answer."""
    from torch.utils.flop_counter import FlopCounterMode

    images, _, ids = next(iter(part.batches(min(batch_size, len(part)))))
    images, ids = images.to(target.device), ids.to(target.device)
    times = []
    for _ in range(TIMED + 1):
        began = time.perf_counter()
        target.query(images, ids)
        times.append(time.perf_counter() - began)
    flops = None
    if isinstance(target, ModuleTarget):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            target.module(images)
        flops = counter.get_total_flops() / len(images) / 1e9
    milliseconds = 1e3 * sorted(times[1:])[TIMED // 2] / len(images)
    return pl.DataFrame({"inference_ms": [milliseconds], "gflops": [flops]})
