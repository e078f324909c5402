"""poise certify: the folder, the table, exit codes, and a run that is interrupted anywhere and gone on with."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from cli_cases import MODEL, Done, data, poise, scratch
from polars.testing import assert_frame_equal

from poise.certify import Stream
from poise.experiments import certify as experiment
from poise.experiments import certify_attack, files
from poise.experiments.certify_folder import CertifyFolder
from poise.targets import FunctionTarget

FILES = {"certify.toml", "samples", "attacks", "summary.json", "certify.md", "certify.html", ".lock"}


def fast(*more: str) -> list[str]:
    words = "--sigma 0.2 --n 5000 --n0 50 --alpha 0.01 --radii 0,0.1,1/4 --samples 20 --attack-steps 3 --attack-draws 4"
    return ["--model", MODEL, "--data", data(), *words.split(), "--bootstrap", "20", "--quiet", *more]


@cache
def finished() -> Path:
    """A finished run of `fast()`."""
    out = scratch() / "certified"
    done = poise("certify", *fast(), "--out", out)
    assert done.code == 0, done.err
    return out


def tables(out: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    return tuple(  # type: ignore[return-value]
        pl.concat([pl.read_parquet(path) for path in sorted((out / name).glob("*.parquet"))])
        for name in ("samples", "attacks")
    )


def assert_same(out: Path, other: Path) -> None:
    for one, two in zip(tables(out), tables(other), strict=True):
        assert_frame_equal(one, two, check_exact=True)
    mine, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (out, other))
    assert mine["rows"] == theirs["rows"]


def test_what_a_run_leaves() -> None:
    out = finished()
    assert {path.name for path in out.iterdir()} - {"state"} == FILES
    assert not list((out / "state").glob("*")) if (out / "state").exists() else True
    samples, attacks = tables(out)
    assert len(samples) == 20 * 3
    assert len(attacks) == 20 * 2 * 2
    assert (samples["lower"] <= samples["confidence"]).all()
    assert (samples["upper"] >= samples["confidence"]).all()
    assert (attacks["l2"] <= attacks["radius"] * (1 + 1e-6)).all()
    spec = tomllib.loads((out / "certify.toml").read_text())
    assert spec["radii"] == [0, 0.1, 0.25]
    assert set(spec["recorded"]) >= {"data", "weights"}


def test_the_summary_follows_from_the_tables() -> None:
    summary = json.loads((finished() / "summary.json").read_text())
    samples, attacks = tables(finished())
    for row in summary["rows"]:
        here = samples.filter(pl.col("radius") == row["radius"])
        kept, shown = here.filter(~pl.col("abstained")), row["metrics"]
        assert shown["lower_abstentions_zero"]["value"] == pytest.approx(kept["lower"].sum() / 20)
        assert shown["lower_without_abstentions"]["value"] == pytest.approx(kept["lower"].mean())
        assert shown["lower"]["value"] == pytest.approx(here["lower"].mean())
        right = here["certified"] & (here["prediction"] == here["label"])
        assert shown["certified_accuracy"]["value"] == right.sum() / 20
        assert shown["certified_accuracy"]["low"] <= right.sum() / 20 <= shown["certified_accuracy"]["high"]
        if shown["brier_certified_images"]["value"] is not None:
            assert shown["ece_found_certified_images"]["value"] <= shown["ece_bound_certified_images"]["value"] + 1e-9
            assert shown["brier_certified_images"]["value"] <= shown["brier_all_images"]["value"] + 1e-9
        down = attacks.filter((pl.col("radius") == row["radius"]) & ~pl.col("up"))
        if row["radius"]:
            assert shown["attacked_down"]["value"] == pytest.approx(down["confidence"].mean())
            assert shown["attacked_down"]["value"] < shown["attacked_up"]["value"]
            assert row["attacks_outside_the_bounds"] == 0


def test_table_and_json(tmp_path: Path) -> None:
    done = poise("certify", *fast("--no-attack", "--samples", "4"), "--out", tmp_path / "a")
    assert done.code == 0, done.err
    assert done.err == ""
    assert "4 images of npz:" in done.out
    assert done.out.splitlines()[-1] == f"page     {tmp_path / 'a' / 'certify.html'}"
    lines = [line for line in done.out.splitlines() if line.lstrip().startswith(("0 ", "0.1 ", "0.25 "))]
    assert len(lines) == 3
    as_json = poise("certify", *fast("--no-attack", "--samples", "4", "--json"), "--out", tmp_path / "b")
    summary = json.loads(as_json.out)
    assert summary["rows"] == json.loads((tmp_path / "a" / "summary.json").read_text())["rows"]
    assert summary["judged_with"] is None


def test_the_margin_has_no_calibration(tmp_path: Path) -> None:
    done = poise("certify", *fast("--measure", "margin", "--samples", "4", "--json"), "--out", tmp_path / "margin")
    assert done.code == 0, done.err
    (first, *_) = json.loads(done.out)["rows"]
    assert "brier_all_images" not in first["metrics"]
    assert "mean margin" in (tmp_path / "margin" / "certify.md").read_text()


class Stop:
    """Interrupts the run at the k-th call of what it stands for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, k: int) -> None:
        real, self.calls = getattr(owner, name), 0

        def counted(*given, **named):
            self.calls += 1
            if self.calls == k:
                raise KeyboardInterrupt
            return real(*given, **named)

        monkeypatch.setattr(owner, name, counted)


def interrupted(tmp_path: Path, owner: object, name: str, k: int) -> Done:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "SAVE_SECONDS", 0.0)
        Stop(patch, owner, name, k)
        return poise("certify", *fast(), "--out", tmp_path / "run")


@pytest.mark.parametrize(
    ("owner", "name", "k"),
    [
        (Stream, "step", 2),
        (Stream, "step", 100),
        (Stream, "_count", 100),
        (Stream, "step", 330),
        (experiment, "certificates", 1),
        (files, "write_parquet", 2),
        (certify_attack, "attack", 1),
        (certify_attack, "judge", 6),
        (files, "write_json", 1),
    ],
)
def test_interrupted_and_gone_on_with(tmp_path: Path, owner: object, name: str, k: int) -> None:
    out = tmp_path / "run"
    done = interrupted(tmp_path, owner, name, k)
    assert done.code == 130
    assert done.err.strip() == f"interrupted; what was counted is kept, go on with: poise certify --out {out} --resume"
    again = poise("certify", "--out", out, "--resume", "--quiet")
    assert again.code == 0, again.err
    assert_same(out, finished())


def test_what_was_counted_is_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    assert interrupted(tmp_path, Stream, "step", 200).code == 130
    assert list((out / "state").glob("*.safetensors"))
    steps = Stop(monkeypatch, Stream, "step", -1)
    assert poise("certify", "--out", out, "--resume", "--quiet", "--no-attack").code == 2  # another spec
    assert poise("certify", "--out", out, "--resume", "--quiet").code == 0
    groups = [-(-16 * 50 // 256) + -(-16 * 5000 // 256), -(-4 * 50 // 256) + -(-4 * 5000 // 256)]
    judging = 4 * (-(-16 * 1000 // 256) + -(-4 * 1000 // 256))
    assert steps.calls == sum(groups) - 199 + judging


def test_another_batch_size_may_go_on(tmp_path: Path) -> None:
    assert interrupted(tmp_path, Stream, "step", 100).code == 130
    done = poise("certify", "--out", tmp_path / "run", "--resume", "--batch-size", "100", "--quiet")
    assert done.code == 0, done.err
    mine, theirs = tables(tmp_path / "run")[0], tables(finished())[0]
    assert mine["lower"].to_numpy() == pytest.approx(theirs["lower"].to_numpy(), abs=1e-3)


def error(*words: object) -> str:
    done = poise("certify", *words)
    assert done.code == 2
    assert done.out == ""
    *_, line = done.err.splitlines()  # the embedded model says that it was trained
    assert line.startswith("poise: error: ")
    return line.removeprefix("poise: error: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--sigma 0", "sigma: must be a number above 0 (without noise nothing is certified), got 0.0"),
        ("--sigma abc", "sigma: must be a number such as 0.05 or 8/255, got 'abc'"),
        ("--alpha 0", "alpha: must be in (0, 1], got 0.0"),
        ("--alpha 2", "alpha: must be in (0, 1], got 2.0"),
        (
            "--n 3",
            "n: must be large enough for alpha=0.001 to say anything (the slack is 1.13, it must be below 1), got 3",
        ),
        ("--radii 0,-1", "radii: must be numbers of at least 0, each once, got 0,-1"),
        ("--radii 0.5,0.5", "radii: must be numbers of at least 0, each once, got 0.5,0.5"),
        ("--measure entropy", "measure: must be one of the known names, got 'entropy' (known: margin, pred_score)"),
        ("--samples 10000", "samples: must be at most the 497 images of 'builtin:digits', got 10000"),
        ("--resume", "resume: needs --out, the folder of the run to go on with, got none"),
    ],
)
def test_bad_input_is_one_line(words: str, message: str) -> None:
    assert error(*words.split()) == message


def test_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "must be empty or hold a certification, it holds other files ('notes.txt')" in error("--out", tmp_path)
    assert "already holds this run; give --resume to go on" in error(*fast(), "--out", finished())
    other = error(*fast("--n", "6000"), "--out", finished(), "--resume")
    assert other.endswith("it holds another (n: 5000 there, 6000 given)")


def test_resuming_where_nothing_is_needs_options(tmp_path: Path) -> None:
    """With options it is a run like any other; without them there is nothing to go on with."""
    told = error("--out", tmp_path / "none", "--resume")
    assert told == f"resume: '{tmp_path / 'none'}' must hold a certification to go on with, found none"
    new = poise("certify", *fast(), "--out", tmp_path / "new", "--resume")
    assert new.code == 0, new.err
    assert_same(tmp_path / "new", finished())


def test_damage_and_other_data_are_named(tmp_path: Path) -> None:
    out = shutil.copytree(finished(), tmp_path / "run")
    again = ["--out", out, "--resume", "--quiet"]
    table = sorted((out / "samples").glob("*.parquet"))[0]
    whole = table.read_bytes()
    table.write_bytes(whole[: len(whole) // 2])
    assert error(*again).startswith(f"samples: '{table}' must be a readable table, got: ")
    table.unlink()
    state = CertifyFolder(out).state_file(0)
    state.parent.mkdir(exist_ok=True)
    state.write_bytes(b"\xff" * 100)
    told = error(*again)
    assert told.startswith(f"state: '{state}' must be readable, got: ")
    assert told.endswith("(remove it to count anew)")
    state.unlink()
    spec_file = out / "certify.toml"
    spec_file.write_text(
        re.sub(r'^data = "sha256:\w+"', 'data = "sha256:0"', spec_file.read_text(), flags=re.MULTILINE)
    )
    assert f"out: '{out}' was begun with other data (sha256:0, now sha256:" in error(*again)


def test_a_model_that_is_asked_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = FunctionTarget(lambda x: np.zeros((len(x), 4)), num_classes=4)
    monkeypatch.setattr(experiment.models, "load", lambda *_, **__: asked)
    assert error("--model", "https://somewhere", "--data", data(), "--out", tmp_path / "x") == (
        "model: must be a PyTorch module or an ONNX file that answers scores, since a certificate takes 10,000 answers "
        "per image to points outside of [0, 1], got a FunctionTarget"
    )
    assert not (tmp_path / "x").exists()


def test_help_has_an_example() -> None:
    done = poise("certify", "--help")
    assert done.code == 0
    assert "poise certify --model builtin:digits" in done.out
