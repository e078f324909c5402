"""Caltech-101, GTSRB and ImageNet as torchvision lays them out, read without its classes: nothing is written,
unpacked or downloaded, and an image is decoded when its batch is made."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from poise.data.dataset import Dataset
from poise.data.folder import SIZE_KEYS, from_files
from poise.data.layouts import Listing, class_folders, inside, subfolders
from poise.data.torch_file import load_torch
from poise.data.uri import Uri
from poise.errors import brief

GTSRB_CLASSES = 43
_DIGITS = re.compile("[0-9]{1,9}")


def load_image_set(uri: Uri, root: Path) -> Dataset:
    """torchvision:Caltech101|GTSRB|ImageNet?root=DIR&size=N[&resize=M&split=NAME].

    Caltech101: 101 classes without splits, BACKGROUND_Google left out. GTSRB: train or test (unless told otherwise),
    43 classes. ImageNet: train or val (unless told otherwise); labels are those of the sorted wnids, class names those
    of meta.bin where torchvision has written it.

    Raises:
        MissingExtraError: Pillow is not installed.
        InputError: for a missing size, files or folders that are missing.
    """
    uri.allow("root", "split", "links", *SIZE_KEYS)
    if "size" not in uri.query:
        raise uri.fail("needs size=N, such as size=224, because the images differ in size")
    listing, name = IMAGE_SETS[uri.rest](uri, root)
    return from_files(uri, name, listing, colour=True)


def _caltech101(uri: Uri, root: Path) -> tuple[Listing, str]:
    """caltech101/101_ObjectCategories/CLASS/image_NNNN.jpg."""
    if "split" in uri.query:
        raise uri.fail(f"has no splits (use part=test&fractions=80:10:10), got split={uri.query['split']}")
    folder = _folder(uri, root, "caltech101/101_ObjectCategories")
    classes = subfolders(folder)
    listing = class_folders(uri, folder, classes)
    if "BACKGROUND_Google" not in classes:
        return listing, str(uri)
    background = classes.index("BACKGROUND_Google")  # not a class: torchvision leaves it out as well
    kept = [row for row, label in enumerate(listing.labels) if label != background]
    return Listing(
        tuple(name for name in classes if name != "BACKGROUND_Google"),
        [listing.files[row] for row in kept],
        [listing.labels[row] - (listing.labels[row] > background) for row in kept],
    ), str(uri)


def _gtsrb(uri: Uri, root: Path) -> tuple[Listing, str]:
    """gtsrb/GTSRB/Training/NNNNN/*.ppm; gtsrb/GTSRB/Final_Test/Images/*.ppm with gtsrb/GT-final_test.csv."""
    split = uri.choice("split", ("train", "test"), "test")
    classes = tuple(f"{label:05d}" for label in range(GTSRB_CLASSES))
    if split == "train":
        folder = _folder(uri, root, "gtsrb/GTSRB/Training")
        return class_folders(uri, folder, classes, whole=False), f"{uri}?split={split}"
    folder = _folder(uri, root, "gtsrb/GTSRB/Final_Test/Images")
    table = root / "gtsrb" / "GT-final_test.csv"
    if not table.is_file():
        raise uri.fail("root must hold gtsrb/GT-final_test.csv, the classes of the test images, got none")
    files: list[str] = []
    labels: list[int] = []
    for row in _rows(uri, table):
        name, label = row.get("Filename"), row.get("ClassId")
        if not name or not label or not _DIGITS.fullmatch(label) or int(label) >= GTSRB_CLASSES:
            raise uri.fail(
                f"GT-final_test.csv: a row must hold Filename and ClassId below {GTSRB_CLASSES}, "
                f"got {brief(dict(row), 80)}"
            )
        files.append(inside(uri, folder, name, "GT-final_test.csv"))
        labels.append(int(label))
    if not files:
        raise uri.fail("GT-final_test.csv must hold a row per image, got none")
    return Listing(classes, files, labels), f"{uri}?split={split}"


def _rows(uri: Uri, table: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with semicolons."""
    try:
        with table.open(encoding="utf-8", newline="") as opened:
            return list(csv.DictReader(opened, delimiter=";", skipinitialspace=True))
    except (OSError, ValueError, csv.Error) as error:
        raise uri.fail(f"{table.name} must be a readable CSV file: {brief(error)}") from None


def _imagenet(uri: Uri, root: Path) -> tuple[Listing, str]:
    """train/WNID/*.JPEG and val/WNID/*.JPEG, with meta.bin."""
    split = uri.choice("split", ("train", "val"), "val")
    folder = _folder(uri, root, split)
    listing = class_folders(uri, folder, subfolders(folder))
    names = _meta(uri, root / "meta.bin")
    if names is None:
        return listing, f"{uri}?split={split}"
    for wnid in listing.classes:
        if wnid not in names:
            raise uri.fail(f"class folders of '{split}' must be wnids of meta.bin, got '{wnid}'")
    classes = tuple(", ".join(names[wnid]) for wnid in listing.classes)
    return Listing(classes, listing.files, listing.labels), f"{uri}?split={split}"


def _meta(uri: Uri, file: Path) -> dict[str, tuple[str, ...]] | None:
    """wnid → names, as torchvision wrote them; None without the file. Read without running code."""
    if not file.is_file():
        return None
    try:
        found: Any = load_torch(file)
        names, _ = found
        return {str(wnid): tuple(map(str, words)) for wnid, words in names.items()}
    except Exception as error:  # torch and pickle raise a dozen types on other files
        raise uri.fail(f"meta.bin must be the file that torchvision writes: {brief(error)}") from error


def _folder(uri: Uri, root: Path, inside: str) -> Path:
    found = root / inside
    if not found.is_dir():
        raise uri.fail(f"root must hold the folder {inside}, got '{uri.query['root']}' without it")
    return found


IMAGE_SETS: dict[str, Callable[[Uri, Path], tuple[Listing, str]]] = {
    "Caltech101": _caltech101,
    "GTSRB": _gtsrb,
    "ImageNet": _imagenet,
}
"""Name → the function that lists its files."""
