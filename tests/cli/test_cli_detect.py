"""poise detect: what it prints and writes, resuming, and bad input: one line, exit code 2."""

from __future__ import annotations

import json
import shlex
from functools import cache
from pathlib import Path

import pytest
from cli_cases import MODEL, Done, data, poise, scratch

from poise.detectors import DETECTORS

FAST = "--recipes sa-uca,fgsm --budget 10 --samples 30 --bootstrap 10 --batch-size 16 --quiet"
NAMES = "mahalanobis,input-mfs"


@cache
def detected() -> tuple[Path, Done]:
    out = scratch() / "detected"
    return out, poise("detect", *FAST.split(), "--detectors", NAMES, "--magnitudes", "0,0.01", "--out", out)


def refused(*words: object) -> str:
    done = poise("detect", *words)
    assert done.code == 2, done.err
    assert done.out == ""
    assert done.err.startswith("poise: error: ")
    assert done.err.count("\n") == 1
    return done.err


def test_the_tables_and_the_files() -> None:
    out, done = detected()
    assert done.code == 0, done.err
    assert done.err == ""
    lines = [line.split() for line in done.out.splitlines()]
    for name in NAMES.split(","):
        for recipe in ("sa-uca", "fgsm"):
            assert any(line[:2] == [name, recipe] for line in lines)
        assert any(line[:2] == [f"{name}:", "AUROC"] for line in lines)
    assert all((out / f"detect.{end}").exists() for end in ("json", "md", "tex", "toml"))
    found = json.loads((out / "detect.json").read_text(encoding="utf-8"))
    assert found["reference"]["samples"] == 900
    assert found["detectors"]["mahalanobis"]["layers"] == ["0", "2"]


def test_every_detector_runs_on_the_embedded_digits(tmp_path: Path) -> None:
    done = poise("detect", *FAST.replace("sa-uca,fgsm", "fgsm").split(), "--out", tmp_path / "run", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert tuple(found["detectors"]) == tuple(DETECTORS)
    assert tuple(found["attacks"]) == ("fgsm",)


def test_it_resumes_without_its_options_and_the_command_it_names_gives_the_same(tmp_path: Path) -> None:
    out, _ = detected()
    first = json.loads((out / "detect.json").read_text(encoding="utf-8"))
    before = {path: path.stat().st_mtime_ns for path in (out / "adversarial").iterdir()}
    done = poise("detect", "--out", out, "--resume", "--json", "--quiet")
    assert done.code == 0, done.err
    assert json.loads(done.out)["detectors"] == first["detectors"]
    assert {path: path.stat().st_mtime_ns for path in (out / "adversarial").iterdir()} == before
    words = shlex.split(first["command"])
    assert words[:2] == ["poise", "detect"]
    done = poise(*words[1:], "--out", tmp_path / "again", "--json", "--quiet")
    assert json.loads(done.out)["detectors"] == first["detectors"]


def test_progress_goes_to_the_error_stream(tmp_path: Path) -> None:
    words = FAST.replace(" --quiet", "").replace("sa-uca,fgsm", "fgsm").split()
    done = poise("detect", *words, "--detectors", "input-mfs", "--out", tmp_path / "run", "--json")
    assert done.code == 0
    assert "input-mfs" in done.err
    assert json.loads(done.out)["samples"] == 30


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--detectors", "lib"], "detectors: must be one of the known names, got 'lib' (did you mean lid"),
        (["--recipes", "sqare"], "did you mean square"),
        (["--samples", "19"], "samples: detectors must have at least 20 images to fit and test on, got 19"),
        (["--layers", "9"], "layers: must be parts of the model, got '9'"),
        (["--noise-std", "much"], "noise-std: must be a number such as 0.05 or 8/255, got 'much'"),
        (["--noise-std", "-1"], "noise_std"),
        (["--fit-share", "0"], "fit_share"),
        (["--magnitudes", "0,-1"], "magnitudes must be at least 0 and finite, got (0.0, -1.0)"),
        (["--resume"], "resume: needs --out"),
        (["--model", MODEL, "--data", data()], "must be named for a model without stages and convolutions"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    usual = [] if words == ["--resume"] else ["--budget", "5", "--samples", "30", "--out", str(tmp_path / "run")]
    assert message in refused(*usual, *words)
    assert not (tmp_path / "run" / "adversarial").exists()


def test_help_has_examples_and_the_list_names_every_detector() -> None:
    done = poise("detect", "--help")
    assert done.code == 0
    assert "poise detect --out DIR --resume" in done.out
    done = poise("list", "detectors")
    assert [line.split()[0] for line in done.out.splitlines()] == list(DETECTORS)
