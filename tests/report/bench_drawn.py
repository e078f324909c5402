"""Small specs of `poise bench` on the embedded digits, run in this process, for the tests of tasks, points, figures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import polars as pl

from poise.experiments.bench.plan import Place, Plan, make_plan
from poise.experiments.bench.result import Result, collect, load, save
from poise.experiments.bench.spec import BenchSpec
from poise.experiments.bench.store import LocalStore
from poise.experiments.bench.tasks import perform
from poise.experiments.bench.workbench import Workbench

EPS = 0.2
DIGITS = {"dataset": "digits", "model": "small CNN", "source": "builtin:digits", "data": "builtin:digits"}
UCA = {"name": "SA-UCA", "recipe": "sa-uca"}
OCA = {"name": "SA-OCA", "recipe": "sa-oca"}
CLEAN = {"name": "none", "recipe": "sa-uca", "budget": 1}
SQUARE = {"name": "Square", "recipe": "square", "against": "bare"}
AAA = {"name": "AAA", "use": "aaa-linear"}


def spec(
    task: str = "attack", draw: str | None = None, *, figure: dict[str, Any] | None = None, keep: Any = (), **grid: Any
) -> BenchSpec:
    """A spec of 12 images, 25 queries and two attacks in one cell each."""
    usual = {
        "samples": 12, "shard": 12, "batch_size": 16, "eps": [EPS], "budgets": [25], "bootstrap": 20,
        "victims": [DIGITS], "attacks": [UCA, OCA],
    }  # fmt: skip
    profile = {**usual, **grid}
    shown = None if draw is None else {"draw": draw, **(figure or {})}
    return BenchSpec(
        paper="calibration", shows="Figure 0", title="A test", setting="None", task=task, keep=keep,
        table={"metrics": ["ece", "accuracy"]}, figure=shown, full=profile, small=profile,
    )  # fmt: skip


def plan_of(wanted: BenchSpec) -> Plan:
    return make_plan(wanted, "small", Place(files="nowhere"))


def left(wanted: BenchSpec) -> list[dict[str, Any]]:
    """What every shard leaves, tables already read."""
    plan = plan_of(wanted)
    bench = Workbench(plan.place)
    found = [perform(bench, shard, {}) for shard in plan.shards()]
    return [
        {name: pl.read_parquet(io.BytesIO(part)) if name.endswith(".parquet") else part for name, part in one.items()}
        for one in found
    ]


def stored(wanted: BenchSpec, folder: Path) -> tuple[Plan, LocalStore]:
    """The shards of a spec in a folder."""
    plan, store = plan_of(wanted), LocalStore(str(folder))
    bench = Workbench(plan.place)
    for shard in plan.shards():
        store.write(shard.key(plan.place), perform(bench, shard, {}), {"seconds": 0.1})
    return plan, store


def result_of(wanted: BenchSpec, folder: Path) -> Result:
    """The result of a spec as it is read again from its files."""
    name = "calibration/test"
    save(collect(name, *stored(wanted, folder / "run")), folder / "results")
    return load(name, wanted, folder / "results")
