"""Members of other libraries in an audit: rows beside ours, misfits told before the first attack."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest
from cli_cases import data, poise

NET = """
import torch
from torch import nn
from toys import SmallCNN

def net():
    return SmallCNN(channels=1, classes=4, size=6)
"""


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1])
    fixed = "--defenses none --eps 0.2 --budget 6 --samples 12 --bootstrap 10 --quiet --json"
    return ["--model", f"py:{tmp_path / 'net.py'}:net?num_classes=4", "--data", data(), *fixed.split()]


def test_their_rows_stand_beside_ours(options: list[str], tmp_path: Path, torchattacks: ModuleType) -> None:
    recipes = ["sa-mma", "art-deepfool", "foolbox-pgd", "torchattacks-pgd"]
    out = tmp_path / "run"
    done = poise("audit", *options, "--recipes", ",".join(recipes), "--out", out)
    assert done.code == 0, done.err
    rows = {row["recipe"]: row for row in json.loads(done.out)["rows"]}
    assert list(rows) == recipes
    for name in recipes[1:]:
        table = pl.concat([pl.read_parquet(path) for path in (out / "samples").glob(f"*{name}*.parquet")])
        assert len(table) == 12
        assert table["linf"].max() <= 0.2 + 1e-6
        right = table.filter(pl.col("prediction_before") == pl.col("label"))
        assert len(right) > 0
        assert (right["queries"] > 2).all(), "a library's passes are not counted"
        assert (right["gradients"] > 0).all()
        assert rows[name]["metrics"]["accuracy_after"]["value"] <= rows[name]["metrics"]["accuracy_before"]["value"]
    again = poise("audit", "--out", out, "--resume", "--quiet", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["rows"] == json.loads(done.out)["rows"]


@pytest.mark.parametrize(
    ("recipe", "more", "told"),
    [
        ("foolbox-vat", [], "Foolbox vat: the norm must be l2, got linf"),
        ("torchattacks-fgsm", ["--norm", "l2"], "torchattacks fgsm: the norm must be linf, got l2"),
        ("foolbox-pgdd", [], "recipe: must be one of the known names, got 'foolbox-pgdd' (did you mean foolbox-pgd"),
    ],
)
def test_misfits_are_told_first(
    recipe: str, more: list[str], told: str, options: list[str], tmp_path: Path, torchattacks: ModuleType
) -> None:
    done = poise("audit", *options, *more, "--recipes", recipe, "--out", tmp_path / "run")
    assert done.code == 2
    assert done.err.startswith(f"poise: error: {told}")
    assert done.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_missing_library_is_told_first(options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poise.experiments.prepare.find_spec", lambda name: None)
    for recipe, extra in (("foolbox-pgd", "peers"), ("torchattacks-pgd", "torchattacks")):
        done = poise("audit", *options, "--recipes", recipe, "--out", tmp_path / "run")
        assert (done.code, done.err) == (
            2,
            f"poise: error: recipes: {recipe} needs the extra '{extra}': pip install 'poise[{extra}]'\n",
        )
    assert "torchattacks" not in sys.modules
