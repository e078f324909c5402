"""poise defend: what it prints and writes, and bad input: one line, exit code 2."""

from __future__ import annotations

import json
import shlex
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from audit_cases import write_data
from cli_cases import MODEL, Done, poise, scratch

from poise import defenses

FAST = "--recipes sa-uca --defenses ts,cs --eps 0.1 --budget 6 --samples 8 --bootstrap 10 --batch-size 4 --quiet"


@cache
def data() -> str:
    """The address of 40 images on which the model is about as sure as it should be."""
    return write_data(scratch() / "calibrated.npz", 40)


def address() -> list[str]:
    return ["--model", MODEL, "--data", data()]


@cache
def compared() -> tuple[Path, Done]:
    out = scratch() / "compared"
    return out, poise("defend", "compare", *address(), *FAST.split(), "--fit-data", data(), "--out", out)


@cache
def archive() -> Path:
    rng = np.random.default_rng(0)
    path, labels = scratch() / "answers.npz", rng.integers(0, 3, 80)
    np.savez(path, logits=2 * rng.normal(size=(80, 3)) + 2 * np.eye(3)[labels], labels=labels)
    return path


def refused(*words: object) -> str:
    done = poise("defend", *words)
    assert done.code == 2, done.err
    assert done.out == ""
    assert done.err.startswith("poise: error: ")
    assert done.err.count("\n") == 1
    return done.err


def test_compare_shows_both_columns_and_writes_its_files() -> None:
    out, done = compared()
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    for name in ("ts", "cs"):
        for column in ("unaware", "adaptive"):
            assert any(line.split()[:2] == [name, column] for line in lines)
    assert "ms per image" in done.out
    found = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    assert tuple(found["defences"]) == ("none", "ts", "cs")
    assert (out / "compare.md").exists()
    assert (out / "summary.json").exists()


def test_the_command_it_names_gives_the_same_comparison(tmp_path: Path) -> None:
    out, _ = compared()
    first = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    words = shlex.split(first["command"])
    assert words[:3] == ["poise", "defend", "compare"]
    done = poise(*words[1:], "--out", tmp_path / "again", "--json", "--quiet")
    assert done.code == 0, done.err
    again = json.loads(done.out)
    for name, entry in first["defences"].items():
        assert {**again["defences"][name], "ms_per_image": 0} == {**entry, "ms_per_image": 0}


def test_compare_resumes_without_its_options() -> None:
    out, _ = compared()
    assert "already holds this run" in refused("compare", *address(), *FAST.split(), "--fit-data", data(), "--out", out)
    done = poise("defend", "compare", "--out", out, "--resume", "--json", "--quiet")
    assert done.code == 0, done.err
    assert json.loads(done.out)["spec"]["recipes"] == ["sa-uca"]


@pytest.mark.filterwarnings("default:Dent")
def test_all_defences_of_the_registry_are_compared(tmp_path: Path) -> None:
    words = "--defenses all --recipes sa-uca --eps 0.1 --budget 3 --samples 8 --bootstrap 3 --quiet --json"
    done = poise("defend", "compare", *address(), "--fit-data", data(), *words.split(), "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert json.loads(done.out)["defences"].keys() == defenses.summaries().keys()


@pytest.mark.parametrize("name", ["ts", "vector"])
def test_fit_from_saved_logits_and_export_with_another_models_k(tmp_path: Path, name: str) -> None:
    out = tmp_path / f"{name}.safetensors"
    done = poise("defend", "fit", name, "--logits", archive(), "--out", out, "--bootstrap", "5")
    assert done.code == 0, done.err
    assert "fitted on 40 samples, measured on 40" in done.out
    assert defenses.provenance(out)["fitted_on"]["n"] == 40
    told = refused("export", *address(), "--defense", out, "--out", tmp_path / "model.pt2")
    assert "fitted for 3 classes" in told


def test_fit_from_a_model_then_export(tmp_path: Path) -> None:
    out = tmp_path / "ts.safetensors"
    done = poise("defend", "fit", "ts", *address(), "--out", out, "--bootstrap", "5", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["measured_on"]["n"] == 20
    words = ("defend", "export", *address(), "--defense", out, "--out", tmp_path / "model.pt2")
    done = poise(*words)
    assert done.code == 0, done.err
    assert "on 40 images: probabilities within" in done.out
    assert "give --force" in refused(*words[1:])
    done = poise(*words, "--force", "--samples", "10", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["images"] == 10
    assert json.loads(done.out)["probability"] <= 1e-5


def test_bad_fits_are_one_line(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert "did you mean ts" in refused("fit", "tss", "--logits", archive(), "--out", out)
    assert ".safetensors" in refused("fit", "ts", "--logits", archive(), "--out", tmp_path / "out.pt")
    assert "without --model" in refused("fit", "ts", "--logits", archive(), "--model", MODEL, "--out", out)
    np.savez(tmp_path / "no-labels.npz", logits=np.zeros((8, 3)))
    assert "array labels" in refused("fit", "ts", "--logits", tmp_path / "no-labels.npz", "--out", out)
    np.savez(tmp_path / "one.npz", logits=np.zeros((8, 3)), labels=np.zeros(8, dtype=int))
    assert "two classes" in refused("fit", "ts", "--logits", tmp_path / "one.npz", "--out", out)
    np.savez(tmp_path / "k.npz", logits=np.zeros((8, 3)), labels=np.arange(8))
    assert "3 classes" in refused("fit", "ts", "--logits", tmp_path / "k.npz", "--out", out)
    other = MODEL.split(":linear")[0] + ":needs_large?num_classes=4"
    assert "must accept images" in refused("fit", "ts", "--model", other, "--data", data(), "--out", out)
    assert list(tmp_path.glob("out*")) == []
    out.write_bytes(b"mine")
    assert "give --force" in refused("fit", "ts", "--logits", archive(), "--out", out)
    assert out.read_bytes() == b"mine"
    done = poise("defend", "fit", "ts", "--logits", archive(), "--out", out, "--bootstrap", "5", "--force")
    assert done.code == 0, done.err


def test_bad_comparisons_and_exports_are_one_line(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert "did you mean" in refused("compare", *address(), "--defenses", "splins", "--out", out)
    assert "recipe" in refused("compare", *address(), "--recipes", "nonsense", "--out", out)
    assert "needs --out" in refused("compare", "--resume")
    assert "found none" in refused("compare", "--resume", "--out", out)
    assert not out.exists()
    assert ".onnx or .pt2" in refused("export", "--defense", "x", "--out", tmp_path / "x.bin")
    assert "must be a file" in refused("export", *address(), "--defense", "x", "--out", tmp_path / "x.pt2")


def test_onnx_without_its_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from poise.defenses import export

    def missing(name: str) -> None:
        raise ImportError(name)

    out = tmp_path / "ts.safetensors"
    assert poise("defend", "fit", "ts", *address(), "--out", out, "--bootstrap", "5").code == 0
    monkeypatch.setattr(export, "import_module", missing)
    told = refused("export", *address(), "--defense", out, "--out", tmp_path / "model.onnx")
    assert "needs the extra 'onnx'" in told
    assert not (tmp_path / "model.onnx").exists()


def test_help_has_an_example_for_every_command() -> None:
    assert "compare" in poise("defend").out
    for name in ("fit", "compare", "export"):
        done = poise("defend", name, "--help")
        assert done.code == 0
        assert f"poise defend {name} " in done.out
