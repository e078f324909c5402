"""Detection: what is fitted on what, tables and files, resuming, and misfits told before the first attack."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from audit_cases import Silent, killed_at, model, scratch, write_data
from sklearn.metrics import roc_auc_score

from poise import data, detectors, metrics
from poise.errors import InputError, RunError
from poise.experiments.audit_spec import make_spec
from poise.experiments.defend_table import WORSE, Block, section
from poise.experiments.detect import run_detect
from poise.experiments.detect_spec import make_options, read_options
from poise.experiments.detect_table import NAMES, blocks, latex, markdown
from poise.experiments.run_folder import RunFolder

RECIPES = ("sa-uca", "fgsm")

ENDPOINT = Path(__file__).with_name("toy_endpoint.py")


@cache
def pictures() -> str:
    """The address of 60 images for the toy model."""
    return write_data(scratch() / "detected.npz", 60, seed=3)


def made(**given: Any):
    usual = {
        "model": model(), "data": pictures(), "recipes": RECIPES, "defences": ("none",), "eps": 0.2, "budget": 8,
        "samples": 40, "batch_size": 16, "bootstrap": 20,
    }  # fmt: skip
    return make_spec(**{**usual, **given})


def detect(out: Path, *, resume: bool = False, listener: Any = None, names=("input-mfs",), **given: Any):
    options = make_options(detectors=names, **given.pop("options", {}))
    return run_detect(made(**given), options, out, resume=resume, listener=listener or Silent(), command="poise detect")


@cache
def finished() -> Path:
    out = scratch() / "detect"
    detect(out)
    return out


def result() -> dict[str, Any]:
    return json.loads((finished() / "detect.json").read_text(encoding="utf-8"))


def test_every_fit_is_tested_on_every_attack() -> None:
    found = result()["detectors"]["input-mfs"]
    assert (found["fit"], found["test"]) == (25, 8)
    for fitted in RECIPES:
        assert found["trained"][fitted]["tested"].keys() == set(RECIPES)
        for figures in found["trained"][fitted]["tested"].values():
            assert figures.keys() == {*metrics.SEPARATION, "auroc_clean"}
            assert all(at["low"] <= at["high"] for at in figures.values())


def test_the_figures_are_those_of_the_parts_by_hand() -> None:
    clean = data.load(pictures())[:40].images
    run = RunFolder(finished())
    attacked = {recipe: torch.cat([run.images(recipe, "none", at)["images"] for at in range(3)]) for recipe in RECIPES}
    train, test = detectors.harder_split(40)
    first = detectors.make("input-mfs")
    first.fit(_target(), clean[train], None, attacked["fgsm"][train])
    for other in RECIPES:
        scores = np.concatenate([first.score(clean[test]), first.score(attacked[other][test])])
        area = roc_auc_score(np.repeat([0, 1], len(test)), scores)
        told = result()["detectors"]["input-mfs"]["trained"]["fgsm"]["tested"][other]["auroc"]["value"]
        assert told == pytest.approx(area, abs=1e-9)


def _target():
    from poise import models

    return models.load(model())


def test_attacks_are_described() -> None:
    about = result()["attacks"]["fgsm"]
    assert about["whitebox"]
    assert 0 < about["rms"] <= 0.2
    assert 0 <= about["labels_changed"] <= 1
    assert result()["attacks"]["sa-uca"]["labels_changed"] == 0


def test_a_section_shows_every_cell_as_it_is() -> None:
    block = Block("after all", ("a|b", f"ECE{WORSE}"), [("x|y", f"0.1{WORSE}")], 1)
    assert section(block) == "## After all\n\n| a\\|b | ECE\\* |\n| --- | ---: |\n| x\\|y | 0.1\\* |"


def test_files_are_written_and_tables_hold_every_attack() -> None:
    assert {"detect.json", "detect.md", "detect.tex", "detect.toml", "audit.toml"} <= {
        path.name for path in finished().iterdir()
    }
    first, matrix = blocks(result())
    assert [line[:2] for line in first.lines] == [("input-mfs", recipe) for recipe in RECIPES]
    assert first.head[2:] == tuple(NAMES.values())
    assert [line[0] for line in matrix.lines] == list(RECIPES)
    own = result()["detectors"]["input-mfs"]["trained"]["fgsm"]["tested"]["fgsm"]
    assert matrix.lines[1][2] == f"{own['auroc']['value']:.3f}"
    assert markdown(result()).count("\n| ") == 2 * (2 + len(RECIPES))
    assert latex(result()).count(r"\begin{tabular}") == 2
    assert (finished() / "detect.tex").read_text(encoding="utf-8") == latex(result())


def test_finished_attacks_are_reused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished(), out)
    before = {path: path.stat().st_mtime_ns for path in sorted((out / "adversarial").iterdir())}
    again = detect(out, resume=True, options={"scale": True})
    assert {path: path.stat().st_mtime_ns for path in sorted((out / "adversarial").iterdir())} == before
    assert again["attacks"] == result()["attacks"]
    assert read_options(out)["scale"] is True
    with pytest.raises(RunError, match="already holds this run; give --resume"):
        detect(out)


def test_a_killed_run_goes_on_to_the_same_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with killed_at(9, monkeypatch):
        detect(tmp_path / "run")
    assert not (tmp_path / "run" / "detect.json").exists()
    found = detect(tmp_path / "run", resume=True)
    assert found["detectors"] == result()["detectors"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"samples": 19}, "samples: detectors must have at least 20 images to fit and test on, got 19"),
        ({"names": ("mahalanobis",), "samples": 60}, "reference: mahalanobis needs labelled images that are not"),
        ({"names": ("lid",)}, "layers: must be named for a model without stages and convolutions"),
        ({"names": ("lid",), "options": {"layers": ("inner",)}}, "layers: must be parts of the model, got 'inner'"),
        ({"options": {"layers": ("inner",)}, "names": ("layer-mfs",)}, "layers: must be parts of the model"),
        ({"names": ("lib",)}, "detectors: must be one of the known names, got 'lib' (did you mean lid"),
        ({"names": ("lid", "lid")}, "detectors: must be at least one name, each once, got lid, lid"),
        ({"names": ()}, "detectors: must be at least one name, each once, got none"),
        ({"options": {"noise_std": -1.0}}, "noise_std"),
        ({"options": {"fit_share": 1.0}}, "fit_share"),
    ],
)
def test_misfits_are_told_before_the_first_attack(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        detect(tmp_path / "run", **given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "adversarial").exists()


def test_a_reference_without_a_class_is_told_before_the_first_attack(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "some.npz"
    np.savez(path, images=rng.integers(0, 256, (30, 6, 6), dtype=np.uint8), labels=np.arange(30) % 3)
    options = {"reference": f"npz:{path}", "layers": ("1",)}
    with pytest.raises(InputError, match="the reference must hold each of the 4 classes, got none of class 3"):
        detect(tmp_path / "run", names=("mahalanobis",), model=model("layered"), options=options)


def test_what_does_not_fit_the_model_is_told_before_the_first_attack(tmp_path: Path) -> None:
    """A reference of another shape; a detector that reads layers where only answers come."""
    path = tmp_path / "wide.npz"
    np.savez(path, images=np.zeros((8, 6, 7), np.uint8), labels=np.arange(8) % 4)
    with pytest.raises(InputError, match=r"reference: must have images of the shape of the data, got \(1, 6, 7\) and"):
        detect(
            tmp_path / "run", names=("mahalanobis",), model=model("layered"),
            options={"reference": f"npz:{path}", "layers": ("1",)},
        )  # fmt: skip
    with pytest.raises(InputError, match="detectors: lid reads layers, the model must be a module, got 'py:"):
        detect(tmp_path / "run", names=("lid",), model=f"py:{ENDPOINT}:endpoint", recipes=("sa-uca",))
    assert not (tmp_path / "run").exists()
