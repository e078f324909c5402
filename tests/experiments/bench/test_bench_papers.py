"""Every spec of the papers: it runs, small as it is here; and its committed result is that of the spec as it stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bench_cases import SHARED, Quiet, plan_of, shrunk

from poise.experiments.bench.catalog import names, shipped
from poise.experiments.bench.engine import Local
from poise.experiments.bench.keys import fingerprint_files
from poise.experiments.bench.plan import Place
from poise.experiments.bench.result import collect, load, save
from poise.experiments.bench.run import plan_for, run_bench
from poise.experiments.bench.store import Store, open_store
from poise.experiments.bench.table import render

RESULTS = Path(__file__).resolve().parents[3] / "results" / "papers"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(str(tmp_path_factory.mktemp("bench")))


@pytest.fixture
def few_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defences are fitted on a handful of images too."""
    monkeypatch.setattr("poise.experiments.prepare.FIT_SAMPLES", 60)
    monkeypatch.setattr("poise.experiments.domains.IMAGES", 60)


@pytest.mark.usefixtures("few_held_out")
@pytest.mark.parametrize("name", names())
def test_a_spec_runs_to_its_table_and_figure(name: str, store: Store, tmp_path: Path) -> None:
    spec = shrunk(shipped(name))
    plan, heard = plan_of(spec), Quiet()
    lacking = {path for shard in plan.shards() for path in shard.missing(plan.place)}
    if lacking:
        pytest.skip(f"needs {sorted(lacking)[0]}")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        outcome = run_bench(plan, store, Local(), heard)
    finally:
        torch.set_num_threads(before)
    assert outcome.failed == {}
    result = collect(name, plan, store)
    for trend in spec.trends:  # every row that a trend names is there, or it could never hold
        rows = result.rows.filter(result.rows["metric"] == trend.metric)
        for where in (trend.more, trend.less):
            assert where.get("attack", rows["attack"][0]) in rows["attack"].to_list(), trend.text
    save(result, tmp_path)
    again = load(name, spec, tmp_path)
    if spec.table is not None:
        assert render(again, "markdown") == render(result, "markdown")
        assert spec.title.split()[0] in render(result, "text")
    if spec.figure is not None:
        from poise.report.bench.figures import figure

        assert figure(again).data


@pytest.mark.parametrize("name", names())
def test_the_committed_result_is_that_of_the_spec(name: str) -> None:
    spec, path = shipped(name), RESULTS / f"{name}.json"
    assert path.exists(), f"run: poise bench run {name} --save results/papers"
    about = json.loads(path.read_text(encoding="utf-8"))
    plan = plan_for(spec, "small", Place(str(SHARED)))
    assert about["fingerprint"] == plan.fingerprint, f"run again: poise bench run {name} --save results/papers"
    assert about["done"] == about["shards"], "a committed result is complete"
    for address, found in about["files"].items():
        there = fingerprint_files(plan.place.address(address))
        if "missing" not in there:
            assert found == there, address
    load(name, spec, RESULTS)
