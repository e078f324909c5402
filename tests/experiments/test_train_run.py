"""A training run in a folder: what it leaves, what it refuses, and two processes against one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

import poise
from poise.errors import InputError, RunError
from poise.experiments.train import run_train
from poise.experiments.train_spec import TrainSpec, differences, make_train_spec, read_train_spec
from poise.metrics import ece
from poise.training import training_recipe

FAST = {"epochs": 2, "batch_size": 50, "augment": [], "optimizer.lr": 0.05}


def spec(recipe: str = "standard", changes: dict[str, Any] | None = None, **given: Any) -> TrainSpec:
    usual = {"model": "builtin:digits", "data": "builtin:digits", "workers": 0}
    return make_train_spec(recipe=training_recipe(recipe, FAST | (changes or {})), **(usual | given))


def test_a_run_from_start_to_its_audit_address(tmp_path: Path) -> None:
    out = tmp_path / "a run"  # with a space, which the address must survive
    summary = run_train(spec("label-smoothing"), out)
    assert {path.name for path in out.iterdir()} == {
        ".lock", "train.toml", "last.pt", "best.safetensors", "model.safetensors", "metrics.parquet", "summary.json",
    }  # fmt: skip
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["data"] == {"name": "builtin:digits?split=train", "train": 810, "val": 90}
    target = poise.models.load(summary["address"])
    held_out = poise.data.split(poise.data.load("builtin:digits", split="train"), (0.9, 0.1))[1]
    answer = target.query(held_out.images, held_out.ids)
    right = (answer.labels == held_out.labels).numpy().astype(float)
    assert summary["best"]["val_accuracy"] == pytest.approx(right.mean())
    assert summary["best"]["val_ece"] == pytest.approx(ece(answer.confidence.numpy(), right))


@pytest.mark.parametrize(
    ("recipe", "model"),
    [("pni", "builtin:digits"), ("trs", "builtin:digits"), ("feature-denoising", "py")],
)
def test_variants_are_made_saved_and_found_again(recipe: str, model: str, tmp_path: Path) -> None:
    if model == "py":
        file = tmp_path / "net.py"
        file.write_text(
            "from torch import nn\nfrom collections import OrderedDict\n"
            "def make():\n    stage = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())\n"
            "    return nn.Sequential(OrderedDict(layer1=stage, flat=nn.Flatten(), head=nn.Linear(256, 10)))\n"
        )
        model = f"py:{file}:make"
    changes = {"epochs": 1} | ({} if recipe == "trs" else {"method.steps": 1})
    summary = run_train(spec(recipe, changes, model=model), tmp_path / "run")
    variant = training_recipe(recipe).variant
    assert f"variant={variant}" in summary["address"]
    target = poise.models.load(summary["address"])
    assert target.num_classes == 10
    with pytest.raises(InputError, match="do not fit"):
        poise.models.load(summary["address"].replace(f"&variant={variant}", ""))


def test_the_spec_is_read_back_as_it_was(tmp_path: Path) -> None:
    given = spec("uat-smooth", {"method.eps": "4/255", "clip_norm": 1.0}, seed=3)
    run_train(given, tmp_path)
    read, recorded = read_train_spec(tmp_path / "train.toml")
    assert read == given
    assert set(recorded) == {"data", "val"}
    assert read.recipe.method["eps"] == 4 / 255


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first = run_train(spec(), tmp_path)
    before = (tmp_path / "last.pt").read_bytes()
    again = run_train(spec(), tmp_path, resume=True)
    assert (tmp_path / "last.pt").read_bytes() == before
    assert again == first


def test_more_epochs_are_another_run(tmp_path: Path) -> None:
    run_train(spec(), tmp_path)
    with pytest.raises(RunError, match=r"it holds another \(recipe.epochs: 2 there, 3 given\)"):
        run_train(spec(changes={"epochs": 3}), tmp_path, resume=True)
    with pytest.raises(RunError, match="already holds this run; give --resume"):
        run_train(spec(), tmp_path)
    with pytest.raises(RunError, match=r"it holds another \(seed: 0 there, 1 given\)"):
        run_train(spec(seed=1), tmp_path, resume=True)


def test_where_a_run_happens_may_change(tmp_path: Path) -> None:
    one, other = spec(), spec(workers=1, save_minutes=0.0)
    assert differences(one, other) == []
    run_train(one, tmp_path)
    assert run_train(other, tmp_path, resume=True)["epochs"] == 2


def test_other_images_under_the_same_name_are_noticed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    archive = tmp_path / "set.npz"

    def write(value: int) -> None:
        images = np.full((40, 8, 8), value, dtype=np.uint8)
        np.savez(archive, images=images, labels=rng.permutation(np.arange(40) % 10))

    write(1)
    run_train(spec(data=f"npz:{archive}"), tmp_path / "run")
    write(2)
    with pytest.raises(RunError, match="was begun with other data"):
        run_train(spec(data=f"npz:{archive}"), tmp_path / "run", resume=True)


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match=r"holds other files \('thesis.tex'\)"):
        run_train(spec(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_processes_give_the_same_loss_curve_as_one(tmp_path: Path) -> None:
    """The same global batches, seeds and attacks; sums in another order, so equal to rounding."""
    changes = {"epochs": 2, "batch_size": 90, "method.eps": 0.1, "method.steps": 2, "augment": ["crop"]}
    one = spec("uat-smooth", changes)
    run_train(one, tmp_path / "one")
    run_train(one.model_copy(update={"devices": 2}), tmp_path / "two")
    left, right = (pl.read_parquet(tmp_path / name / "metrics.parquet") for name in ("one", "two"))
    for column in ("loss", "val_accuracy", "val_confidence", "val_ece", "val_nll", "accuracy_shown", "passes"):
        assert right[column].to_list() == pytest.approx(left[column].to_list(), abs=2e-5), column
    assert left["loss"][1] != left["loss"][0]
    assert right["step"].to_list() == left["step"].to_list()


def _folder(root: Path, classes: dict[str, int], size: int = 8) -> Path:
    rng = np.random.default_rng(0)
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for at in range(count):
            Image.fromarray(rng.integers(0, 256, (size, size), dtype=np.uint8)).save(root / name / f"{at}.png")
    return root


def test_bad_data_is_one_line(tmp_path: Path) -> None:
    cases = {
        f"folder:{_mkdir(tmp_path / 'empty')}": "must hold one subfolder per class, got none",
        f"folder:{_folder(tmp_path / 'hole', {'a': 2, 'b': 0})}": "class folder 'b' must hold images",
        f"folder:{_folder(tmp_path / 'wide', {'a': 10, 'b': 10}, size=9)}": "model: must accept images of shape 1×9×9",
        "builtin:digits?split=none": "split must be one of",
        "npz:nowhere.npz": "must be an existing file",
    }
    for data, message in cases.items():
        with pytest.raises(InputError, match=message) as raised:
            run_train(spec(data=data), tmp_path / "run")
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "run" / "train.toml").exists()


def _mkdir(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": "cuda:99"}, "device: must be one that this machine has, got 'cuda:99'"),
        ({"device": "abacus"}, "device: must be one that this machine has, got 'abacus'"),
        ({"model": "builtin:digits?variant=trs", "recipe": "pni"}, "recipe 'pni' needs variant=pni, got variant=trs"),
        ({"model": "builtin:digits?num_classes=3"}, "10 classes|below the model's 3 classes"),
        ({"model": "onnx:net.onnx"}, "onnx"),
        ({"val": "builtin:digits?split=val&samples=3"}, "query key"),
        ({"recipe": "trs", "model": "builtin:digits?variant=trs&weights=nowhere.pth"}, "must be an existing file"),
    ],
)
def test_bad_input_is_one_line(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        run_train(spec(given.pop("recipe", "standard"), **given), tmp_path / "run")


def test_devices_that_cannot_be_meant_together(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^devices: must be 1 with one device named, got 2 with 'cpu:0'$"):
        run_train(spec(device="cpu:0", devices=2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_whose_recipe_is_gone_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "train.toml"
    for recipe in ("", 'recipe = "standard"\n'):
        path.write_text(recipe + 'model = "builtin:digits"\n')
        with pytest.raises(RunError, match=r"^train.toml: '.*train.toml' must hold a table \[recipe\], found none$"):
            read_train_spec(path)


def test_half_precision_is_refused_where_lengths_of_gradients_are_measured() -> None:
    descent = {"update.name": "common-descent"}
    with pytest.raises(InputError, match="precision: must be other than 16-mixed with the update 'common-descent'"):
        spec("uat-smooth", descent, precision="16-mixed")
    assert spec("uat-smooth", descent, precision="bf16-mixed").precision == "bf16-mixed"
    assert spec(precision="16-mixed").precision == "16-mixed"


def test_a_checkpoint_of_another_architecture(tmp_path: Path) -> None:
    """Weights to begin from that are another network's."""
    summary = run_train(spec(changes={"epochs": 1}), tmp_path / "one")
    weights = summary["weights"]["best"]
    with pytest.raises(InputError, match="do not fit"):
        run_train(spec(model=f"builtin:lenet5-mnist?weights={weights}"), tmp_path / "two")


@pytest.mark.parametrize(
    ("field", "value"),
    [("val_share", 1.0), ("seed", -1), ("devices", 0), ("precision", "8-bit"), ("workers", -1), ("epochs", 3)],
)
def test_bad_specs_name_the_field(field: str, value: Any) -> None:
    with pytest.raises(InputError, match=field):
        spec(**{field: value})
