"""Published numbers beside ours, trends, tables, prices: what a reader concludes from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from bench_cases import TINY, Quiet

from poise import metrics
from poise.experiments.bench.engine import Local
from poise.experiments.bench.plan import Place, make_plan
from poise.experiments.bench.published import Lookup, published, table
from poise.experiments.bench.reduce import Reader, tidy
from poise.experiments.bench.result import mark
from poise.experiments.bench.run import run_bench
from poise.experiments.bench.spec import Trend, read_bench_spec
from poise.experiments.bench.store import open_store
from poise.experiments.bench.trends import judge


def test_every_published_number_is_there() -> None:
    """Counts and sums that were taken from the tables of the papers, not from this file."""
    rows = published()
    assert len(rows) == 1732
    assert sorted(rows["paper"].unique().to_list()) == ["aaa", "calibration-attacks", "uat"]
    one = table("calibration", "T1").filter(
        (pl.col("dataset") == "CIFAR-100") & (pl.col("model") == "ResNet-50") & (pl.col("attack") == "SA-MMA")
    )
    assert dict(zip(one["metric"], one["value"], strict=True))["ece"] == 0.606
    assert len(table("calibration", "T1")) == 144
    assert len(table("thresholding", None)) == 0
    rates = rows.filter(pl.col("metric").is_in(["ece", "ks", "accuracy", "adv_accuracy", "avg_confidence"]))
    assert rates["value"].min() >= 0
    assert rates["value"].max() <= 1


def row(**changed: object) -> dict[str, object]:
    base = {"dataset": "D", "model": "M", "defence": "none", "attack": "Square", "metric": "ece", "norm": "linf"}
    return base | {"eps": 0.1, "queries": 100.0, "value": 0.5, "std": None, "note": None} | changed


def test_a_row_finds_its_published_one() -> None:
    names = {name: row()[name] for name in ("dataset", "model", "defence", "attack", "metric")}
    rows = [row(eps=at, queries=q, value=at * q) for at in (0.1, 0.2) for q in (100.0, 2500.0)]
    found = Lookup(pl.DataFrame(rows, infer_schema_length=None))
    axes = {"eps": [0.1, 0.2], "queries": [50.0, 300.0]}

    def value(eps: float, queries: float, axes: dict[str, list[float]] = axes) -> float | None:
        at = found.find(names, {"eps": eps, "queries": queries, "norm": "linf"}, axes)
        return None if at is None else at["value"]

    assert value(0.1, 100.0) == pytest.approx(10)  # the same setting
    assert value(0.2, 50.0) == pytest.approx(20)  # the first of our budgets beside the first of theirs
    assert value(0.2, 300.0) == pytest.approx(500)
    assert value(0.2, 300.0, {"eps": [0.2], "queries": [300.0]}) is None  # one of ours beside two of theirs: no
    assert found.find(names | {"model": "other"}, {"eps": 0.1}, axes) is None


def test_marks() -> None:
    def at(published: float | None, std: float | None = None) -> str:
        return mark({"value": 0.5, "low": 0.4, "high": 0.6, "published": published, "published_std": std})

    assert [at(0.45), at(0.7), at(0.3), at(None)] == ["=", "-", "+", ""]
    assert [at(0.7, 0.05), at(0.71, 0.05)] == ["=", "-"]


def test_trends_are_counted_where_they_can_be_looked_for() -> None:
    rows = pl.DataFrame(
        [
            {"dataset": d, "model": "M", "attack": a, "eps": 0.1, "metric": "ece", "value": v}
            for d, a, v in (("A", "x", 0.5), ("A", "y", 0.2), ("B", "x", 0.1), ("B", "y", 0.2), ("C", "x", 0.9))
        ]
    )
    trend = Trend(text="x over y", metric="ece", more={"attack": "x"}, less={"attack": "y"})
    found = judge(trend, rows)
    assert (found.holds, found.of, found.against, found.word) == (1, 2, ("B, M",), "in part")
    wide = trend.model_copy(update={"at_least": 0.4})
    assert judge(wide, rows).word == "no"
    assert judge(trend.model_copy(update={"metric": "ks"}), rows).word == "not measured"
    overall = trend.model_copy(update={"by": ()})
    assert judge(overall, rows).word == "yes"  # mean of x .5, of y .2


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("numbers")
    text = TINY.replace("samples = 4", "samples = 30\nshard = 11\nbudgets = [20]\ncheckpoints = [5]\nbootstrap = 50")
    text = text.replace('metrics = ["ece"]', 'metrics = ["accuracy", "ece", "ks", "avg_queries", "median_queries"]')
    (folder / "mine.toml").write_text(text, encoding="utf-8")
    plan = make_plan(read_bench_spec(folder / "mine.toml"), "small", Place("nowhere"))
    store = open_store(str(folder / "out"))
    assert run_bench(plan, store, Local(), Quiet()).failed == {}
    return Reader(plan, store)


def test_figures_are_those_of_the_rows(ran: Reader) -> None:
    rows, curve = (ran.table(ran.plan.cells[0], f"{name}.parquet") for name in ("rows", "curve"))
    assert rows is not None
    assert curve is not None
    found = tidy(ran.plan, ran.store)

    def value(metric: str, attack: str = "SA-MMA", queries: float | None = 20.0) -> float:
        part = found.filter((pl.col("metric") == metric) & (pl.col("attack") == attack))
        part = part.filter(pl.col("queries").is_null() if queries is None else pl.col("queries") == queries)
        assert len(part) == 1
        return float(part["value"][0])

    for when, attack, queries in (("before", "none", None), ("after", "SA-MMA", 20.0)):
        right = (rows[f"prediction_{when}"] == rows["label"]).to_numpy().astype(float)
        confidence = rows[f"confidence_{when}"].to_numpy()
        assert value("accuracy", attack, queries) == right.mean()
        assert value("ece", attack, queries) == metrics.ece(confidence, right)
        assert value("ks", attack, queries) == metrics.ks_error(confidence, right)
    early = curve.filter(pl.col("queries") == 5)
    right = (early["prediction"] == early["label"]).to_numpy().astype(float)
    assert value("ece", queries=5.0) == metrics.ece(early["confidence"].to_numpy(), right)
    reached = rows["queries_to_success"].drop_nulls().to_numpy()
    assert value("avg_queries") == pytest.approx(reached.sum() / len(rows))  # as SA-MMA's are printed
    if len(reached):
        assert value("median_queries") == np.median(reached)


IMAGENET = """
import json, sys, time, tomllib
from poise.experiments.bench.plan import Place, make_plan
from poise.experiments.bench.price import price
from poise.experiments.bench.spec import BenchSpec
began = time.perf_counter()
spec = BenchSpec(**tomllib.loads(sys.stdin.read()))
plan = make_plan(spec, "full", Place("nowhere"))
found = price(plan, 1500.0)
keys = {shard.key(plan.place) for shard in plan.shards()}
kib = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])  # getrusage begins with the parent's memory
print(json.dumps({"seconds": time.perf_counter() - began, "keys": len(keys), "fingerprint": plan.fingerprint,
    "mib": kib / 1024, "queries": found.queries, "hours": found.hours,
    "cells": found.cells, "storage": found.storage}))
"""


def test_a_plan_of_imagenet_is_priced_in_seconds(tmp_path: Path) -> None:
    """50,000 images × 1,000 queries × 12 recipes × 8 defences; the limits are 10 s and 1 GiB."""
    recipes = ("sa-uca", "sa-oca", "sa-mma", "sa-rca", "square", "simba", "signhunter", "nes", "bandits", "spsa",
               "simba-mma", "sa-confsmooth")  # fmt: skip
    defences = ("none", "ts", "cs", "splines", "platt", "aaa-linear", "aaa-sine", "rnd")
    grid = "attacks = [" + ", ".join(f'{{ name = "{name}", recipe = "{name}" }}' for name in recipes) + "]\n"
    grid += "defences = [" + ", ".join(f'{{ name = "{name}", use = "{name}" }}' for name in defences) + "]\n"
    victim = '[[full.victims]]\ndataset = "ImageNet"\nmodel = "R"\ndata = "torchvision:ImageNet?root={files}/i"\n'
    victim += 'source = "torchvision:resnet50?weights={files}/r.safetensors&num_classes=1000"\n'
    text = TINY.split("[grid]")[0] + "[grid]\n" + grid + "[full]\nsamples = 50000\n" + victim
    text += victim.replace("full", "small").join(["[small]\n", ""])
    done = subprocess.run([sys.executable, "-c", IMAGENET], input=text, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["cells"] == 96
    assert found["keys"] == 96 * 500
    assert found["queries"] == 50_000 * 1000 * 96
    assert found["hours"] == pytest.approx(50_000 * 1000 * 96 / 1500 / 3600)
    assert found["seconds"] < 30, "10 s on a machine that does nothing else"
    assert found["mib"] < 1024
