"""The installed command in a process of its own: killed, interrupted, cut off, and its exit codes."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from cli_cases import environment, finished, poise

POISE = Path(sys.executable).with_name("poise")

RECIPES, DEFENCES, CHUNKS = ("pgd-mma", "sa-mma"), ("none", "cs"), 3
OPTIONS = [
    *("--model", "builtin:digits", "--data", "builtin:digits", "--samples", "60", "--batch-size", "20"),
    *("--budget", "150", "--recipes", ",".join(RECIPES), "--defenses", ",".join(DEFENCES), "--bootstrap", "20"),
]
TABLES = len(RECIPES) * CHUNKS * 3
"""Each chunk gives an undefended table, the same shown to the defence, and one against the defence."""


def _start(*words: object, stdout: int = subprocess.PIPE, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [POISE, *map(str, words)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**environment(), "OMP_NUM_THREADS": "1", **more},
    )


def _run(*words: object, **given: object) -> tuple[int, str, str]:
    process = _start(*words, **given)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def _tables(out: Path) -> list[Path]:
    return sorted((out / "samples").glob("*.parquet"))


def _stop_when(process: subprocess.Popen[str], reached: Callable[[], bool], how: signal.Signals) -> tuple[int, str]:
    """Sends the signal as soon as `reached`; the exit code and what stood on the error stream."""
    end = time.monotonic() + 120
    while process.poll() is None and not reached():
        assert time.monotonic() < end, "the run takes too long"
        time.sleep(0.005)
    process.send_signal(how)
    err = process.communicate(timeout=60)[1]
    return process.returncode, err


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, never interrupted. The embedded model is trained on the way and kept in the cache."""
    out = tmp_path_factory.mktemp("runs") / "reference"
    assert poise("audit", *OPTIONS, "--quiet", "--out", out).code == 0
    return out


def _assert_equal(out: Path, reference: Path) -> None:
    assert [path.name for path in _tables(out)] == [path.name for path in _tables(reference)]
    assert len(_tables(out)) == TABLES
    for ours, theirs in zip(_tables(out), _tables(reference), strict=True):
        a, b = pl.read_parquet(ours), pl.read_parquet(theirs)
        assert a.columns == b.columns
        different = [name for name in a.columns if name != "seconds" and not a[name].equals(b[name], null_equal=True)]
        assert not different, f"{ours.name}: {different}"
    for path in (reference / "adversarial").iterdir():
        assert (out / "adversarial" / path.name).read_bytes() == path.read_bytes()


def test_killed_three_times_interrupted_and_resumed(reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for kill, tables in enumerate((1, 6, 11)):
        words = ["audit", "--out", out, "--resume", *(OPTIONS if kill == 0 else [])]
        code, _ = _stop_when(_start(*words), lambda tables=tables: len(_tables(out)) >= tables, signal.SIGKILL)
        assert code == -signal.SIGKILL, "it was over before it could be killed"
        assert tables <= len(_tables(out)) < TABLES
        for path in out.rglob("*.parquet"):
            pl.read_parquet(path)
    assert poise("audit", *OPTIONS, "--out", out).code == 2, "without --resume it must be refused"
    code, err = _stop_when(_start(*words), lambda: len(_tables(out)) >= 14, signal.SIGINT)
    assert code == 130
    last = err.splitlines()[-1]
    command = f"poise audit --out {out} --resume"
    assert last == f"interrupted; finished chunks are kept, go on with: {command}"
    assert "Traceback" not in err
    assert len(_tables(out)) < TABLES
    done = poise(*shlex.split(command)[1:], "--quiet")
    assert (done.code, done.err) == (0, "")
    assert not list(out.rglob("*.tmp")), "what the killed processes left is swept up"
    _assert_equal(out, reference)
    table = _tables(out)[7]
    rows = pl.read_parquet(table)
    rows.with_columns(pl.col("loss_after") * (1 + 2**-52)).write_parquet(table)
    with pytest.raises(AssertionError, match="loss_after"):
        _assert_equal(out, reference)


def test_exit_codes_of_the_installed_command(tmp_path: Path) -> None:
    (tmp_path / "gate.toml").write_text("ece_after = 0.0001")
    code, out, err = _run("audit", "--eps", "8", "--out", tmp_path / "run")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("poise: error: Linf: eps must be")
    assert not (tmp_path / "run").exists()
    words = ["audit", "--out", finished(), "--resume", "--quiet", "--gate", tmp_path / "gate.toml"]
    code, out, err = _run(*words, PYTHONIOENCODING="latin-1")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("gate     sa-uca ")
    assert out.splitlines()[-1].startswith("report   ")
    assert "ECE clean ? attacked" in out, "a terminal without arrows gets the table, and no error"


def test_a_closed_pipe_ends_quietly() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        code, _, err = _run("list", "recipes", stdout=write)
    finally:
        os.close(write)
    assert (code, err) == (0, "")


def test_the_embedded_model_is_kept_where_the_tests_say(reference: Path) -> None:
    """Else the tests would write into the user's own cache."""
    cache = Path(environment()["XDG_CACHE_HOME"])
    assert [path.parent for path in cache.rglob("*.safetensors")] == [cache / "poise"]
