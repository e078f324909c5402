"""poise train: what it prints, what it refuses, killed with SIGKILL in the middle of an epoch and gone on with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from cli_cases import environment, poise
from safetensors.torch import load_file

POISE = Path(sys.executable).with_name("poise")
FAST = ("--epochs", 2, "--batch-size", 50, "--lr", 0.05, "--set", "augment=[]")


def test_a_run_prints_what_came_out(tmp_path: Path) -> None:
    done = poise("train", "standard", *FAST, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    first, kept, audit, folder = done.out.splitlines()
    assert first.startswith("standard (Martinez et al.")
    assert "2 epochs on 810 images of builtin:digits?split=train" in first
    assert kept.startswith("kept     epoch 2: validation accuracy ")
    assert "poise audit --model 'builtin:digits?weights=" in audit
    assert folder == f"folder   {tmp_path / 'run'}"
    assert "epoch   1/2  loss " in done.err
    assert "epoch   2/2  loss " in done.err


def test_the_printed_address_is_audited(tmp_path: Path) -> None:
    trained = poise("train", "standard", *FAST, "--out", tmp_path / "run", "--json", "--quiet")
    assert (trained.code, trained.err) == (0, "")
    address = json.loads(trained.out)["address"]
    audited = poise(
        "audit", "--model", address, "--samples", 20, "--recipes", "confsmooth", "--defenses", "none",
        "--bootstrap", 10, "--quiet", "--out", tmp_path / "audit",
    )  # fmt: skip
    assert audited.code == 0, audited.err
    assert "confsmooth" in audited.out


def test_a_file_of_ones_own_is_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('epochs = 1\nbatch_size = 90\n[method]\nname = "uat"\neps = "8/255"\nsteps = 1\n')
    done = poise("train", recipe, "--json", "--quiet", "--out", tmp_path / "run", "--set", "method.steps=2")
    assert done.code == 0, done.err
    assert json.loads(done.out)["recipe"] == "mine"
    assert pl.read_parquet(tmp_path / "run" / "metrics.parquet")["passes"].to_list() == pytest.approx([4.0])


def test_killed_in_the_middle_of_an_epoch_and_gone_on_with(tmp_path: Path) -> None:
    """SIGKILL before the first step and inside an epoch; the weights are those of the undisturbed run, bit for bit."""
    options = [
        "train", "uat-smooth", "--epochs", "3", "--batch-size", "54", "--lr", "0.05", "--set", "method.eps=0.1",
        "--set", "method.steps=3", "--set", 'augment=["crop"]', "--quiet",
    ]  # fmt: skip
    assert poise(*options, "--out", tmp_path / "whole").code == 0
    cut = tmp_path / "cut"
    toml, last = cut / "train.toml", cut / "last.pt"
    again = ["train", "--out", str(cut), "--resume", "--quiet"]

    first = _start(*options, "--out", str(cut))
    _kill_when(first, toml.exists)
    # a checkpoint after every step: when they are written is no part of what is learnt
    toml.write_text(toml.read_text().replace("save_minutes = 10.0", "save_minutes = 0.0"))
    _kill_when(_start(*again), lambda: last.exists() and _place(last) >= (1, 4))
    assert _place(last)[0] == 1
    assert 4 <= _place(last)[1] < 15
    assert not (cut / "summary.json").exists()

    done = poise(*again)
    assert done.code == 0, done.err
    for name in ("model", "best"):
        left, right = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("whole", "cut"))
        assert all(left[key].equal(right[key]) for key in left)


def _start(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([POISE, *words], env=environment() | {"OMP_NUM_THREADS": "1"})


def _place(checkpoint: Path) -> tuple[int, int]:
    """Epochs done, and steps done in the next one."""
    progress = torch.load(checkpoint, weights_only=True)["progress"]
    return progress["epoch"], progress["step"]


def _kill_when(process: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < end, "the run takes too long"
        time.sleep(0.005)  # what looks more often takes the time of the process that it looks at
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_an_interrupt_says_how_to_go_on(tmp_path: Path) -> None:
    options = ["train", "standard", "--epochs", "2000", "--batch-size", "10", "--set", "augment=[]", "--quiet"]
    out = tmp_path / "run"
    command = [sys.executable, "-c", _INTERRUPTIBLE, *options, "--out", str(out)]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not (out / "last.pt").exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == f"interrupted; the last checkpoint is kept, go on with: poise train --out {out} --resume\n"


_INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background process ignores it
from poise.cli import main
main()
"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "train: needs the name of a recipe (`poise list training` shows them), got none"),
        (["uat-smoth"], "training recipe: must be one of the known names, got 'uat-smoth' (did you mean uat-smooth"),
        (["nowhere.toml"], "training recipe: 'nowhere.toml' must be a readable TOML file, got: [Errno 2] No such file"),
        (
            ["at", "--set", "method.epz=1"],
            "training recipe: method 'at': field: must be one of the known names, got 'epz'",
        ),
        (["at", "--set", "method.eps=8"], "Linf: eps must be in"),
        (["at", "--set", "method.steps=0"], "AT: steps must be at least 1, got 0"),
        (["at", "--set", "method.steps=many"], "method.steps: input should be a valid integer"),
        (["at", "--set", "method.steps"], "set: must be KEY=VALUE such as method.steps=3, got 'method.steps'"),
        (["at", "--set", "optimizer.name=sgdd"], "optimizer.name: input should be 'sgd', 'adam' or 'adamw'"),
        (["at", "--epochs", "0"], "epochs: input should be greater than or equal to 1, got 0"),
        (["at", "--lr", "fast"], "lr: must be a number such as 0.05 or 8/255, got 'fast'"),
        (["at", "--data", "npz:none.npz"], "data must be an existing file, got 'none.npz'"),
        (["at", "--model", "builtin:nothing"], "builtin model: must be one of the known names, got 'nothing'"),
        (["at", "--device", "tpu9"], "device: must be one that this machine has, got 'tpu9'"),
        (["at", "--precision", "8-bit"], "precision: input should be"),
        (["--resume"], "resume: needs --out, the folder of the run to go on with, got none"),
        (["--resume", "--out", "nowhere"], "resume: 'nowhere' must hold a training run to go on with, found none"),
        (["trs", "--model", "builtin:digits?variant=pni"], "recipe 'trs' needs variant=trs, got variant=pni"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = poise("train", *words)
    assert done.code == 2
    assert done.err.startswith("poise: error: ")
    assert message in done.err
    assert len(done.err.splitlines()) == 1


def test_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    done = poise("train", "standard", *FAST, "--lr", "1e30", "--out", tmp_path / "run", "--quiet")
    assert done.code == 2
    assert "must be finite, got " in done.err
    assert "nothing was kept yet" in done.err or "kept: " in done.err


def test_a_resumed_run_takes_its_recipe_as_it_is(tmp_path: Path) -> None:
    assert poise("train", "standard", *FAST, "--out", tmp_path, "--quiet").code == 0
    done = poise("train", "--out", tmp_path, "--resume", "--epochs", 5)
    assert done.code == 2
    assert "takes the recipe in" in done.err


def test_recipes_are_listed() -> None:
    done = poise("list", "training")
    assert done.code == 0
    assert "uat-smooth" in done.out
    assert len(done.out.splitlines()) >= 25
