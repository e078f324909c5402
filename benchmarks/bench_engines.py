"""What Ray costs and what it gains: a grid here, by one worker and by two; and shards that do nothing, per second.

    python benchmarks/bench_engines.py [--rounds 3] [--shards 12] [--noop 10000] [--check] [--json FILE]

The grid is sa-mma on `builtin:digits`, one torch thread per process. Ray runs on this machine. Every engine is timed
from the moment when each of its workers has done one shard, so that all models are loaded, until so many more are
done; the engines take turns, and medians are compared. All rows must be the same. The shards that do nothing go the
whole way: planned, scheduled to two workers, and written to a folder one by one.

Two workers gain only what other processes leave them, so the load of the machine is written down with every time.
Exit code 1 with --check where two workers are not 1.6 times as fast as one, less than 200 shards that do nothing are
done in a second, or rows differ.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl
import torch

from poise.experiments.bench.engine import Engine, Finished, Local, Started
from poise.experiments.bench.plan import Place, Plan, Shard, make_plan
from poise.experiments.bench.ray_engine import RayEngine
from poise.experiments.bench.run import run_bench
from poise.experiments.bench.spec import BenchSpec
from poise.experiments.bench.store import LocalStore
from poise.experiments.bench.tasks import packing

GAIN, RATE, OF = 1.6, 200.0, 4
RESULTS = Path(__file__).resolve().parents[1] / "results" / "bench_engines.json"


def plan(task: str, shards: int, of: int, budget: int) -> Plan:
    profile = {
        "samples": shards * of,
        "shard": of,
        "victims": [{"dataset": "digits", "model": "mlp", "source": "builtin:digits", "data": "builtin:digits"}],
        "attacks": [{"name": "SA-MMA", "recipe": "sa-mma"}],
        "budgets": [budget],
        "eps": [0.1],
    }
    about = {"paper": "none", "shows": "T1", "title": "engines", "setting": "none", "table": {"metrics": ["ece"]}}
    return make_plan(BenchSpec(**about, task=task, full=profile, small=profile), "small", Place(""))


def timed(engine: Engine, shards: Iterable[Shard], workers: int, count: int) -> tuple[float, pl.DataFrame]:
    """Seconds that `count` shards take once every worker has done one, and all rows."""
    at: dict[int, str] = {}
    warm: set[str] = set()
    began, done, rows = 0.0, 0, {}
    events = iter(engine.run(shards, Place(""), lambda _: {}))
    for event in events:
        if isinstance(event, Started):
            at[event.shard.start] = event.worker
            continue
        assert isinstance(event, Finished), event
        rows[event.shard.start] = packing.read_table(event.content["rows.parquet"]).drop("seconds")
        if began:
            done += 1
            if done == count:
                break
        else:
            warm.add(at[event.shard.start])
            began = time.perf_counter() if len(warm) == workers else 0.0
    spent = time.perf_counter() - began
    assert done == count, "a worker came too late: give more --shards"
    close = getattr(events, "close", None)
    if close is not None:
        close()
    return spent, pl.concat([rows[start] for start in sorted(rows)])


class Clock:
    """A listener that knows when the first shard began and the last one ended."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.last = 0.0

    def begin(self, total: int, done: int, left_out: dict[str, list[str]]) -> None:
        pass

    def started(self, what: str) -> None:
        self.first = self.first or time.perf_counter()

    def finished(self, what: str, seconds: float) -> None:
        self.last = time.perf_counter()

    def failed(self, what: str, reason: str) -> None:
        raise AssertionError(f"{what}: {reason}")


def noops(engine: Engine, count: int) -> float:
    """Shards a second, from the first begun to the last one written."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_bench(plan("noop", count, 1, 1), LocalStore(f"{folder}/out"), engine, clock)
        assert outcome.ran == count
        assert len(LocalStore(f"{folder}/out").finished()) == count
    assert clock.first is not None
    return count / (clock.last - clock.first)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shards", type=int, default=12)
    parser.add_argument("--budget", type=int, default=250)
    parser.add_argument("--noop", type=int, default=10_000)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--json", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)

    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    engines: dict[str, tuple[Engine, int]] = {
        "local": (Local(), 1),
        "ray, 1 worker": (RayEngine(workers=1), 1),
        "ray, 2 workers": (RayEngine(workers=2), 2),
    }
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    loads: dict[str, list[float]] = {name: [] for name in engines}
    tables = []
    shards = plan("attack", 10 * given.shards, OF, given.budget).shards()
    for _ in range(given.rounds):
        for name, (engine, workers) in engines.items():
            spent, rows = timed(engine, shards, workers, given.shards)
            seconds[name].append(spent)
            loads[name].append(os.getloadavg()[0])
            tables.append(rows)
            print(f"{name:15} {spent:7.2f} s for {given.shards} shards, load {loads[name][-1]:.1f}", flush=True)
    noop = {"ray, 2 workers": noops(RayEngine(workers=2), given.noop), "local": noops(Local(), given.noop)}
    ray.shutdown()
    median = {name: statistics.median(found) for name, found in seconds.items()}
    gain = median["ray, 1 worker"] / median["ray, 2 workers"]
    differ = sum(not same(tables[0], rows) for rows in tables)
    for name, rate in noop.items():
        print(f"{name:15} {rate:7.0f} of {given.noop} shards that do nothing per second")
    print(f"two workers are {gain:.2f} times as fast as one; {differ} of {len(tables)} tables differ")
    about: dict[str, Any] = {"cores": os.cpu_count(), "shards": given.shards, "images": OF, "budget": given.budget}
    measured = {"seconds": seconds, "median": median, "load": loads, "gain": gain, "noop_per_second": noop}
    found = about | measured | {"noop": given.noop, "tables_that_differ": differ}
    given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    wrong = [
        *([f"two workers must be at least {GAIN} times as fast as one, got {gain:.2f}"] if gain < GAIN else []),
        *([f"Ray must do {RATE:.0f} empty shards a second"] if noop["ray, 2 workers"] < RATE else []),
        *(["every table must be the same"] if differ else []),
    ]
    print("\n".join(wrong) or "everything holds")
    return int(bool(wrong) and given.check)


def same(one: pl.DataFrame, other: pl.DataFrame) -> bool:
    """Equal in every bit where both have rows, which is in most of them."""
    ids = one.select("id").join(other.select("id"), on="id")
    return len(ids) >= len(one) // 2 and one.join(ids, on="id", how="semi", maintain_order="left").equals(
        other.join(ids, on="id", how="semi", maintain_order="left"), null_equal=True
    )


if __name__ == "__main__":
    sys.exit(main())
