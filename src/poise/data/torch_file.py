"""What `torch.save` wrote, read without running code and without taking more than the file holds."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

_EXPANDED = 2**28
"""Bytes that a tensor may take whose rows are one row of the file."""


def load_torch(path: Path) -> object:
    """What `torch.save` wrote to a file, on the CPU; code in it never runs, and it holds no more than the file does.

    Raises:
        ValueError: the archive is packed, damaged, or lies about its size; a tensor claims more than the file has.
        Exception: one of the dozen types that torch and pickle raise on other files.
    """
    size = path.stat().st_size
    if zipfile.is_zipfile(path):  # torch reads a file whose checksums differ without a word, and unpacks bombs
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("it is a packed archive, which torch.save never writes")
            if sum(member.file_size for member in members) > size:
                raise ValueError("it is damaged: its parts are larger than the file")
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"it is damaged: the checksum of '{damaged}' differs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: object = torch.load(path, map_location="cpu", weights_only=True)
    for value in _inside(found):
        if isinstance(value, torch.Tensor):
            held = value.untyped_storage().nbytes() if value.layout is torch.strided and not value.is_meta else size + 1
            if held > size or value.numel() * value.element_size() > max(size, _EXPANDED):
                raise ValueError(f"a tensor of shape {tuple(value.shape)} claims more than the file holds")
    return found


def _inside(found: object) -> Iterator[object]:
    """Everything in nested containers."""
    waiting, seen = [found], set[int]()
    while waiting:
        value = waiting.pop()
        yield value
        if isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting += [*value.keys(), *value.values()] if isinstance(value, dict) else value
