"""Traces in a run: the first images of every attack, resumable like the rest, and off unless asked for."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from audit_cases import assert_same_run, audit, data, killed_at, small_run, spec
from toy_models import CLASSES

from poise import report, table
from poise.experiments.run_folder import RunFolder
from poise.report.folder import read


def test_a_run_keeps_no_trace_unless_it_is_asked_for() -> None:
    assert not (small_run() / "traces").exists()
    assert read(small_run()).traces is None


@pytest.mark.parametrize("size", [5, 16, 64])
def test_the_first_images_are_traced_whatever_the_chunks(tmp_path: Path, size: int) -> None:
    """Every figure of a traced run is that of the untraced one, and the first point is the clean image."""
    made = spec(trace=True, recipes=("sa-mma", "pgd-mma"), batch_size=size)
    audit(made, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    for recipe in made.recipes:
        for defence in made.defences:
            trace, rows = folder.trace(recipe, defence), folder.rows(recipe, defence, "aware")
            assert list(table.TRACE) == trace.columns[: len(table.TRACE)]
            assert trace["id"].unique().sort().to_list() == rows["id"][:16].sort().to_list()
            clean = trace.filter(pl.col("iteration") == 0).join(rows, on="id")
            assert (clean["confidence"] - clean["confidence_before"]).abs().max() < 1e-6
            assert (clean["confidence"] >= 1 / CLASSES).all()
            assert (
                trace.group_by("id")
                .agg(pl.col("queries").max())
                .join(rows, on="id")
                .select((pl.col("queries") == pl.col("queries_right")).all())
                .item()
            )
    if size == 16:
        plain = tmp_path / "plain"
        audit(spec(recipes=("sa-mma", "pgd-mma")), plain)
        assert_same_run(tmp_path / "run", plain)


def test_a_killed_run_goes_on_with_its_traces(tmp_path: Path, monkeypatch) -> None:
    made, out = spec(trace=True, defences=("none",)), tmp_path / "run"
    for moment in (3, 1, 2):
        with killed_at(moment, monkeypatch):
            audit(made, out, resume=True)
    audit(made, out, resume=True)
    audit(made, tmp_path / "whole")
    assert RunFolder(out).trace("sa-mma", "none").equals(RunFolder(tmp_path / "whole").trace("sa-mma", "none"))
    file = next((out / "traces").iterdir())
    file.unlink()
    audit(made, out, resume=True)
    assert file.exists(), "a missing trace is made again"


def test_the_page_of_a_traced_run(tmp_path: Path) -> None:
    audit(spec(data(), trace=True, recipes=("pgd-mma", "max-confidence", "negative")), tmp_path / "run")
    html = report.write(tmp_path / "run").read_text(encoding="utf-8")
    assert 'id="traces"' in html
    assert html.count('data-base="trace.') == 3
    assert "max-confidence, upper bound" in html
    assert "negative, upper bound" not in html
