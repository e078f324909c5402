"""MNIST's own file format: IDX, plain or gzipped; sizes are checked before anything is read."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from poise.data.arrays import Array, array_images
from poise.data.dataset import Dataset, build
from poise.data.npz import FREE, MAX_BYTES, RATIO, available_memory
from poise.data.uri import Uri
from poise.errors import InputError, brief

PARTS = {"train": "train", "test": "t10k"}
_BYTE = 0x08


def load_idx(uri: Uri) -> Dataset:
    """idx:FOLDER[?split=train|test]: the files of MNIST, Fashion-MNIST or KMNIST as their sites give them.

    FOLDER holds train-images-idx3-ubyte, train-labels-idx1-ubyte and the same with t10k for the test part, each as it
    is or with .gz. ids are the rows of the part.

    Raises:
        InputError: for missing or damaged files, another element type, or images and labels that do not fit.
    """
    uri.allow("split")
    split = uri.choice("split", tuple(PARTS), "test")
    folder = uri.folder(uri.rest, role="data")
    images = _read(uri, folder, f"{PARTS[split]}-images-idx3-ubyte", 3)
    labels = _read(uri, folder, f"{PARTS[split]}-labels-idx1-ubyte", 1)
    name = f"{uri}?split={split}"
    return build(name, array_images(name, images, None), labels.astype(np.int64), None)


def _read(uri: Uri, folder: Path, name: str, dimensions: int) -> Array:
    """One array of bytes."""
    path = next((at for at in (folder / name, folder / f"{name}.gz") if at.is_file()), None)
    if path is None:
        raise uri.fail(f"needs the file {name} or {name}.gz, found neither")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            head = stream.read(4 + 4 * dimensions)
            if len(head) < 4 + 4 * dimensions or head[:2] != b"\0\0" or head[2] != _BYTE or head[3] != dimensions:
                raise uri.fail(f"{path.name} must be bytes in {dimensions} dimensions in the format IDX, it is not")
            sizes = tuple(int.from_bytes(head[at : at + 4], "big") for at in range(4, len(head), 4))
            wanted, packed = math.prod(sizes), path.stat().st_size
            limit = min(MAX_BYTES, available_memory(), max(FREE, RATIO * packed))
            if wanted > limit:
                raise uri.fail(f"{path.name} must hold at most {limit} bytes, it declares {wanted}")
            content = stream.read(wanted + 1)
    except InputError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        raise uri.fail(f"{path.name} must be a readable IDX file: {brief(error)}") from error
    if len(content) != wanted:
        raise uri.fail(f"{path.name} is damaged: sizes {sizes} take {wanted} bytes, the file has another number")
    return np.frombuffer(content, np.uint8).reshape(sizes)
