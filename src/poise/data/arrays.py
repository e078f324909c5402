"""Images and labels that arrive as arrays: what is accepted, and what is refused with one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poise.errors import InputError

Array = NDArray[Any]
Rows = NDArray[np.int64]

CHANNELS = (1, 3, 4)
MAX_CLASSES = 100_000
_FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True, eq=False, slots=True)
class ArrayImages:
    """Images kept as they were stored (uint8 stays uint8) until a batch is made.

    Args:
        array: (n, H, W), (n, H, W, C) or (n, C, H, W); uint8, or a float type in [0, 1].
        layout: "nhw", "nhwc" or "nchw".
    """

    array: Array
    layout: str

    def __len__(self) -> int:
        return len(self.array)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        size = self.array.shape[1:]
        if self.layout == "nhw":
            return 1, size[0], size[1]
        return (size[2], size[0], size[1]) if self.layout == "nhwc" else (size[0], size[1], size[2])

    @property
    def storage(self) -> str:
        """How the images are stored, part of the fingerprint."""
        return f"{self.array.dtype.name} {self.layout}"

    def take(self, rows: Rows) -> Tensor:
        """(b, C, H, W) float32 in [0, 1], a copy."""
        part = torch.from_numpy(self.array[rows])
        part = part.float().div_(255) if part.dtype is torch.uint8 else part.float()
        if self.layout == "nhw":
            part = part[:, None]
        return (part.permute(0, 3, 1, 2) if self.layout == "nhwc" else part).contiguous()

    def stored(self, rows: Rows) -> bytes:
        """The bytes of these rows as stored."""
        return self.array[rows].tobytes()


def array_images(name: str, images: Array, layout: str | None = None) -> ArrayImages:
    """Checks an array of images: layout, type, finite, inside [0, 1].

    Args:
        name: of the source, for messages.
        images: (n, H, W), (n, H, W, C) or (n, C, H, W) with C of 1, 3 or 4; uint8 or float in [0, 1].
        layout: "nhwc" or "nchw" where the shape alone does not tell.

    Raises:
        InputError: for anything else.
    """
    if images.size == 0:
        raise InputError(f"{name}: images must hold at least one image, got an array of shape {images.shape}")
    if images.dtype != np.uint8 and images.dtype.name not in _FLOATS:
        raise InputError(f"{name}: images must be uint8 or float in [0, 1], got {images.dtype}")
    checked = ArrayImages(_native(images), _layout(name, images.shape, layout))
    if images.dtype != np.uint8:
        _check_range(name, checked.array)
    return checked


def _native(array: Array) -> Array:
    """The array in the byte order of this machine, which torch requires."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _layout(name: str, shape: tuple[int, ...], given: str | None) -> str:
    accepted = "(n, H, W), (n, H, W, C) or (n, C, H, W) with C of 1, 3 or 4"
    if len(shape) == 3:
        return "nhw"
    if len(shape) != 4:
        raise InputError(f"{name}: images must have shape {accepted}, got {shape}")
    fits = [layout for layout, axis in (("nhwc", 3), ("nchw", 1)) if shape[axis] in CHANNELS]
    if given in fits:
        return str(given)
    if given is not None or not fits:
        raise InputError(
            f"{name}: images must have shape {accepted}, got {shape}{f' with layout={given}' if given else ''}"
        )
    if len(fits) == 2:
        raise InputError(f"{name}: images of shape {shape} may be nhwc or nchw, say which: layout=nhwc or layout=nchw")
    return fits[0]


def _check_range(name: str, images: Array) -> None:
    low, high = float(images.min()), float(images.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        row = next(i for i in range(len(images)) if not np.isfinite(images[i]).all())
        raise InputError(f"{name}: images must be finite, got NaN or infinite values (first in row {row})")
    if low < 0 or high > 1:
        hint = (
            "store 0..255 as uint8 or divide by 255"
            if low >= 0
            else "store the pixels and give mean= and std= to the model"
        )
        raise InputError(
            f"{name}: images must lie in [0, 1], got {low:.4g} to {high:.4g}: "
            f"normalised images outside [0, 1] are refused ({hint})"
        )


def array_labels(name: str, labels: Array, count: int, class_names: Sequence[str] | None) -> Rows:
    """Checks labels: whole numbers, one per image, from 0 to the number of class names less one.

    Args:
        name: of the source, for messages.
        labels: (n,) or (n, 1), an integer type.
        count: number of images.
        class_names: names of the classes, None where the source has none.

    Returns:
        (n,) int64.

    Raises:
        InputError: for anything else.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iub":
        raise InputError(f"{name}: labels must be (n,) whole numbers, got shape {labels.shape} {labels.dtype}")
    if len(labels) != count:
        raise InputError(f"{name}: there must be one label per image, got {count} images and {len(labels)} labels")
    if int(labels.min()) < 0:
        row = int(np.argmin(labels))
        raise InputError(f"{name}: labels must be at least 0, got {int(labels[row])} (row {row})")
    top = len(class_names) if class_names is not None else MAX_CLASSES
    if int(labels.max()) >= top:
        row = int(np.argmax(labels))
        limit = f"the {top} class names" if class_names is not None else f"{top} where there are no class names"
        raise InputError(f"{name}: labels must be below {limit}, got {int(labels[row])} (row {row})")
    return labels.astype(np.int64)
