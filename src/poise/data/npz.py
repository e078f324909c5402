"""Images and labels from a NumPy archive; sizes are checked before anything is read."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Iterator
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
"""Most bytes of an array, and no more than can be allocated now."""

FREE, RATIO = 2**28, 64
"""An array may take `FREE` bytes, or `RATIO` times what it is packed into: images do not shrink further, bombs do."""

KEYS = ("images", "labels", "split", "layout", "gib")


def load_npz(uri: Uri) -> Dataset:
    """npz:FILE[?images=KEY&labels=KEY&split=NAME&layout=nhwc|nchw&gib=N]: a `.npz` archive, never unpickled.

    The arrays are `images` and `labels`, or `NAME_images` and `NAME_labels` (NAME is "test" unless given), or
    those that the query names; `class_names` is read where it is there. ids are the rows of the array. An array may
    take `FREE` bytes or `RATIO` times its packed size; `gib=8` allows 8 GiB, however it is packed.

    Raises:
        InputError: for a missing or damaged file, missing keys, arrays that are too large, or unfit contents.
    """
    uri.allow(*KEYS)
    layout = uri.choice("layout", ("nhwc", "nchw"), "nhwc") if "layout" in uri.query else None
    path = uri.file(uri.rest, role="data")
    gib = uri.integer("gib", low=1)
    with open_arrays(path, uri.fail, None if gib is None else gib * 2**30) as archive:
        images, labels = _keys(uri, archive.names)
        pixels = archive.read(images)
        targets = archive.read(labels)
        names = archive.read("class_names") if "class_names" in archive.names else None
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


Fail = Callable[[str], InputError]


@dataclass(frozen=True, slots=True)
class Arrays:
    """An open `.npz`: the names of its arrays, each read only after its size was found fit."""

    file: zipfile.ZipFile
    names: list[str]
    fail: Fail
    most: int | None

    def read(self, key: str) -> Array:
        """One array. `zipfile` never yields more than the size it declares, so that size bounds what is read."""
        member = self.file.getinfo(f"{key}.npy")
        limit = min(MAX_BYTES if self.most is None else self.most, available_memory())
        if member.file_size > limit:
            raise self.fail(f"array '{key}' must take at most {_gib(limit)}, it declares {_gib(member.file_size)}")
        if self.most is None and member.file_size > max(FREE, RATIO * member.compress_size):
            raise self.fail(
                f"array '{key}' must take at most {RATIO} times its {member.compress_size} packed bytes, it declares "
                f"{_gib(member.file_size)} (gib=N in the address allows N GiB, or write it with numpy.savez)"
            )
        with self.file.open(member) as stream:
            shape, dtype = self._header(key, stream)
        size = math.prod(shape) * dtype.itemsize
        if size > member.file_size:
            raise self.fail(
                f"array '{key}' is damaged: shape {shape} {dtype} takes {size} bytes, the file has {member.file_size}"
            )
        with self.file.open(member) as stream:
            array: Array = npy.read_array(stream, allow_pickle=False)
        return array

    def _header(self, key: str, stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
        """Shape and type of an array without its data; types that hold Python objects are refused."""
        readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        version = npy.read_magic(stream)
        if version not in readers:
            raise self.fail(f"array '{key}' must be in the NumPy format 1.0 or 2.0, got {version}")
        shape, _, dtype = readers[version](stream)
        if dtype.hasobject:
            raise self.fail(f"array '{key}' must be numbers or texts, got Python objects, which are never unpickled")
        return shape, dtype


@contextmanager
def open_arrays(path: Path, fail: Fail, most: int | None = None) -> Iterator[Arrays]:
    """Opens an archive; whatever a damaged one raises becomes one line.

    Args:
        path: of a `.npz`.
        fail: makes the error of a message.
        most: bytes that an array may take, however it is packed; None for the module's own limits.
    """
    try:
        with zipfile.ZipFile(path) as file:
            names = [name.removesuffix(".npy") for name in file.namelist() if name.endswith(".npy")]
            yield Arrays(file, names, fail, most)
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen types on damaged files
        raise fail(f"data must be a readable .npz archive: {brief(error)}") from error


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
