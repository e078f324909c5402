"""Image files, decoded when a batch is made: a folder of them as a data set."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from poise.data.arrays import Rows
from poise.data.dataset import Dataset, build
from poise.data.layouts import KEYS as LAYOUT_KEYS
from poise.data.layouts import Listing, list_folder
from poise.data.npz import available_memory
from poise.data.uri import Uri
from poise.errors import InputError, MissingExtraError, brief

if TYPE_CHECKING:
    from PIL import Image

SIZE_KEYS = ("size", "resize", "pixels")
_SILENT = logging.NullHandler()
STRETCH = "stretch"
"""The value of `resize` that does not keep the shape."""

FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What an image file may be, whatever it is called: Pillow knows others, one of which starts a program to be read."""

PIXELS = 2**26
"""Pixels of an image file, at most: it is decoded in less than 1 GiB. The key `pixels` sets another limit."""

LARGEST = 2**26
"""Bytes of an image file, at most."""

_GREY = ("1", "L", "LA")
_COLOUR = ("CMYK", "P", "PA", "RGB", "RGBA", "YCbCr")


@dataclass(frozen=True, eq=False, slots=True)
class FileImages:
    """Image files; each is opened when its row is asked for.

    Args:
        files: one per image.
        shape: (C, H, W); C is 1 where every file is grey, else 3.
        resize: the short side before the centre crop to (H, W), or "stretch" for both sides at once; None where all
            files have that size.
        pixels: of a file, at most.
    """

    files: Sequence[str]
    shape: tuple[int, int, int]
    resize: int | str | None = None
    pixels: int = PIXELS

    def __len__(self) -> int:
        return len(self.files)

    @property
    def storage(self) -> str:
        """The files themselves, at the size they are read."""
        return f"files resize={self.resize}"

    def take(self, rows: Rows) -> Tensor:
        """(b, C, H, W) float32 in [0, 1]."""
        needed, free = 5 * len(rows) * math.prod(self.shape), available_memory()
        if needed > free:
            raise InputError(
                f"images: {len(rows)} of shape {self.shape} must fit into memory, they take {needed >> 20} MiB of "
                f"{free >> 20} free: take a smaller batch, or size=N in the address"
            )
        images = np.empty((len(rows), *self.shape), dtype=np.uint8)
        for i, row in enumerate(rows):
            images[i] = self._pixels(Path(self.files[row]))
        return torch.from_numpy(images).float().div_(255)

    def stored(self, rows: Rows) -> bytes:
        """The bytes of the files, each after its length."""
        contents = [_content(Path(self.files[row])) for row in rows]
        return b"".join(len(content).to_bytes(8, "little") + content for content in contents)

    def _pixels(self, file: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        from PIL import Image

        channels, height, width = self.shape
        try:  # not `_open`: threads read here, and the filters of warnings belong to all of them
            with Image.open(file, formats=FORMATS) as opened:
                _check_area(opened.size, self.pixels)
                image = opened.convert("L" if channels == 1 else "RGB")
        except Exception as error:  # a damaged file raises one of a dozen types
            raise _unreadable(file, error) from error
        if self.resize == STRETCH:
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        elif isinstance(self.resize, int):
            if self.resize**2 * max(image.size) > self.pixels * min(image.size):
                raise InputError(f"{file}: must be less narrow to be resized, got {image.width} x {image.height}")
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
    """folder:DIR[?split=NAME&size=N&resize=M&classes=A,B&exclude=TEXT&links=true&pixels=N].

    The images are DIR/CLASS/**/image or DIR/NAME/CLASS/**/image: BMP, JPEG, PNG, PPM, TIFF or WebP by their content,
    of at most 64 MiB and 2^26 pixels, 2^24 without `size` (unless `pixels` says otherwise). Links may not lead out of
    DIR without `links`.

    Classes are in alphabetical order (torchvision's ImageFolder). Without `size` all files must have one size. With
    it, the short side becomes M (N unless given) and the centre N x N is cut out; `resize=stretch` makes both sides N.
    ids are the positions in the sorted list of files. Rotation tags (EXIF) are not applied.

    Raises:
        MissingExtraError: Pillow is not installed.
        InputError: for an empty folder, a class without images, files that are not images or differ in size, what
            `poise.data.layouts.list_folder` refuses.
    """
    uri.allow(*SIZE_KEYS, *LAYOUT_KEYS)
    chosen_size(uri)
    listing = list_folder(uri, uri.folder(uri.rest, role="data"))
    split = uri.text("split")
    return from_files(uri, str(uri) if split is None else f"{uri}?split={split}", listing)


def chosen_size(uri: Uri) -> tuple[int | None, int | str | None]:
    """The keys size and resize: the side of the images, and how they get it; None and None without them."""
    size = uri.integer("size", low=1)
    resize = STRETCH if uri.text("resize") == STRETCH else uri.integer("resize", low=1)
    if resize is not None and (size is None or (isinstance(resize, int) and resize < size)):
        raise uri.fail(f"resize must come with a size that is not larger, got resize={resize}, size={size}")
    return size, size if resize is None else resize


def from_files(uri: Uri, name: str, listing: Listing, *, colour: bool = False) -> Dataset:
    """A data set of listed files.

    Args:
        uri: keys size and resize.
        name: of the data set.
        listing: the files.
        colour: the images are RGB whatever the files are; with a size, no file is opened before its batch.

    Raises:
        MissingExtraError: Pillow is not installed.
        InputError: for files that are not images, or differ in size without the key size.
    """
    if find_spec("PIL") is None:
        raise MissingExtraError("image files as data", "vision")
    logging.getLogger("PIL").addHandler(_SILENT)  # else its complaints of odd files go to the error stream
    size, resize = chosen_size(uri)
    if colour and size is not None:
        shape = (3, size, size)
    else:
        height, width, grey = _scan(uri, listing.files, sizes_may_differ=size is not None)
        shape = (1 if grey and not colour else 3, size or height, size or width)
    source = FileImages(listing.files, shape, resize, _most_pixels(uri))
    return build(name, source, np.array(listing.labels), listing.classes)


def _most_pixels(uri: Uri) -> int:
    """The key `pixels`: most pixels of a file; images that are not made smaller take sixteen times as much memory."""
    return uri.integer("pixels", low=1) or (PIXELS if "size" in uri.query else PIXELS // 4)


def _scan(uri: Uri, files: Sequence[str], *, sizes_may_differ: bool) -> tuple[int, int, bool]:
    """Height and width of the first file, and whether all are grey; reads the headers only."""
    first: tuple[int, int] | None = None
    grey = True
    for file in map(Path, files):
        try:
            with _open(file) as image:
                mode, size = image.mode, image.size
            _check_area(size, _most_pixels(uri))
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
    """Opens an image and reads its header."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes that are refused next, and of odd tags
        return Image.open(file, formats=FORMATS)


def _check_area(size: tuple[int, int], most: int) -> None:
    """Refuses a size that suggests a decompression bomb, before anything is decoded."""
    if size[0] * size[1] > most:
        raise InputError(f"its size exceeds limit of {most} pixels, got {size[0]} x {size[1]} (pixels=N allows N)")


def _content(file: Path) -> bytes:
    """The bytes of an image file."""
    try:
        with file.open("rb") as handle:
            content = handle.read(LARGEST + 1)
    except OSError as error:
        raise _unreadable(file, error) from error
    if len(content) > LARGEST:
        raise InputError(f"{file}: the image file must have at most {LARGEST >> 20} MiB, got more")
    return content


def _unreadable(file: Path, error: Exception) -> InputError:
    return InputError(f"{brief(file, 1000)}: must be a readable image: {brief(error)}")
