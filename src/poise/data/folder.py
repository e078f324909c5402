"""A folder of images, one subfolder per class, decoded when a batch is made."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from poise.data.arrays import Rows
from poise.data.dataset import Dataset, build
from poise.data.uri import Uri, brief
from poise.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
KEYS = ("size", "resize")
_GREY = ("1", "L", "LA")
_COLOUR = ("CMYK", "P", "PA", "RGB", "RGBA", "YCbCr")


@dataclass(frozen=True, eq=False, slots=True)
class FileImages:
    """Image files; each is opened when its row is asked for.

    Args:
        files: one per image.
        shape: (C, H, W); C is 1 where every file is grey, else 3.
        resize: the short side before the centre crop to (H, W); None where all files have that size.
    """

    files: tuple[Path, ...]
    shape: tuple[int, int, int]
    resize: int | None = None

    def __len__(self) -> int:
        return len(self.files)

    @property
    def storage(self) -> str:
        """The files themselves, at the size they are read."""
        return f"files resize={self.resize}"

    def take(self, rows: Rows) -> Tensor:
        """(b, C, H, W) float32 in [0, 1]."""
        images = np.empty((len(rows), *self.shape), dtype=np.uint8)
        for i, row in enumerate(rows):
            images[i] = self._pixels(self.files[row])
        return torch.from_numpy(images).float().div_(255)

    def stored(self, rows: Rows) -> bytes:
        """The bytes of the files, each after its length."""
        contents = [self.files[row].read_bytes() for row in rows]
        return b"".join(len(content).to_bytes(8, "little") + content for content in contents)

    def _pixels(self, file: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        channels, height, width = self.shape
        try:
            with _open(file) as opened:
                image = opened.convert("L" if channels == 1 else "RGB")
        except Exception as error:  # a damaged file raises one of a dozen types
            raise _unreadable(file, error) from error
        if self.resize is not None:
            image = centre_crop(image, resize=self.resize, size=height)
        pixels = np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, channels)
        if pixels.shape[:2] != (height, width):
            raise InputError(
                f"{file}: the image must be {width} x {height}, got {image.width} x {image.height}: "
                "it changed after it was listed"
            )
        return pixels.transpose(2, 0, 1)


def centre_crop(image: Image.Image, *, resize: int, size: int) -> Image.Image:
    """The centre size x size of the image after its short side was made `resize` (bilinear, as torchvision's)."""
    from PIL import Image

    width, height = image.size
    if width <= height:
        wide, high = resize, int(resize * height / width)
    else:
        wide, high = int(resize * width / height), resize
    if (wide, high) != image.size:
        image = image.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    return image.crop((left, top, left + size, top + size))


def load_folder(uri: Uri) -> Dataset:
    """folder:DIR[?size=N&resize=M]: DIR/CLASS/**/image, classes in alphabetical order (torchvision's ImageFolder).

    Without `size` all files must have one size. With it, the short side becomes M (N unless given) and the centre
    N x N is cut out. ids are the positions in the sorted list of files. Rotation tags (EXIF) are not applied.

    Raises:
        MissingExtraError: Pillow is not installed.
        InputError: for an empty folder, a class without images, files that are not images or differ in size.
    """
    uri.allow(*KEYS)
    size, resize = uri.integer("size", low=1), uri.integer("resize", low=1)
    if resize is not None and (size is None or resize < size):
        raise uri.fail(f"resize must come with a size that is not larger, got resize={resize}, size={size}")
    folder = uri.folder(uri.rest, role="data")
    if find_spec("PIL") is None:
        raise MissingExtraError("folder: data", "vision")
    classes, files, labels = _listing(uri, folder)
    height, width, grey = _scan(uri, files, sizes_may_differ=size is not None)
    shape = (1 if grey else 3, size or height, size or width)
    images = FileImages(tuple(files), shape, None if size is None else resize or size)
    return build(str(uri), images, np.array(labels), classes)


def _listing(uri: Uri, folder: Path) -> tuple[list[str], list[Path], list[int]]:
    """Class names, files in sorted order, and the class of each file."""
    parts = sorted(part for part in folder.iterdir() if part.is_dir() and not part.name.startswith("."))
    if not parts:
        raise uri.fail("must hold one subfolder per class, got none")
    files: list[Path] = []
    labels: list[int] = []
    for label, part in enumerate(parts):
        found = [file for file in part.rglob("[!.]*") if file.suffix.lower() in SUFFIXES and file.is_file()]
        if not found:
            raise uri.fail(f"class folder '{part.name}' must hold images ({', '.join(SUFFIXES)}), got none")
        files += sorted(found, key=lambda file: (str(file.parent), file.name))  # torchvision's order
        labels += [label] * len(found)
    return [part.name for part in parts], files, labels


def _scan(uri: Uri, files: list[Path], *, sizes_may_differ: bool) -> tuple[int, int, bool]:
    """Height and width of the first file, and whether all are grey; reads the headers only."""
    first: tuple[int, int] | None = None
    grey = True
    for file in files:
        try:
            with _open(file) as image:
                mode, size = image.mode, image.size
        except Exception as error:
            raise _unreadable(file, error) from error
        if mode not in _GREY + _COLOUR:
            raise uri.fail(f"images must have 8 bits per channel, got mode {mode} in {file.name}")
        first = first or size
        grey = grey and mode in _GREY
        if size != first and not sizes_may_differ:
            raise uri.fail(
                f"images must have one size, got {first[0]} x {first[1]} and {size[0]} x {size[1]} ({file.name}); "
                "add size=N to resize and crop"
            )
    assert first is not None
    return first[1], first[0], grey


def _open(file: Path) -> Image.Image:
    """Opens an image and reads its header; a size that suggests a decompression bomb is an error."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(file)


def _unreadable(file: Path, error: Exception) -> InputError:
    return InputError(f"{file}: must be a readable image: {brief(error)}")
