"""Reads a run folder: what the report knows, it knows from here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from poise.errors import RunError, brief
from poise.report.explain_folder import Explanation, read_explanation
from poise.table import read_parquet

Summary = dict[str, Any]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Key = tuple[str, str, str]
"""Recipe, defence and view of one attack."""

SUMMARY_KEYS = ("target", "data", "spec", "threshold", "bound", "recipes", "rows", "checks")
ROW_KEYS = ("recipe", "defence", "view", "n", "metrics")
SAMPLE_COLUMNS = (
    *("recipe", "defence", "view", "id", "label", "prediction_before", "prediction_after"),
    *("confidence_before", "confidence_after", "queries"),
)
CURVE_COLUMNS = ("recipe", "defence", "view", "id", "label", "queries", "confidence", "prediction")
TRACE_COLUMNS = ("recipe", "defence", "view", "id", "iteration", "margin", "confidence", "loss")
GALLERY_COLUMNS = (
    *("recipe", "defence", "direction", "id", "label", "prediction"),
    *("confidence_before", "confidence_after", "delta_w", "ssim"),
)


@dataclass(frozen=True)
class Answers:
    """What a model answered about n images.

    Args:
        confidence: (n,) probability of the predicted class, in [0, 1].
        correct: (n,) 1 where the predicted class is the true one, else 0.

    >>> import numpy as np
    >>> from poise.report import reliability
    >>> right = np.array([1, 1, 0])
    >>> clean, attacked = Answers(np.array([0.9, 0.8, 0.6]), right), Answers(np.array([0.5, 0.4, 0.9]), right)
    >>> reliability(clean, attacked, name="sa-mma").layout.title.text
    'Attacked, the bars leave the diagonal: ECE 0.30 → 0.67'
    """

    confidence: Floats
    correct: Ints


@dataclass(frozen=True)
class Block:
    """The samples of one recipe against one defence under one view, ordered by id; all arrays are (n,).

    `wrong_confidence` is the highest probability of a wrong class that the attack saw; None where it did not look.
    """

    key: Key
    id: Ints
    label: Ints
    prediction_before: Ints
    prediction_after: Ints
    confidence_before: Floats
    confidence_after: Floats
    queries: Ints
    wrong_confidence: Floats | None = None

    @cached_property
    def clean(self) -> Answers:
        """Answers to the clean images."""
        return Answers(self.confidence_before, (self.prediction_before == self.label).astype(np.int64))

    @cached_property
    def attacked(self) -> Answers:
        """Answers to the attacked images."""
        return Answers(self.confidence_after, (self.prediction_after == self.label).astype(np.int64))


@dataclass(frozen=True)
class Gallery:
    """The cases that moved most: g rows and their images (g, C, H, W), float32 in [0, 1]."""

    rows: list[dict[str, Any]]
    clean: NDArray[np.float32]
    adversarial: NDArray[np.float32]


@dataclass(frozen=True)
class Run:
    """A run folder in memory.

    Args:
        path: the folder.
        summary: `summary.json`.
        spec: the text of `audit.toml`, empty when there is none.
        blocks: the samples of each attack, in the order of the summary's rows.
        curves: best so far over queries, or None when the run has no curves.
        gallery: the cases that moved most, or None when the run has none.
        traces: every point that was asked for of the first images, or None when the run kept none.
        explained: what the attacks did inside the model, or None when the run does not say.
    """

    path: Path
    summary: Summary
    spec: str
    blocks: dict[Key, Block]
    curves: pl.DataFrame | None
    gallery: Gallery | None
    traces: pl.DataFrame | None = None
    explained: Explanation | None = None


def read(path: Path) -> Run:
    """Reads and checks a run folder.

    Raises:
        RunError: the folder, its summary or its samples are missing, damaged or lack a column.
    """
    if not path.is_dir():
        raise RunError(f"report: the run must be a folder that `poise audit` wrote, got {path}")
    summary = read_summary(path)
    spec = path / "audit.toml"
    samples = _table(path, "samples", SAMPLE_COLUMNS)
    if samples is None:
        raise RunError(f"report: {path}/samples must hold at least one .parquet file, got none")
    return Run(
        path=path,
        summary=summary,
        spec=spec.read_text(encoding="utf-8", errors="replace") if spec.is_file() else "",
        blocks=dict(_blocks(samples, summary)),
        curves=_table(path, "curves", CURVE_COLUMNS),
        gallery=_gallery(path),
        traces=_traces(path),
        explained=read_explanation(path),
    )


def read_summary(path: Path) -> Summary:
    """The summary of a run folder; RunError when it is missing, no JSON object or lacks a key.

    >>> from pathlib import Path
    >>> from poise import PoiseError
    >>> try:
    ...     read_summary(Path("runs/nothing"))
    ... except PoiseError as error:
    ...     print(error)
    report: runs/nothing/summary.json must be readable, got no such file (is the run finished?)
    """
    file = path / "summary.json"
    try:
        summary = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except OSError:
        raise RunError(f"report: {file} must be readable, got no such file (is the run finished?)") from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"report: {file} must be JSON, got: {brief(error)}") from None
    _hold(summary, SUMMARY_KEYS, f"{file}")
    _hold(summary["target"], ("model", "num_classes"), f"target in {file}")
    _hold(summary["data"], ("samples",), f"data in {file}")
    if not isinstance(summary["rows"], list) or not summary["rows"]:
        raise RunError(f"report: {file} must hold at least one row, got none")
    for row in summary["rows"]:
        _hold(row, ROW_KEYS, f"each row in {file}")
    for place, kind, values in _typed(summary):
        if odd := [value for value in values if not isinstance(value, kind) or isinstance(value, bool)]:
            raise RunError(f"report: {place} in {file} must be {_KINDS[kind]}, got {brief(repr(odd[0]), 80)}")
    for check in summary["checks"]:
        _hold(check, ("name", "status"), f"each check in {file}")
    return dict(summary)


Kind = type | tuple[type, ...]

_NUMBER, _MAYBE = (int, float), (int, float, type(None))
_KINDS: dict[Kind, str] = {
    int: "a whole number", str: "a text", dict: "an object", list: "a list", _NUMBER: "a number",
    _MAYBE: "a number or null",
}  # fmt: skip


def _typed(summary: Summary) -> Iterator[tuple[str, Kind, list[Any]]]:
    """Places of a summary, what their values must be, and their values; a place is looked at after those around it."""
    rows: list[dict[str, Any]] = summary["rows"]
    yield "num_classes of target", int, [summary["target"]["num_classes"]]
    yield "samples of data", int, [summary["data"]["samples"]]
    yield "threshold", _NUMBER, [summary["threshold"]]
    yield "spec, bound and recipes", dict, [summary["spec"], summary["bound"], summary["recipes"]]
    yield "each recipe", dict, list(summary["recipes"].values())
    yield "checks", list, [summary["checks"]]
    yield "recipe, defence and view of a row", str, [row[name] for row in rows for name in ROW_KEYS[:3]]
    yield "n of a row", int, [row["n"] for row in rows]
    yield "metrics of a row", dict, [row["metrics"] for row in rows]
    figures = [figure for row in rows for figure in row["metrics"].values()]
    yield "each metric of a row", dict, figures
    yield "value, low and high of a metric", _MAYBE, [f.get(name) for f in figures for name in ("value", "low", "high")]


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _hold(entry: object, keys: tuple[str, ...], where: str) -> None:
    """Checks that an entry of the summary is an object with these keys."""
    missing = [key for key in keys if key not in entry] if isinstance(entry, dict) else keys
    if missing:
        raise RunError(f"report: {where} must hold {', '.join(keys)}; missing: {', '.join(missing)}")


def _table(path: Path, folder: str, columns: tuple[str, ...]) -> pl.DataFrame | None:
    """All parquet files of a folder as one table with at least these columns; None when there is no file."""
    files = sorted((path / folder).glob("*.parquet"))
    if not files:
        return None
    try:
        parts = [read_parquet(file) for file in files]
        table = pl.concat(parts, how="diagonal_relaxed")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise RunError(f"report: {path / folder} must hold parquet files, got: {brief(error)}") from None
    _require(table, columns, path / folder)
    return table


def _traces(path: Path) -> pl.DataFrame | None:
    table = _table(path, "traces", TRACE_COLUMNS)
    return table if table is not None and table.height else None


def _require(table: pl.DataFrame, columns: tuple[str, ...], where: Path) -> None:
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise RunError(f"report: {where} must have the columns {', '.join(columns)}; missing: {', '.join(missing)}")
    empty = [name for name in columns if table[name].null_count()]
    if empty:
        raise RunError(f"report: {where} must have no empty cells in {', '.join(empty)}")


def _blocks(samples: pl.DataFrame, summary: Summary) -> Iterator[tuple[Key, Block]]:
    groups = samples.partition_by("recipe", "defence", "view", as_dict=True)
    for row in summary["rows"]:
        key = (str(row["recipe"]), str(row["defence"]), str(row["view"]))
        if key not in groups:
            raise RunError(f"report: samples must hold the rows of summary.json, got none for {' / '.join(key)}")
        table = groups[key].sort("id")
        if table["id"].n_unique() != table.height:
            raise RunError(
                f"report: samples must hold each image once per attack, got duplicates for {' / '.join(key)}"
            )
        yield (
            key,
            Block(
                key=key,
                id=_ints(table, "id"),
                label=_ints(table, "label"),
                prediction_before=_ints(table, "prediction_before"),
                prediction_after=_ints(table, "prediction_after"),
                confidence_before=_shares(table, "confidence_before"),
                confidence_after=_shares(table, "confidence_after"),
                queries=_ints(table, "queries"),
                wrong_confidence=_wrong_confidence(table),
            ),
        )


def _ints(table: pl.DataFrame, name: str) -> Ints:
    try:
        return table[name].cast(pl.Int64).to_numpy()
    except pl.exceptions.PolarsError as error:
        raise RunError(f"report: samples must hold whole numbers in {name}, got: {brief(error)}") from None


def _shares(table: pl.DataFrame, name: str) -> Floats:
    try:
        values: Floats = table[name].cast(pl.Float64).to_numpy()
    except pl.exceptions.PolarsError as error:
        raise RunError(f"report: samples must hold numbers in {name}, got: {brief(error)}") from None
    if not ((values >= 0) & (values <= 1)).all():
        raise RunError(
            f"report: samples must hold a {name} in [0, 1], got {values[~((values >= 0) & (values <= 1))][0]}"
        )
    return values


def _wrong_confidence(table: pl.DataFrame) -> Floats | None:
    name = "wrong_confidence"
    return _shares(table, name) if name in table.columns and not table[name].null_count() else None


def _gallery(path: Path) -> Gallery | None:
    table_file, image_file = path / "gallery.parquet", path / "gallery.safetensors"
    if not (table_file.is_file() and image_file.is_file()):
        return None
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        table, images = read_parquet(table_file), load_file(image_file)
        clean, adversarial = images["clean"], images["adversarial"]
    except (OSError, KeyError, SafetensorError, pl.exceptions.PolarsError) as error:
        raise RunError(f"report: the gallery of {path} must be readable, got: {brief(error)}") from None
    _require(table, GALLERY_COLUMNS, table_file)
    if clean.shape != adversarial.shape or clean.ndim != 4 or len(clean) != table.height:
        got = f"{clean.shape} and {adversarial.shape} for {table.height} rows"
        raise RunError(f"report: the gallery of {path} must hold two (g, C, H, W) arrays, one image a row, got {got}")
    return Gallery(table.to_dicts(), clean.astype(np.float32), adversarial.astype(np.float32)) if len(clean) else None
