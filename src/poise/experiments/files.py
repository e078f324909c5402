"""A run's files, written whole or not at all, and the lock that keeps two runs out of one folder."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from poise.errors import RunError
from poise.files import SUFFIX, is_leftover, whole


def write(path: Path, fill: Callable[[Path], Any]) -> Path:
    """Lets `fill` write a temporary file beside path, then renames it; nothing is left behind where it fails.

    Raises:
        RunError: the operating system refuses, because the disk is full for example.
    """
    with refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as temporary:
            fill(temporary)
    return path


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """Turns what the operating system refuses about a path into one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RunError(f"out: '{path}' must be a place that can be written, got: {reason}") from error


def check_folder(root: Path, spec_file: Path, *, what: str, others: Callable[[], list[str]], resume: bool) -> None:
    """Refuses a folder that holds something else, or this run where `resume` is off.

    Args:
        root: the run folder, which may be missing.
        spec_file: what a run that has begun has there.
        what: the kind of run, for the message.
        others: the fields in which the run there differs from this one; asked only where one has begun.

    Raises:
        RunError: one line that says what lies there.
    """
    with refusals(root):
        begun = spec_file.exists()
        foreign = [] if begun or not root.exists() else sorted(filter(_foreign, root.iterdir()))
    if foreign:
        raise RunError(f"out: '{root}' must be empty or hold {what}, it holds other files ('{foreign[0].name}')")
    if not begun:
        return
    if different := others():
        raise RunError(f"out: '{root}' must be empty or hold this run, it holds another ({'; '.join(different)})")
    if not resume:
        raise RunError(f"out: '{root}' already holds this run; give --resume to go on, or another --out")


def _foreign(path: Path) -> bool:
    """Not of poise: neither the lock nor what a run left that was killed before its spec was written."""
    return path.name != ".lock" and not is_leftover(path)


def sweep(folder: Path) -> None:
    """Removes what killed processes left in a folder and below it; the folder must be locked."""
    for path in folder.rglob(f"*{SUFFIX}"):
        if is_leftover(path):
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Writes text as UTF-8."""
    return write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> Path:
    """Writes plain data; NaN and infinities are refused, a reader could not tell them from text."""
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_parquet(path: Path, frame: pl.DataFrame) -> Path:
    """Writes a table."""
    return write(path, lambda temporary: frame.write_parquet(temporary))


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> Path:
    """Writes tensors as safetensors."""
    ready = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return write(path, lambda temporary: save_file(ready, temporary))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder for one process; the operating system lets go of it however the process ends.

    Raises:
        RunError: the folder cannot be written, or another process holds it.
    """
    with refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"out: '{folder}' must not be in use, another poise process is writing to it") from None
        yield
