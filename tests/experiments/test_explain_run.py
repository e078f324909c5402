"""`explain`: tables in the run folder, resumable, added to a finished run, and a line for what cannot be made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from audit_cases import Silent, assert_same_run, audit, data, killed_at, model, spec, write_data
from safetensors.numpy import load_file
from toy_models import Convolved

from poise import metrics, report
from poise.errors import MissingExtraError
from poise.experiments import explain, explain_cams, run_audit
from poise.experiments.explain_cams import cams, map_layer
from poise.experiments.run_folder import RunFolder

FILES = {
    "explain.json",
    "pictures.parquet",
    "pictures.safetensors",
    "scores.parquet",
    "cams.parquet",
    "features.parquet",
}
RECIPES = ("sa-mma", "pgd-mma")


def explained(**given: Any) -> Any:
    return spec(**{"model": model("convolved"), "recipes": RECIPES, "explain": True, **given})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("explained") / "run"
    audit(explained(), out)
    return out


def stored(run: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet(run / "explain" / f"{name}.parquet")


def test_the_folder_holds_everything(run: Path) -> None:
    assert {path.name for path in (run / "explain").iterdir()} == FILES
    assert report.read_explanation(run).notes == []
    assert (run / "traces").is_dir(), "explanations keep traces"


def test_similarities_agree_with_maps_made_by_hand(run: Path) -> None:
    """Every image and recipe: the stored similarity is that of the stored images' maps, whatever the chunks."""
    network, folder = Convolved(), RunFolder(run)
    clean = torch.from_numpy(np.load(data().removeprefix("npz:"))["images"])[:, None].float() / 255
    layer = map_layer(network, clean[:2])
    ids = folder.rows("sa-mma", "none", "aware")["id"].to_list()
    before = cams(network, layer, clean[ids])
    for recipe in RECIPES:
        attacked = torch.cat([folder.images(recipe, "none", k)["images"] for k in range(3)])
        after = cams(network, layer, attacked)
        rows = stored(run, "cams").filter(pl.col("recipe") == recipe)
        assert rows["id"].to_list() == ids
        for name, metric in (("pearson", metrics.map_correlation), ("overlap", metrics.map_overlap)):
            expected = metric(before, after)
            assert rows[name].fill_null(np.nan).to_numpy() == pytest.approx(expected, abs=1e-4, nan_ok=True)


def test_pictures_are_the_images_that_moved_most(run: Path) -> None:
    rows, folder = stored(run, "pictures"), RunFolder(run)
    tables = [folder.rows(recipe, "none", "aware") for recipe in RECIPES]
    moved = {
        name: max(float(abs(t["confidence_after"][k] - t["confidence_before"][k])) for t in tables)
        for k, name in enumerate(tables[0]["id"].to_list())
    }
    most = set(sorted(moved, key=lambda name: -moved[name])[:4])
    assert set(rows["id"].to_list()) == most
    assert rows.height == 4 * len(RECIPES)
    images = load_file(run / "explain" / "pictures.safetensors")
    for recipe in RECIPES:
        part = rows.filter(pl.col("recipe") == recipe)
        change = metrics.delta_w(images["clean"], images[f"attacked.{recipe}"])
        assert part["delta_w"].to_numpy() == pytest.approx(change, abs=1e-6)
        assert (
            images[f"cam.{recipe}"].shape
            == images["cam"].shape
            == images["clean"].shape[:1] + images["clean"].shape[2:]
        )


def test_scores_are_the_true_class_probabilities(run: Path) -> None:
    scores = stored(run, "scores")
    clean = np.load(data().removeprefix("npz:"))
    with torch.no_grad():
        p = Convolved()(torch.from_numpy(clean["images"])[:, None].float() / 255).double().softmax(dim=1).numpy()
    for row in scores.filter(pl.col("defence") == "none").iter_rows(named=True):
        truth = int(clean["labels"][row["id"]])
        assert row["probability"] == pytest.approx(p[row["id"], truth], abs=1e-5)
        assert row["right"] == (p[row["id"]].argmax() == truth)
    assert scores["defence"].unique(maintain_order=True).to_list() == ["none", "cs"]


def test_explanations_change_no_other_table_and_may_come_later(run: Path, tmp_path: Path) -> None:
    plain, made = tmp_path / "plain", explained()
    audit(made.model_copy(update={"explain": False}), plain)
    assert_same_run(plain, run)
    assert not (plain / "explain").exists()
    audit(made, plain, resume=True)
    for name in ("cams", "features", "pictures", "scores"):
        assert stored(plain, name).equals(stored(run, name)), name
    assert "explain = true" in (plain / "audit.toml").read_text()


def test_a_killed_run_goes_on_and_a_finished_one_explains_nothing_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, made = tmp_path / "run", explained(recipes=("pgd-mma",), defences=("none",), batch_size=64)
    for moment in (6, 2, 3):
        with killed_at(moment, monkeypatch):
            audit(made, out, resume=True)
        assert not (out / "explain" / "explain.json").exists()
    audit(made, out, resume=True)
    assert {path.name for path in (out / "explain").iterdir()} == FILES
    mine = stored(run, "cams").filter(pl.col("recipe") == "pgd-mma")
    assert stored(out, "cams")["overlap"].to_list() == pytest.approx(mine["overlap"].to_list(), nan_ok=True)
    monkeypatch.setattr(explain, "map_layer", None)
    audit(made, out, resume=True)


def notes(made: Any, out: Path) -> list[str]:
    listener = Silent()
    run_audit(made, out, resume=False, listener=listener)
    found = [line for line in listener.notes if line.startswith("explain: ")]
    assert [f"explain: {line}" for line in report.read_explanation(out).notes] == found
    html = report.write(out).read_text(encoding="utf-8")
    assert all(line.removeprefix("explain: ").split(",")[0] in html for line in found)
    assert 'data-base="explain-maps"' in html
    assert 'data-base="explain-scores"' in html
    return found


def test_a_black_box_gets_a_line_instead(tmp_path: Path) -> None:
    """And pictures and scores all the same."""
    for number, given in enumerate(
        ({"model": model("scores_only", ""), "recipes": ("sa-mma",)}, {"journal": True, "recipes": ("sa-mma",)})
    ):
        made = explained(**given, defences=("none",))
        found = notes(made, tmp_path / str(number))
        if made.journal:
            assert found == [
                "explain: Grad-CAM and features: left out, they need a PyTorch module that is not journaled"
            ]


def test_a_network_without_places_and_linear_layers_gets_two_lines(tmp_path: Path) -> None:
    assert notes(explained(model=model("linear"), defences=("none",), recipes=("sa-mma",)), tmp_path / "run") == [
        "explain: Grad-CAM: left out, no layer of the model has places (no convolution, no patch tokens)",
        "explain: features: left out, features: the model must have a linear layer, got none",
    ]


def test_without_convolution_the_features_are_there(tmp_path: Path) -> None:
    found = notes(explained(model=model("layered"), defences=("none",), recipes=("sa-mma",)), tmp_path / "run")
    assert len(found) == 1
    assert report.read_explanation(tmp_path / "run").features is not None


def test_one_image_is_explained_as_far_as_it_goes(tmp_path: Path) -> None:
    source = write_data(tmp_path / "one.npz", 1)
    found = notes(explained(data=source, defences=("none",), recipes=("sa-mma",)), tmp_path / "run")
    assert found == [
        "explain: features: left out, features: must be at least 8 different points of 2 features, got (2, 5)"
    ]


def test_a_missing_library_is_told_before_any_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain_cams, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"needs the extra 'explain'"):
        audit(explained(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_page_shows_every_figure(run: Path) -> None:
    html = report.write(run).read_text(encoding="utf-8")
    for base in ("maps", "cams", "cam-0", "cam-1", "tsne", "pca", "scores"):
        assert f'data-base="explain-{base}"' in html, base
        assert f'"explain-{base}.0"' in html, base
    assert "Grad-CAM is read at layer “body”, of 40 images." in html
