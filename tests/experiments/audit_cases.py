"""What the audit's tests share: data drawn from the toy model, specs, a listener, and how tables are compared."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from toy_models import CLASSES, SIDE, Linear

from poise.data import Dataset
from poise.experiments import AuditSpec, files, run_audit
from poise.experiments.audit_spec import make_spec
from poise.files import is_leftover
from poise.targets import Target

COSTS = {"wrong_accepted": 10.0, "deferred": 1.0}

TOYS = Path(__file__).with_name("toy_models.py")


def model(factory: str = "linear", query: str = f"?num_classes={CLASSES}") -> str:
    """The address of a toy model."""
    return f"py:{TOYS}:{factory}{query}"


def write_data(path: Path, n: int, *, seed: int = 0, labels: str = "drawn") -> str:
    """An npz of n images; labels drawn from the linear model's own probabilities, or its predictions ("right").

    Drawn labels make the linear model perfectly calibrated, with an accuracy of about 70 %.
    """
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (n, SIDE, SIDE), dtype=np.uint8)
    with torch.no_grad():
        logits = Linear()(torch.from_numpy(pixels)[:, None].float() / 255).double()
    p = logits.softmax(dim=1).numpy()
    drawn = (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(0, CLASSES - 1)
    np.savez(path, images=pixels, labels=drawn if labels == "drawn" else p.argmax(axis=1))
    return f"npz:{path}"


def spec(source: str | None = None, **given: Any) -> AuditSpec:
    """A spec on the linear model that takes a fraction of a second; on `data()` unless another source is given."""
    usual = {
        "model": model(), "recipes": ("sa-mma",), "defences": ("none", "cs"), "eps": 0.1, "budget": 12,
        "batch_size": 16, "bootstrap": 50,
    }  # fmt: skip
    return make_spec(**{"data": source or data(), **usual, **given})


@cache
def scratch() -> Path:
    """A folder for what many tests read; it goes with the process."""
    folder = Path(tempfile.mkdtemp(prefix="poise-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def data() -> str:
    """40 images."""
    return write_data(scratch() / "forty.npz", 40)


@cache
def held_out() -> str:
    """200 other images."""
    return write_data(scratch() / "held-out.npz", 200, seed=1)


@cache
def small_run() -> Path:
    """The run of `spec()`, never interrupted."""
    audit(spec(), scratch() / "small")
    return scratch() / "small"


@cache
def rich_run() -> Path:
    """90 images in chunks of 32, recipes of every kind, three defences, costs; about 70 % right."""
    made = spec(
        write_data(scratch() / "ninety.npz", 90, seed=2), fit_data=held_out(), budget=40, batch_size=32, threshold=0.7,
        recipes=("sa-mma", "sa-rca", "pgd-mma", "pgd"), defences=("none", "ts", "cs"), bootstrap=200, costs=COSTS,
    )  # fmt: skip
    audit(made, scratch() / "rich")
    return scratch() / "rich"


class Silent:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.begun: list[tuple[str, str, int, int]] = []
        self.advanced: list[tuple[float, int]] = []

    def note(self, line: str) -> None:
        self.notes.append(line)

    def ready(self, target: Target, attacked: Dataset, clean: dict[str, float]) -> None:
        self.clean = clean

    def begin(self, recipe: str, defence: str, done: int, total: int) -> None:
        self.begun.append((recipe, defence, done, total))

    def advance(self, samples: float, queries: int) -> None:
        self.advanced.append((samples, queries))

    def end(self, rows: pl.DataFrame) -> None:
        self.rows = rows


def audit(made: AuditSpec, out: Path, *, resume: bool = False) -> dict[str, Any]:
    return run_audit(made, out, resume=resume, listener=Silent())


def tables(run: Path, kind: str = "samples") -> pl.DataFrame:
    """All rows of a run in a fixed order, without the wall time."""
    found = pl.read_parquet(run / kind / "*.parquet")
    keys = [name for name in ("recipe", "defence", "view", "queries", "id") if name in found.columns]
    return found.drop("seconds", strict=False).sort(keys if kind == "curves" else [k for k in keys if k != "queries"])


def assert_same_run(run: Path, reference: Path) -> None:
    """Every column but `seconds`, every curve and every stored image of two runs are equal to the last bit."""
    for kind in ("samples", "curves"):
        ours, theirs = tables(run, kind), tables(reference, kind)
        assert ours.columns == theirs.columns
        assert len(ours) == len(theirs)
        different = [name for name in ours.columns if not ours[name].equals(theirs[name], null_equal=True)]
        assert not different, f"{kind}: {different} differ"
    ours, theirs = (sorted((folder / "adversarial").iterdir()) for folder in (run, reference))
    assert [path.name for path in ours] == [path.name for path in theirs]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(ours, theirs, strict=True))
    assert not [path for path in run.rglob("*") if is_leftover(path)], "a killed run's leftovers stayed"


class Killed(BaseException):
    """Stands for kill -9: nothing between it and the operating system runs."""


@contextmanager
def killed_at(write: int, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kills the process at its `write`-th file, after the temporary file is there and before it is renamed."""
    seen = 0
    whole = files.write

    def interrupted(path: Path, fill: Callable[[Path], Any]) -> Path:
        nonlocal seen
        seen += 1
        if seen <= write:
            return whole(path, fill)
        path.parent.mkdir(parents=True, exist_ok=True)
        fill(path.with_name(f".{path.name}.4194305.tmp"))
        raise Killed

    with patch.context() as context:
        context.setattr(files, "write", interrupted)
        try:
            yield
        except Killed:
            return
    raise AssertionError(f"the run had no {write + 1}th write to be killed at")
