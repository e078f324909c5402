"""What a plan will cost before it is run: passes, hours at a measured rate, storage."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from poise.errors import InputError
from poise.experiments.bench.plan import Cell, Plan
from poise.experiments.bench.workbench import Workbench

BACKWARD = 2.0
"""A backward pass in forward passes: the usual factor of networks of convolutions and matrix products."""

ROW_BYTES, POINT_BYTES, SHARD_BYTES = 130, 12, 9_000
"""Bytes of a row of results, of a sample at a checkpoint, and of a shard by itself, as parquet and JSON."""

IMAGE_SIDE = 224
"""Side of an image where the data are not there to ask."""

MEASURED_SECONDS = 2.0


@dataclass(frozen=True)
class Price:
    """The cost of a plan.

    Args:
        cells, shards: of the plan. samples: images attacked, each once per cell.
        queries: forward passes of attacks. gradients: backward passes. trainings: networks to be trained first, whose
            cost is not in here.
        rate: forward passes a second of one device, None where nothing could be measured. measured_on: what of.
        storage: bytes of tables, and of images where they are kept.
        left_out: how many of the cells a run would leave out, by the first file that they lack; all figures above count
            them too. passes_left_out: their share of `passes`.
    """

    cells: int
    shards: int
    samples: int
    queries: int
    gradients: int
    trainings: int
    rate: float | None
    measured_on: str
    storage: int
    left_out: dict[str, int]
    passes_left_out: float

    @property
    def passes(self) -> float:
        """Everything in forward passes."""
        return self.queries + BACKWARD * self.gradients

    @property
    def hours(self) -> float | None:
        """Device hours at the rate."""
        return None if self.rate is None else self.passes / self.rate / 3600

    @property
    def hours_now(self) -> float | None:
        """Device hours of the cells that lack no file."""
        return None if self.rate is None else (self.passes - self.passes_left_out) / self.rate / 3600


def price(plan: Plan, rate: float | None = None) -> Price:
    """What a plan costs.

    Args:
        plan: the plan.
        rate: forward passes a second; None measures the first model whose files are there, for two seconds.

    Raises:
        InputError: the rate is not positive.
    """
    if rate is not None and not rate > 0:
        raise InputError(f"rate: must be a number of images per second above 0, got {rate:g}")
    shards = plan.shards()
    samples = queries = gradients = storage = 0
    left_out, passes_left_out = Counter[str](), 0.0
    for cell in plan.cells:
        n = sum((shard.stop or shard.start) - shard.start for shard in cell.shards)
        steps = _steps(cell)
        samples += n
        forward, backward = (cell.budget, 0) if cell.budgeted else (steps + 1, steps)
        queries += n * forward
        gradients += n * backward
        storage += n * (ROW_BYTES + POINT_BYTES * (len(plan.profile.checkpoints) + 1))
        if "images" in plan.spec.keep:
            storage += n * 2 * 3 * IMAGE_SIDE**2 * 4
        if cell.shards and (lacking := cell.shards[0].missing(plan.place)):
            left_out[lacking[0]] += 1
            passes_left_out += n * (forward + BACKWARD * backward)
    found, measured_on = (rate, "given") if rate is not None else _measured(plan)
    return Price(
        cells=len(plan.cells),
        shards=len(shards),
        samples=samples,
        queries=queries,
        gradients=gradients,
        trainings=sum(shard.task == "train" for shard in shards),
        rate=found,
        measured_on=measured_on,
        storage=storage + SHARD_BYTES * len(shards),
        left_out=dict(left_out),
        passes_left_out=passes_left_out,
    )


def _steps(cell: Cell) -> int:
    """Gradient steps of a cell, as its search says."""
    if cell.attack is None or cell.budgeted or not cell.shards:
        return 0
    search = cell.shards[0].settings["recipe"]["search"]
    return int(cell.steps or _first_steps(search) or 10)


def _first_steps(search: object) -> int | None:
    """The first number called `steps` anywhere in a described search."""
    if isinstance(search, dict):
        if isinstance(search.get("steps"), int):
            return int(search["steps"])
        return next((found for inner in search.values() if (found := _first_steps(inner))), None)
    if isinstance(search, list):
        return next((found for inner in search if (found := _first_steps(inner))), None)
    return None


def _measured(plan: Plan) -> tuple[float | None, str]:
    for cell in plan.cells:
        shard = cell.shards[0] if cell.shards else None
        if shard is None or shard.needs or shard.missing(plan.place):
            continue
        bench = Workbench(plan.place)
        target = bench.model(shard, {})
        part = bench.attacked(shard.settings)[: shard.settings["batch_size"]]
        images, _, ids = next(iter(part.batches(len(part))))
        images, ids = images.to(target.device), ids.to(target.device)
        target.query(images, ids)
        began, passes = time.perf_counter(), 0
        while time.perf_counter() - began < MEASURED_SECONDS:
            target.query(images, ids)
            passes += len(part)
        what = f"{cell.victim.model} on {plan.place.device}, batch {len(part)}"
        return passes / (time.perf_counter() - began), what
    return None, "no model's files are there; give --rate"
