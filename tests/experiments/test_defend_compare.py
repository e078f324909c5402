"""A comparison: both columns of every defence, the worse of them as headline, resumed to the last bit."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from audit_cases import Silent, data, held_out, killed_at, scratch, spec, tables
from polars.testing import assert_frame_equal
from safetensors.torch import load_file

from poise import data as sources
from poise import metrics
from poise.defenses import Identity
from poise.errors import RunError
from poise.experiments import AuditSpec
from poise.experiments.defend import milliseconds, run_compare
from poise.experiments.defend_figures import METRICS, figures, worse
from poise.experiments.defend_table import blocks, latex, ranked

DEFENCES = ("none", "ts", "cs", "histogram", "aaa-linear")
RECIPES = ("sa-mma", "pgd-mma")


def made(**given: Any) -> AuditSpec:
    usual = {"fit_data": held_out(), "recipes": RECIPES, "defences": DEFENCES, "samples": 24, "bootstrap": 20}
    return spec(data(), **{**usual, **given})


def compare(out: Path, *, resume: bool = False, **given: Any) -> dict[str, Any]:
    return run_compare(made(**given), out, resume=resume, listener=Silent(), command="poise defend compare")


@cache
def folder() -> Path:
    compare(scratch() / "compared")
    return scratch() / "compared"


@cache
def comparison() -> dict[str, Any]:
    return json.loads((folder() / "compare.json").read_text(encoding="utf-8"))


def chosen(out: Path) -> pl.DataFrame:
    return pl.read_parquet(out / "adaptive" / "samples" / "*.parquet").sort("recipe", "defence", "id")


def test_every_defence_has_both_columns_of_every_recipe() -> None:
    assert tuple(comparison()["defences"]) == DEFENCES
    for entry in comparison()["defences"].values():
        assert entry["clean"].keys() == set(METRICS)
        assert entry["ms_per_image"] > 0
        for recipe in RECIPES:
            for column in ("unaware", "adaptive", "aware", "headline"):
                assert entry["attacked"][recipe][column].keys() == set(METRICS)
            assert sum(entry["attacked"][recipe]["chosen"].values()) == 24


def test_the_headline_is_the_worse_column_figure_by_figure() -> None:
    for entry in comparison()["defences"].values():
        for attacked in entry["attacked"].values():
            for metric in METRICS:
                values = [attacked[column][metric]["value"] for column in ("unaware", "adaptive")]
                expected = min(values) if metric == "accuracy" else max(values)
                assert attacked["headline"][metric]["value"] == expected
                assert attacked[attacked["headline"][metric]["column"]][metric]["value"] == expected


def test_unaware_and_clean_are_the_audits_own_figures() -> None:
    summary = json.loads((folder() / "summary.json").read_text(encoding="utf-8"))
    for row in summary["rows"]:
        attacked = comparison()["defences"][row["defence"]]["attacked"][row["recipe"]]
        for metric in METRICS:
            assert attacked[row["view"]][metric] == row["metrics"][f"{metric}_after"]
            assert comparison()["defences"][row["defence"]]["clean"][metric] == row["metrics"][f"{metric}_before"]


def test_the_choice_is_at_least_as_good_as_either_attack_for_every_sample() -> None:
    rows = chosen(folder())
    assert len(rows) == 24 * (len(DEFENCES) - 1) * len(RECIPES)
    attacks = [name.removeprefix("merit_") for name in rows.columns if name.startswith("merit_")]
    assert set(attacks) >= {"through", "bare"}
    for row in rows.iter_rows(named=True):
        members = [name for name in attacks if row[f"merit_{name}"] is not None]
        kept = [row[f"merit_{name}"] for name in members if row[f"accepted_{name}"]]
        assert row[f"merit_{row['attack']}"] == min(kept)
        assert row["prediction_after"] == row["prediction_before"]
    by_choice = rows["attack"].value_counts().sort("attack")["attack"].to_list()
    assert "bare" in by_choice, "no sample where the images made for the bare model were the worst: nothing was tested"
    assert "through" in by_choice


def test_a_chosen_image_has_the_figures_of_the_audits_row() -> None:
    views = {"through": "aware", "bare": "unaware"}
    stored = pl.read_parquet(folder() / "samples" / "*.parquet")
    rows = (
        chosen(folder())
        .filter(pl.col("attack") != "surrogate")
        .with_columns(pl.col("attack").replace_strict(views).alias("view"))
    )
    joined = rows.join(stored, on=["recipe", "defence", "view", "id"], suffix="_audit")
    assert len(joined) == len(rows)
    for name in ("prediction_after", "confidence_after", "brier_after", "nll_after"):
        assert joined[name].to_list() == joined[f"{name}_audit"].to_list()


def test_the_chosen_images_lie_in_the_ball() -> None:
    clean = {}
    for images, _, ids in sources.load(data()).batches(64):
        clean |= dict(zip(ids.tolist(), images, strict=True))
    for path in sorted((folder() / "adaptive" / "adversarial").iterdir()):
        stored = load_file(path)
        for id_, image in zip(stored["ids"].tolist(), stored["images"], strict=True):
            assert float((image - clean[id_]).abs().max()) <= 0.1 + 1e-6


def test_histogram_binning_gets_the_attack_with_the_bare_gradient() -> None:
    rows = chosen(folder()).filter(pl.col("merit_surrogate").is_not_null())
    assert rows.select("recipe", "defence").unique().rows() == [("pgd-mma", "histogram")]
    assert len(rows) == 24


def test_resumed_after_a_kill_the_choice_is_the_same_to_the_last_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = len([path for path in folder().rglob("*") if path.is_file() and "adaptive" not in path.parts])
    with killed_at(writes, monkeypatch):  # inside the adaptive attacker's turn
        compare(tmp_path / "run")
    assert (tmp_path / "run" / "adaptive").exists()
    assert not (tmp_path / "run" / "compare.json").exists()
    again = compare(tmp_path / "run", resume=True)
    assert_frame_equal(chosen(tmp_path / "run"), chosen(folder()))
    for name, entry in again["defences"].items():
        assert entry["attacked"] == comparison()["defences"][name]["attacked"]
    assert tables(tmp_path / "run").equals(tables(folder()))


def test_a_second_run_needs_resume_and_recomputes_nothing() -> None:
    with pytest.raises(RunError, match="already holds this run"):
        compare(folder())
    before = {path: path.stat().st_mtime_ns for path in (folder() / "adaptive").rglob("*.*")}
    compare(folder(), resume=True)
    assert before == {path: path.stat().st_mtime_ns for path in (folder() / "adaptive").rglob("*.*")}


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    given: dict[str, Any] = {"recipes": ("sa-mma",), "defences": ("none", "cs")}
    compare(tmp_path / "run", **given)
    path = tmp_path / "run" / "adaptive" / "samples" / "sa-mma.cs.00000.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(RunError, match="is damaged"):
        compare(tmp_path / "run", resume=True, **given)
    path.unlink()
    compare(tmp_path / "run", resume=True, **given)


def test_tables_mark_the_worse_column_and_sort_by_it() -> None:
    clean, *attacked = blocks(comparison())
    assert [line[0] for line in clean.lines] == list(DEFENCES)
    assert [block.title for block in attacked] == [f"after {recipe}" for recipe in RECIPES]
    for block, recipe in zip(attacked, RECIPES, strict=True):
        order = list(dict.fromkeys(line[0] for line in block.lines))
        assert order == ranked(comparison(), recipe)
        for name in order:
            lines = [line for line in block.lines if line[0] == name]
            if name == "none":
                assert len(lines) == 1
                continue
            assert [line[1] for line in lines] == ["unaware", "adaptive"]
            for at in range(2, len(block.head)):
                assert sum(line[at].endswith("*") for line in lines) == 1
    text = (folder() / "compare.md").read_text(encoding="utf-8")
    assert text.count("| cs | adaptive |") == len(RECIPES)


def test_latex_holds_the_same_cells_and_nothing_that_latex_reads_otherwise() -> None:
    made_of = json.loads((folder() / "compare.json").read_text(encoding="utf-8"))
    assert (folder() / "compare.tex").read_text(encoding="utf-8") == latex(made_of)
    lines = [line for line in latex(made_of).splitlines() if line.endswith(r" \\")]
    cells = [line.removesuffix(r" \\").split(" & ") for line in lines]
    expected = [cells for block in blocks(made_of) for cells in (block.head, *block.lines)]
    assert cells == [[cell.replace("–", "--") for cell in row] for row in expected]
    for special in "&%$#_{}":
        renamed = {f"a{special}b" if name == "ts" else name: held for name, held in made_of["defences"].items()}
        assert f"a\\{special}b &" in latex({**made_of, "defences": renamed})


def test_figures_against_the_metrics_themselves() -> None:
    rng = np.random.default_rng(3)
    p = rng.dirichlet(np.ones(3), 50)
    label = rng.integers(0, 3, 50)
    rows = pl.DataFrame(
        {
            "label": label,
            "prediction_after": p.argmax(1),
            "confidence_after": p.max(1),
            "nll_after": metrics.nll_rows(p, label),
            "brier_after": metrics.brier_rows(p, label),
        }
    )
    found = figures(rows, "after", metrics.Bootstrap(resamples=50))
    right = (p.argmax(1) == label).astype(float)
    expected = {
        "accuracy": right.mean(),
        "ece": metrics.ece(p.max(1), right),
        "ks": metrics.ks_error(p.max(1), right),
        "nll": metrics.nll(p, label),
        "brier": metrics.brier(p, label),
    }
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value, abs=1e-12)
        assert found[name]["low"] < found[name]["high"]


def test_worse_knows_that_more_accuracy_is_better() -> None:
    assert worse("accuracy", 0.1, 0.2)
    assert not worse("accuracy", 0.2, 0.1)
    assert worse("nll", 0.2, 0.1)
    assert not worse("nll", None, 0.1)
    assert worse("nll", 0.1, None)


def test_time_is_that_of_the_defence_per_image() -> None:
    class Slow(Identity):
        def _map(self, logits: torch.Tensor) -> torch.Tensor:
            import time

            time.sleep(0.02)
            return logits

    assert milliseconds(Slow(), torch.zeros(10, 3), repeats=3) == pytest.approx(2.0, abs=1.5)
    assert milliseconds(Identity(), torch.zeros(10, 3), repeats=3) < 0.5
