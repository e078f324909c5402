"""Tables and tensors as the bytes of their files."""

from __future__ import annotations

import io

import polars as pl
from safetensors.torch import save
from torch import Tensor

from poise.table import read_parquet


def table(frame: pl.DataFrame) -> bytes:
    """A table as parquet."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def read_table(content: bytes) -> pl.DataFrame:
    """The table again."""
    return read_parquet(io.BytesIO(content))


def tensors(**named: Tensor) -> bytes:
    """Tensors as safetensors."""
    packed: bytes = save({name: value.detach().cpu().contiguous() for name, value in named.items()})
    return packed
