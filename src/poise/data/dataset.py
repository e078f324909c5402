"""Labelled images behind one face: (image, label, id), streamed in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from poise.data.arrays import Array, Rows, array_images, array_labels
from poise.errors import InputError, printable
from poise.rng import Rng

_CHUNK = 8  # image files in memory at once


class ImageSource(Protocol):
    """Images in their stored form; a batch is decoded when it is asked for.

    >>> import torch, poise
    >>> source: ImageSource = poise.data.load("builtin:digits").source
    >>> source.shape, source.take(torch.tensor([0, 1])).dtype
    ((1, 8, 8), torch.float32)
    """

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        ...

    @property
    def storage(self) -> str:
        """How the images are stored, part of the fingerprint."""
        ...

    def __len__(self) -> int: ...

    def take(self, rows: Rows) -> Tensor:
        """(b, C, H, W) float32 in [0, 1], a copy."""
        ...

    def stored(self, rows: Rows) -> bytes:
        """The bytes of these rows as stored."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Images with labels and ids, or a part of them; nothing is decoded before it is asked for.

    Args:
        name: where it comes from, as the user wrote it.
        class_names: one name per class; the numbers from 0 where the source has none.
        source: the images of the whole source.
        all_labels: (N,) int64, the labels of the whole source.
        rows: (n,) int64, the rows of the source that this set holds, in its order.
        names_given: the source brought the class names, so their number is the number of classes.

    >>> data = from_arrays(np.zeros((3, 4, 4), dtype=np.uint8), np.array([0, 1, 1]))
    >>> data, data.shape, data.num_classes, data[1:].ids
    (Dataset('arrays', 3 images of (1, 4, 4), 2 classes), (1, 4, 4), 2, tensor([1, 2]))
    >>> [tuple(images.shape) for images, labels, ids in data.batches(2)]
    [(2, 1, 4, 4), (1, 1, 4, 4)]
    """

    name: str
    class_names: tuple[str, ...]
    source: ImageSource
    all_labels: Rows
    rows: Rows
    names_given: bool = True

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, {len(self)} images of {self.shape}, {self.num_classes} classes)"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.source.shape

    @property
    def num_classes(self) -> int:
        """The number of class names."""
        return len(self.class_names)

    @property
    def labels(self) -> Tensor:
        """(n,) int64 in [0, num_classes)."""
        return torch.from_numpy(self.all_labels[self.rows])

    @property
    def ids(self) -> Tensor:
        """(n,) int64: the rows of the source, the same whichever part of it is taken."""
        return torch.from_numpy(self.rows.copy())

    @property
    def images(self) -> Tensor:
        """(n, C, H, W) float32 in [0, 1]: all images at once, made anew at every access."""
        return self.source.take(self.rows)

    def batches(self, batch_size: int = 256) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Streams (images (b, C, H, W) float32 in [0, 1], labels (b,) int64, ids (b,) int64) in order."""
        if batch_size < 1:
            raise InputError(f"Dataset.batches: batch_size must be at least 1, got {batch_size}")
        for start in range(0, len(self), batch_size):
            part = self[start : start + batch_size]
            yield part.images, part.labels, part.ids

    def __getitem__(self, part: slice) -> Dataset:
        """A part of the set, by position: `data[100:200]`; the stored images are shared, ids are kept."""
        if not isinstance(part, slice):
            raise InputError(f"Dataset: take a part with a slice such as data[0:1], got data[{part!r}]")
        return replace(self, rows=self.rows[part])

    def select(self, positions: Sequence[int] | Rows | Tensor) -> Dataset:
        """The images at these positions 0..n-1, in this order; the stored images are shared, ids are kept."""
        wanted = np.asarray(positions, dtype=np.int64).reshape(-1)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise InputError(
                f"Dataset.select: positions must be in 0..{len(self) - 1}, got {wanted.min()}..{wanted.max()}"
            )
        return replace(self, rows=self.rows[wanted])

    def mixed(self) -> Dataset:
        """The set in a fixed shuffled order if it is sorted by class, so that every part is fair; else the set itself.

        The first rows of a set that is sorted by class (every folder is) are all of one class.
        """
        labels = self.all_labels[self.rows]
        if len(labels) == 0 or labels[0] == labels[-1] or np.any(np.diff(labels) < 0):
            return self
        positions = torch.arange(len(self))
        return self.select(Rng(0, positions).bits("sorted-set", 0, positions, ()).argsort(stable=True))

    def fingerprint(self) -> str:
        """sha256 of the images and labels as stored, in this order: "sha256:" and 64 hex digits."""
        digest = hashlib.sha256(f"{len(self)} {self.shape} {self.source.storage}\n".encode())
        for start in range(0, len(self), _CHUNK):
            digest.update(self.source.stored(self.rows[start : start + _CHUNK]))
        digest.update(self.all_labels[self.rows].astype("<i8").tobytes())
        return f"sha256:{digest.hexdigest()}"


def build(name: str, source: ImageSource, labels: Array, class_names: Sequence[str] | None) -> Dataset:
    """A data set of a whole source; checks labels against images and class names, and makes the names printable."""
    checked = array_labels(name, labels, len(source), class_names)
    names = map(printable, class_names) if class_names is not None else map(str, range(int(checked.max()) + 1))
    return Dataset(name, tuple(names), source, checked, np.arange(len(source)), class_names is not None)


def from_arrays(
    images: Array,
    labels: Array,
    *,
    class_names: Sequence[str] | None = None,
    name: str = "arrays",
    layout: str | None = None,
) -> Dataset:
    """A data set from arrays in memory.

    Args:
        images: (n, H, W), (n, H, W, C) or (n, C, H, W); uint8, or float in [0, 1].
        labels: (n,) or (n, 1), an integer type.
        class_names: one name per class; without it the classes are 0 to the highest label.
        name: of the source, for messages and reports.
        layout: "nhwc" or "nchw" where the shape alone does not tell.

    Raises:
        InputError: for arrays of other shapes, types or ranges.

    >>> import numpy as np
    >>> data = from_arrays(np.zeros((6, 8, 8), np.uint8), np.arange(6) % 3)
    >>> data.shape, data.num_classes, len(data)
    ((1, 8, 8), 3, 6)
    """
    return build(name, array_images(name, images, layout), labels, class_names)


def check_matches(data: Dataset, num_classes: int) -> None:
    """Refuses data whose classes are not the model's.

    The shape of the images is found by the model at its first query.

    Args:
        data: at least one image.
        num_classes: of the model.

    Raises:
        InputError: for an empty set, a label that the model does not have, or another number of class names.

    >>> check_matches(from_arrays(np.zeros((2, 4, 4), dtype=np.uint8), np.array([0, 1])), 10)
    """
    if len(data) == 0:
        raise InputError(f"{data.name}: data must hold at least one image, got none")
    top = int(data.labels.max())
    if top >= num_classes:
        raise InputError(f"{data.name}: labels must be below the model's {num_classes} classes, got {top}")
    if data.names_given and data.num_classes != num_classes:
        raise InputError(
            f"{data.name}: the data must have the model's {num_classes} classes, got {data.num_classes} class names"
        )
