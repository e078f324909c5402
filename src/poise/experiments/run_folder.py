"""The run folder: which chunks are there, where each table lies, and whether it is the same run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import polars as pl
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from poise.errors import RunError, brief
from poise.experiments import files
from poise.experiments.audit_spec import AuditSpec, differences, read_spec
from poise.table import SCHEMA, read_parquet
from poise.targets.journal_file import records

TRACED = 16
"""Images, from the first, whose traces a run keeps where it keeps any."""


class RunFolder:
    """Paths and tables of one run.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def spec_file(self) -> Path:
        return self.root / "audit.toml"

    def check(self, spec: AuditSpec, *, resume: bool) -> None:
        """Refuses a folder that holds something else, or this run where `resume` is off.

        Raises:
            RunError: one line that says what lies there.
        """
        files.check_folder(
            self.root,
            self.spec_file,
            what="a run of poise",
            others=lambda: differences(read_spec(self.spec_file)[0], spec),
            resume=resume,
        )

    def open(self, spec: AuditSpec, recorded: dict[str, str]) -> None:
        """Writes audit.toml, or compares the fingerprints of model and data with those recorded there.

        Sweeps up what a killed run left; the folder must be locked. Limits of what a run may spend are written anew.

        Raises:
            RunError: the model's weights or the data are no longer those of this run.
        """
        files.sweep(self.root)
        if not self.spec_file.exists():
            files.write_text(self.spec_file, spec.to_toml(recorded))
            return
        before, old = read_spec(self.spec_file)
        for name, value in recorded.items():
            if old.get(name) != value:
                raise RunError(
                    f"out: '{self.root}' was begun with other {name} ({old.get(name, 'none')[:19]}, now {value[:19]}); "
                    "give another --out"
                )
        if before != spec:  # in its limits
            files.write_text(self.spec_file, spec.to_toml(old))

    def journal_file(self, part: str) -> Path:
        """Where the answers lie that a part of the run asked for: "clean", or recipe, defence and chunk."""
        return self.root / "journal" / f"{part}.log"

    def journaled(self) -> int:
        """How many answers the journals hold: what the run has asked so far.

        Raises:
            RunError: one of them is damaged.
        """
        return sum(1 for path in sorted((self.root / "journal").glob("*.log")) for _ in records(path))

    def samples_file(self, recipe: str, defence: str, view: str, chunk: int) -> Path:
        return self.root / "samples" / f"{recipe}.{defence}.{view}.{chunk:05d}.parquet"

    def has(self, recipe: str, defence: str, chunk: int, shown_to: Iterable[str] = (), *, traced: bool = False) -> bool:
        """The chunk is complete: images, curve, rows, trace where one is kept, and the unaware rows of the defences
        its images are shown to."""
        needed = (
            self._images_file(recipe, defence, chunk),
            self._curve_file(recipe, defence, chunk),
            self.samples_file(recipe, defence, "aware", chunk),
            *(self.samples_file(recipe, name, "unaware", chunk) for name in shown_to),
            *((self._trace_file(recipe, defence, chunk),) if traced else ()),
        )
        return all(path.exists() for path in needed)

    def write_rows(self, recipe: str, defence: str, view: str, chunk: int, rows: pl.DataFrame) -> None:
        files.write_parquet(self.samples_file(recipe, defence, view, chunk), _tagged(rows, recipe, defence, view))

    def write_curve(self, recipe: str, defence: str, chunk: int, curve: pl.DataFrame) -> None:
        files.write_parquet(self._curve_file(recipe, defence, chunk), _tagged(curve, recipe, defence, "aware"))

    def write_trace(self, recipe: str, defence: str, chunk: int, trace: pl.DataFrame) -> None:
        files.write_parquet(self._trace_file(recipe, defence, chunk), _tagged(trace, recipe, defence, "aware"))

    def _trace_file(self, recipe: str, defence: str, chunk: int) -> Path:
        return self.root / "traces" / f"{recipe}.{defence}.aware.{chunk:05d}.parquet"

    def _curve_file(self, recipe: str, defence: str, chunk: int) -> Path:
        return self.root / "curves" / f"{recipe}.{defence}.aware.{chunk:05d}.parquet"

    def write_images(self, recipe: str, defence: str, chunk: int, ids: Tensor, images: Tensor) -> None:
        files.write_tensors(self._images_file(recipe, defence, chunk), {"ids": ids, "images": images})

    def images(self, recipe: str, defence: str, chunk: int) -> dict[str, Tensor]:
        """ids (n,) and images (n, C, H, W) of one attacked chunk.

        Raises:
            RunError: the file is missing or damaged.
        """
        path = self._images_file(recipe, defence, chunk)
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise _damaged("adversarial", path, error) from None

    def _images_file(self, recipe: str, defence: str, chunk: int) -> Path:
        return self.root / "adversarial" / f"{recipe}.{defence}.{chunk:05d}.safetensors"

    def rows(self, recipe: str, defence: str, view: str) -> pl.DataFrame:
        """The rows of one attack, chunk after chunk.

        Raises:
            RunError: a table is damaged, or lacks a column of `poise.table.SCHEMA`.
        """
        rows = self._tables("samples", f"{recipe}.{defence}.{view}.*.parquet")
        if missing := [name for name in SCHEMA if name not in rows.columns]:
            raise RunError(
                f"samples: '{self.root}' must hold the column {missing[0]}, another version of poise wrote it; "
                "give another --out"
            )
        return rows

    def curve(self, recipe: str, defence: str) -> pl.DataFrame:
        """The curve over queries of one attack; errors as `rows`."""
        return self._tables("curves", f"{recipe}.{defence}.aware.*.parquet")

    def trace(self, recipe: str, defence: str) -> pl.DataFrame:
        """The trace of the first `TRACED` images under one attack; errors as `rows`."""
        return self._tables("traces", f"{recipe}.{defence}.aware.*.parquet")

    def _tables(self, kind: str, pattern: str) -> pl.DataFrame:
        found = sorted((self.root / kind).glob(pattern))
        if not found:
            raise RunError(f"{kind}: '{self.root / kind / pattern}' must exist, found none")
        tables = []
        for path in found:
            try:
                tables.append(read_parquet(path))
            except (OSError, pl.exceptions.PolarsError) as error:
                raise _damaged(kind, path, error) from None
            if tables[-1].schema != tables[0].schema:
                raise _damaged(kind, path, ValueError("its columns are not those of the chunks before"))
        return pl.concat(tables)


def _tagged(table: pl.DataFrame, recipe: str, defence: str, view: str) -> pl.DataFrame:
    return table.with_columns(
        pl.lit(recipe).alias("recipe"), pl.lit(defence).alias("defence"), pl.lit(view).alias("view")
    )


def _damaged(kind: str, path: Path, error: Exception) -> RunError:
    reason = brief(next(iter(str(error).splitlines()), type(error).__name__))
    return RunError(f"{kind}: '{path}' is damaged ({reason}); delete it and give --resume")
