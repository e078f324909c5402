"""What stands in the tables: stored images answer as recorded, unaware rows are the defence on the model's answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from audit_cases import Silent, assert_same_run, audit, model, rich_run, spec, write_data
from safetensors.torch import load_file
from torch import Tensor

from poise import data as data_sources
from poise import defenses, models, table
from poise.experiments import run_audit
from poise.experiments.audit import checkpoints
from poise.experiments.audit_spec import AuditSpec, read_spec
from poise.experiments.run_folder import RunFolder
from poise.targets import Mixed
from poise.types import OutputKind, Outputs


def _spec(run: Path) -> AuditSpec:
    return read_spec(run / "audit.toml")[0]


def _chunks(run: Path, recipe: str, defence: str) -> Iterator[tuple[pl.DataFrame, Tensor, Tensor]]:
    """Rows, clean images and stored images of each chunk."""
    everything = data_sources.load(_spec(run).data).mixed()
    files = sorted((run / "samples").glob(f"{recipe}.{defence}.aware.*.parquet"))
    assert len(files) == 3
    for number, file in enumerate(files):
        rows = pl.read_parquet(file)
        stored = load_file(run / "adversarial" / f"{recipe}.{defence}.{number:05d}.safetensors")
        assert stored["ids"].tolist() == rows["id"].to_list()
        position = {int(name): at for at, name in enumerate(everything.ids)}
        part = everything.select([position[name] for name in rows["id"]])
        assert part.labels.tolist() == rows["label"].to_list()
        yield rows, part.images, stored["images"]


def _fitted(run: Path, name: str):
    """The defence, fitted by the test itself from the held-out data."""
    made, target = _spec(run), models.load(_spec(run).model)
    held_out = data_sources.load(made.fit_data)
    logits = target.query(held_out.images, held_out.ids).scores
    return defenses.make(name).fit(logits, held_out.labels)


def _answers(run: Path, defence: str, images: Tensor) -> Outputs:
    target = models.load(_spec(run).model)
    scores = target.query(images, torch.arange(len(images))).scores
    with torch.no_grad():
        return Outputs(scores if defence == "none" else _fitted(run, defence)(scores))


def test_every_table_has_the_columns_of_the_contract() -> None:
    rows = pl.read_parquet(rich_run() / "samples" / "*.parquet")
    more = {"brier_before", "brier_after", "nll_before", "nll_after", "delta_w", "ssim", "recipe", "defence", "view"}
    assert set(rows.columns) == set(table.SCHEMA) | more
    assert {name: rows.schema[name] for name in table.SCHEMA} == table.SCHEMA
    views = set(rows.select("defence", "view").unique().iter_rows())
    assert views == {("none", "aware"), ("ts", "aware"), ("ts", "unaware"), ("cs", "aware"), ("cs", "unaware")}
    counts = rows.group_by("recipe", "defence", "view").agg(pl.col("id").n_unique(), pl.len().alias("n"))
    assert counts.height == 20
    assert (counts["id"] == 90).all()
    assert (counts["n"] == 90).all()


@pytest.mark.parametrize("defence", ["none", "ts", "cs"])
@pytest.mark.parametrize("recipe", ["sa-mma", "pgd"])
def test_stored_images_answer_as_the_table_says(recipe: str, defence: str) -> None:
    for rows, clean, stored in _chunks(rich_run(), recipe, defence):
        for when, images in (("before", clean), ("after", stored)):
            answer = _answers(rich_run(), defence, images)
            assert answer.labels.tolist() == rows[f"prediction_{when}"].to_list()
            assert np.allclose(answer.confidence, rows[f"confidence_{when}"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("recipe", ["sa-mma", "sa-rca", "pgd-mma", "pgd"])
def test_stored_images_lie_in_ball_and_box(recipe: str) -> None:
    for rows, clean, stored in _chunks(rich_run(), recipe, "none"):
        change = (stored - clean).abs().flatten(1).amax(1)
        assert float(change.max()) <= 0.1 + 1e-6
        assert float(change.max()) > 0.05, "an attack that does nothing passes every check of the ball"
        assert np.allclose(change, rows["linf"], atol=1e-7)
        assert np.allclose((stored - clean).abs().flatten(1).mean(1), rows["delta_w"], atol=1e-6)
        assert 0 <= float(stored.min()) <= float(stored.max()) <= 1


@pytest.mark.parametrize("name", ["ts", "cs"])
@pytest.mark.parametrize("recipe", ["sa-mma", "pgd"])
def test_unaware_rows_are_the_defence_on_the_answers_of_the_undefended(recipe: str, name: str) -> None:
    shown = RunFolder(rich_run()).rows(recipe, name, "unaware")
    start = 0
    for rows, clean, stored in _chunks(rich_run(), recipe, "none"):
        part = shown[start : start + len(rows)]
        assert part["id"].to_list() == rows["id"].to_list()
        for when, images in (("before", clean), ("after", stored)):
            answer = _answers(rich_run(), name, images)
            p, truth = answer.probabilities.numpy(), rows["label"].to_numpy()
            assert answer.labels.tolist() == part[f"prediction_{when}"].to_list()
            assert np.allclose(answer.confidence, part[f"confidence_{when}"], atol=1e-6, rtol=0)
            assert np.allclose(((p - np.eye(4)[truth]) ** 2).sum(1), part[f"brier_{when}"], atol=1e-6)
            assert np.allclose(-np.log(p[np.arange(len(p)), truth].clip(1e-12)), part[f"nll_{when}"], atol=1e-5)
        start += len(rows)
    assert start == 90


def test_the_aware_attacker_does_something_else() -> None:
    """Else the two views would be one, and the table would hide what adapting to a defence brings."""
    for recipe in ("sa-mma", "pgd-mma"):
        aware, unaware = (RunFolder(rich_run()).rows(recipe, "cs", view) for view in ("aware", "unaware"))
        assert aware["confidence_before"].equals(unaware["confidence_before"])
        assert (aware["confidence_after"] - unaware["confidence_after"]).abs().max() > 0.001
        assert not aware["queries"].equals(unaware["queries"])


def test_unaware_rows_keep_the_cost_of_the_attack_they_were_shown() -> None:
    attacked, shown = (
        RunFolder(rich_run()).rows("sa-mma", "none", "aware"),
        RunFolder(rich_run()).rows("sa-mma", "ts", "unaware"),
    )
    for name in ("queries", "queries_to_success", "gradients", "linf", "l2", "delta_w", "ssim", "stop"):
        assert shown[name].equals(attacked[name], null_equal=True), name


@pytest.mark.parametrize("defence", ["none", "cs"])
@pytest.mark.parametrize("recipe", ["sa-mma", "sa-rca", "pgd-mma"])
def test_curves_end_where_the_table_stands(recipe: str, defence: str) -> None:
    folder = RunFolder(rich_run())
    curve, rows = folder.curve(recipe, defence), folder.rows(recipe, defence, "aware")
    assert sorted(curve["queries"].unique()) == [1, 2, 5, 10, 20, 40]
    for queries, when in ((1, "before"), (40, "after")):
        there = curve.filter(pl.col("queries") == queries).join(rows, on="id", suffix="_row").sort("id")
        assert len(there) == 90
        assert there["confidence"].equals(there[f"confidence_{when}"].rename("confidence"))
        assert there["prediction"].equals(there[f"prediction_{when}"].rename("prediction"))
    assert (
        curve.join(rows.select("id", "label"), on="id", suffix="_row")
        .select((pl.col("label") == pl.col("label_row")).all())
        .item()
    )


def test_curves_never_get_worse_for_an_attacker_who_wants_confidence(tmp_path: Path) -> None:
    audit(spec(recipes=("sa-oca",), defences=("none",), budget=30), tmp_path / "run")
    curve = RunFolder(tmp_path / "run").curve("sa-oca", "none").sort("id", "queries")
    steps = curve.with_columns(pl.col("confidence").diff().over("id").alias("step"))["step"].drop_nulls()
    assert (steps >= 0).all()
    assert (steps > 0).any()


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (100, (1, 2, 5, 10, 20, 50, 100)), (7, (1, 2, 5, 7))],
)
def test_checkpoints(budget: int, expected: tuple[int, ...]) -> None:
    assert checkpoints(budget) == expected


def test_a_model_of_probabilities_is_defended_through_its_logarithms(tmp_path: Path) -> None:
    """The same model, once as logits and once as probabilities, gives the same tables up to rounding."""
    same = {"defences": ("none", "cs"), "recipes": ("sa-mma",)}
    audit(spec(**same), tmp_path / "logits")
    audit(spec(model=model("probabilities", "?num_classes=4&outputs=probabilities"), **same), tmp_path / "p")
    for defence, view in (("none", "aware"), ("cs", "aware"), ("cs", "unaware")):
        a, b = (RunFolder(tmp_path / name).rows("sa-mma", defence, view) for name in ("logits", "p"))
        assert (a["confidence_before"] - b["confidence_before"]).abs().max() < 1e-5
        assert (a["confidence_after"] - b["confidence_after"]).abs().median() < 1e-4
        assert a["prediction_before"].equals(b["prediction_before"])


def test_a_noisy_model_gives_the_same_run_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        torch.manual_seed(len(name) + ord(name))
        audit(spec(model=model("noisy"), defences=("none",)), tmp_path / name)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_the_listener_hears_everything_once(tmp_path: Path) -> None:
    heard = Silent()
    run_audit(spec(), tmp_path / "run", resume=False, listener=heard)
    assert heard.begun == [("sa-mma", "none", 0, 40), ("sa-mma", "cs", 0, 40)]
    assert heard.advanced[-1] == (40, 12)
    turn = next(at for at in range(1, len(heard.advanced)) if heard.advanced[at][0] < heard.advanced[at - 1][0])
    for part in (heard.advanced[:turn], heard.advanced[turn:]):
        done = [samples for samples, _ in part]
        assert done == sorted(done), "progress went back"
        assert done[-1] == 40
        assert all(queries <= 12 for _, queries in part)
    assert heard.clean["accuracy"] == pytest.approx(
        float((heard.rows["prediction_before"] == heard.rows["label"]).mean()), abs=0.2
    )
    again = Silent()
    run_audit(spec(), tmp_path / "run", resume=True, listener=again)
    assert again.begun == [("sa-mma", "none", 40, 40), ("sa-mma", "cs", 40, 40)]
    assert again.advanced == []


def test_one_image_is_enough(tmp_path: Path) -> None:
    summary = audit(spec(write_data(tmp_path / "one.npz", 1)), tmp_path / "run")
    assert summary["rows"][0]["n"] == 1
    assert summary["data"] | {"name": ""} == {
        "name": "", "samples": 1, "available": 1, "fit_samples": 0, "shape": [1, 6, 6],
        "class_names": summary["data"]["class_names"],
    }  # fmt: skip


def test_logits_are_the_kind_of_the_toy_models() -> None:
    assert models.load(_spec(rich_run()).model).kind is OutputKind.LOGITS


def test_searches_in_half_precision_leave_figures_of_the_model_itself(tmp_path: Path, monkeypatch) -> None:
    """Every figure is recomputed from the stored images in full precision."""
    asked, query = [], Mixed.query
    monkeypatch.setattr(Mixed, "query", lambda self, x, ids: asked.append(len(x)) or query(self, x, ids))
    recipes = ("sa-mma", "pgd-mma")
    half, full = (spec(precision=one, recipes=recipes, samples=16) for one in ("bfloat16", "float32"))
    audit(half, tmp_path / "half")
    queries = sum(
        RunFolder(tmp_path / "half").rows("sa-mma", name, "aware")["queries"].sum() for name in ("none", "cs")
    )
    assert (count := sum(asked)) >= queries
    audit(full, tmp_path / "full")
    assert sum(asked) == count
    target = models.load(half.model)
    for recipe in recipes:
        rows, exact = (RunFolder(tmp_path / name).rows(recipe, "none", "aware") for name in ("half", "full"))
        stored = RunFolder(tmp_path / "half").images(recipe, "none", 0)
        assert stored["ids"].tolist() == rows["id"].to_list()
        answers = target.query(stored["images"], stored["ids"])
        assert answers.labels.tolist() == rows["prediction_after"].to_list()
        np.testing.assert_allclose(answers.confidence, rows["confidence_after"], rtol=1e-6)
        assert rows["confidence_before"].to_list() == exact["confidence_before"].to_list()
