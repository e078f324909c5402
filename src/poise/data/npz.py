"""Images and labels from a NumPy archive; sizes are checked before anything is read."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from poise.data.arrays import Array, array_images
from poise.data.dataset import Dataset, build
from poise.data.uri import Uri
from poise.errors import InputError, brief

MAX_BYTES = 16 * 2**30
KEYS = ("images", "labels", "split", "layout")


def load_npz(uri: Uri) -> Dataset:
    """npz:FILE[?images=KEY&labels=KEY&split=NAME&layout=nhwc|nchw]: a `.npz` archive, never unpickled.

    The arrays are `images` and `labels`, or `NAME_images` and `NAME_labels` (NAME is "test" unless given), or
    those that the query names; `class_names` is read where it is there. ids are the rows of the array.

    Raises:
        InputError: for a missing or damaged file, missing keys, arrays that are too large, or unfit contents.
    """
    uri.allow(*KEYS)
    layout = uri.choice("layout", ("nhwc", "nchw"), "nhwc") if "layout" in uri.query else None
    path = uri.file(uri.rest, role="data")
    with _archive(uri, path) as archive:
        images, labels = _keys(uri, archive.names)
        pixels = archive.read(uri, images)
        targets = archive.read(uri, labels)
        names = archive.read(uri, "class_names") if "class_names" in archive.names else None
    return build(str(uri), array_images(str(uri), pixels, layout), targets, _names(uri, names))


def _keys(uri: Uri, there: list[str]) -> tuple[str, str]:
    """The names of the two arrays to read."""
    split = uri.text("split")
    images, labels = uri.text("images"), uri.text("labels")
    if split is not None and (images or labels):
        raise uri.fail(f"split and images or labels must not be given together, got split='{split}'")
    prefix = f"{split}_" if split is not None else "" if "images" in there or "test_images" not in there else "test_"
    wanted = images or f"{prefix}images", labels or f"{prefix}labels"
    for key in wanted:
        if key not in there:
            raise uri.fail(f"needs an array '{key}', the file holds: {brief(', '.join(there) or 'nothing')}")
    return wanted


def _names(uri: Uri, names: Array | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    if names.ndim != 1 or names.dtype.kind not in "US" or not len(names):
        raise uri.fail(f"class_names must be a list of texts, got shape {names.shape} {names.dtype}")
    return tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names.tolist())


@dataclass(frozen=True, slots=True)
class _Archive:
    """An open `.npz`: the names of its arrays, each read only after its size was found fit."""

    file: zipfile.ZipFile
    names: list[str]

    def read(self, uri: Uri, key: str) -> Array:
        """One array. `zipfile` never yields more than the size it declares, so that size bounds what is read."""
        member = self.file.getinfo(f"{key}.npy")
        limit = min(MAX_BYTES, available_memory())
        if member.file_size > limit:
            raise uri.fail(f"array '{key}' must take at most {_gib(limit)}, it declares {_gib(member.file_size)}")
        with self.file.open(member) as stream:
            shape, dtype = _header(uri, key, stream)
        size = math.prod(shape) * dtype.itemsize
        if size > member.file_size:
            raise uri.fail(
                f"array '{key}' is damaged: shape {shape} {dtype} takes {size} bytes, the file has {member.file_size}"
            )
        with self.file.open(member) as stream:
            array: Array = npy.read_array(stream, allow_pickle=False)
        return array


def _header(uri: Uri, key: str, stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Shape and type of an array without its data; types that hold Python objects are refused."""
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(stream)
    if version not in readers:
        raise uri.fail(f"array '{key}' must be in the NumPy format 1.0 or 2.0, got {version}")
    shape, _, dtype = readers[version](stream)
    if dtype.hasobject:
        raise uri.fail(f"array '{key}' must be numbers or texts, got Python objects, which are never unpickled")
    return shape, dtype


@contextmanager
def _archive(uri: Uri, path: Path) -> Iterator[_Archive]:
    """Opens an archive; whatever a damaged one raises becomes one line."""
    try:
        with zipfile.ZipFile(path) as file:
            yield _Archive(file, [name.removesuffix(".npy") for name in file.namelist() if name.endswith(".npy")])
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen types on damaged files
        raise uri.fail(f"data must be a readable .npz archive: {brief(error)}") from error


def available_memory() -> int:
    """Bytes that can be allocated now without swapping: Linux's own estimate, else half of the memory."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return MAX_BYTES


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
