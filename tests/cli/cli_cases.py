"""What the tests of the command line share: the command called in this process, a small model, data, one run."""

from __future__ import annotations

import atexit
import io
import os
import shutil
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np

from poise.cli.app import run

TOYS = Path(__file__).resolve().parents[1] / "experiments" / "toy_models.py"

MODEL = f"py:{TOYS}:linear?num_classes=4"
"""The address of a linear model of four classes for images (1, 6, 6)."""


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and what it wrote."""

    code: int
    out: str
    err: str


@cache
def scratch() -> Path:
    """A folder for what many tests read; it goes with the process."""
    folder = Path(tempfile.mkdtemp(prefix="poise-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def environment() -> dict[str, str]:
    """This process's environment with a cache of its own, so that the user's is not touched."""
    return {**os.environ, "XDG_CACHE_HOME": str(scratch() / "cache")}


def poise(*words: object) -> Done:
    """The command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with patch.dict(os.environ, environment()), redirect_stdout(out), redirect_stderr(err):
        code = run([str(word) for word in words], sys.stderr)
    return Done(code, out.getvalue(), err.getvalue())


@cache
def data() -> str:
    """The address of 40 images with labels drawn at random."""
    rng = np.random.default_rng(0)
    path = scratch() / "forty.npz"
    np.savez(path, images=rng.integers(0, 256, (40, 6, 6), dtype=np.uint8), labels=rng.integers(0, 4, 40))
    return f"npz:{path}"


def fast() -> list[str]:
    """Options of a run that takes a moment."""
    words = "--recipes sa-uca --defenses none --eps 0.1 --budget 6 --samples 8 --bootstrap 10 --batch-size 4 --quiet"
    return ["--model", MODEL, "--data", data(), *words.split()]


@cache
def finished() -> Path:
    """A finished run of `fast()`."""
    out = scratch() / "finished"
    done = poise("audit", *fast(), "--out", out)
    assert done.code == 0, done.err
    return out
