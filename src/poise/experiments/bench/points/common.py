"""What all points share: their keys, how they are joined, and how many there may be."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

from poise.experiments.bench.plan import Cell
from poise.experiments.bench.reduce import KEYS, SCHEMA, Group, Reader, groups

MOST = 5000
"""Rows of points that a figure may have; what holds more is thinned out."""

TYPES = {name: SCHEMA[name] for name in KEYS}


def keyed(frame: pl.DataFrame, cell: Cell, **own: str | float | None) -> pl.DataFrame:
    """The frame with the keys of a cell before it; `own` and columns of the frame itself replace them."""
    keys = {**{name: cell.keys[name] for name in KEYS}, **own}
    known = [name for name in KEYS if name in frame.columns]
    first = [
        pl.col(name).cast(TYPES[name]) if name in known else pl.lit(keys[name], TYPES[name]).alias(name)
        for name in KEYS
    ]
    return frame.select(*first, *(name for name in frame.columns if name not in KEYS))


def joined(frames: list[pl.DataFrame]) -> pl.DataFrame:
    """One table of all frames; an empty one without columns where there are none."""
    return pl.concat(frames) if frames else pl.DataFrame()


def complete(reader: Reader, name: str) -> Iterator[tuple[Group, list[pl.DataFrame]]]:
    """Cells that differ in their seed alone and their tables, where all of them are there and hold rows."""
    for group in groups(reader.plan):
        found = reader.tables(group.cells, name)
        if found and all(len(frame) for frame in found):
            yield group, found


def thinned(length: int, most: int) -> NDArray[np.int64]:
    """At most `most` places of a column, evenly spaced, both ends included.

    >>> thinned(5, 3).tolist(), thinned(2, 3).tolist()
    ([0, 2, 4], [0, 1])
    """
    places: NDArray[np.int64] = np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(np.int64))
    return places
