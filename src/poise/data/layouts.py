"""Which image files a folder holds and of which class each is; no image is opened here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from poise.data.uri import Uri
from poise.errors import brief, one_of

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
SPLITS = ("train", "val", "test")
KEYS = ("split", "classes", "exclude", "links")

_ANNOTATIONS = "val_annotations.txt"


@dataclass(frozen=True, slots=True)
class Listing:
    """Files with their labels.

    Args:
        classes: one name per class.
        files: the files, in the order of their ids.
        labels: the class of each file, in 0..len(classes) - 1.
    """

    classes: tuple[str, ...]
    files: list[str]
    labels: list[int]


def subfolders(folder: Path) -> list[str]:
    """Names of the subfolders that are not hidden, sorted."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def list_folder(uri: Uri, folder: Path) -> Listing:
    """DIR/CLASS/**/image, or DIR/SPLIT/CLASS/**/image with the key split, or Tiny-ImageNet's own layout.

    The classes of every split are those of `train` where it is there, so a split that lacks a class keeps the labels.

    Args:
        uri: keys `split=NAME` (any subfolder), `classes=A,B` (only these), `exclude=TEXT` (leaves out files whose name
            contains it, such as `_mask`), `links=true` (links may lead out of DIR).
        folder: DIR.

    Raises:
        InputError: for splits that are there and not chosen, a split that is not there, a class without images, a link
            that leads out of DIR.
    """
    there, split = subfolders(folder), uri.text("split")
    splits = [name for name in SPLITS if name in there]
    if split is None:
        if "train" in splits and len(splits) > 1:
            raise uri.fail(f"holds the splits {', '.join(splits)}: say which, such as split={splits[0]}")
        return class_folders(uri, folder, there)
    if split not in there:
        known = brief(", ".join(splits or there) or "no subfolder")
        raise uri.fail(f"split must be a subfolder that is there ({known}), got '{split}'")
    part = folder / split
    if (folder / "wnids.txt").is_file():
        return _tiny_imagenet(uri, folder, part)
    classes = subfolders(folder / "train") if "train" in there else subfolders(part)
    return class_folders(uri, part, classes, whole=split == "train" or "train" not in there)


def class_folders(uri: Uri, folder: Path, classes: Sequence[str], *, whole: bool = True) -> Listing:
    """The images of DIR/CLASS/** in torchvision's order: by class, then by folder, then by file name.

    Args:
        uri: see `list_folder`.
        folder: DIR.
        classes: names of the class folders in the order of their labels.
        whole: every class must have its folder; without it a class may be missing.

    Raises:
        InputError: for no class, a class without images, a subfolder that is no class.
    """
    there = subfolders(folder)
    if not classes or not there:
        raise uri.fail("must hold one subfolder per class, got none")
    for name in there:
        if name not in classes:
            raise uri.fail(f"class folders of '{folder.name}' must be those of the training data, got '{name}'")
    chosen = _chosen(uri, classes)
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(chosen):
        if not whole and name not in there:
            continue
        contained(uri, folder / name)
        found = _images(uri, folder / name)
        if not found:
            raise uri.fail(f"class folder '{name}' must hold images ({', '.join(SUFFIXES)}), got none")
        files += found
        labels += [label] * len(found)
    if not files:
        raise uri.fail(f"must hold images of {brief(', '.join(chosen))}, got none in '{folder.name}'")
    return Listing(tuple(chosen), files, labels)


def _chosen(uri: Uri, classes: Sequence[str]) -> list[str]:
    """The classes that the key `classes` names, all without it; their order stays."""
    text = uri.text("classes")
    wanted = list(classes) if text is None else text.split(",")
    for name in wanted:
        if name not in classes:
            raise one_of(f"{uri}: class", name, list(classes))
    return [name for name in classes if name in wanted]


def _images(uri: Uri, folder: Path) -> list[str]:
    """Image files below a folder, sorted by folder and name; hidden files are none, and linked folders not entered."""
    exclude, found, waiting = uri.text("exclude"), list[tuple[str, str]](), [str(folder)]
    while waiting:
        parent = waiting.pop()
        with os.scandir(parent) as entries:
            for entry in entries:
                name = entry.name
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith("."):  # noqa: PTH122
                    if exclude and exclude in name:
                        continue
                    if entry.is_symlink():
                        contained(uri, Path(entry.path))
                    if not entry.is_file():
                        raise uri.fail(f"image '{brief(name, 80)}' must be a file, got something else")
                    found.append((parent, name))
    return [os.path.join(parent, name) for parent, name in sorted(found)]  # noqa: PTH118


def contained(uri: Uri, path: Path) -> None:
    """Refuses a path that links take out of the folder that the address names, unless it says links=true."""
    if uri.flag("links"):
        return
    root = Path(uri.text("root") or uri.rest).expanduser()
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a circle of links
        inside = False
    if not inside:
        name = brief(path.name, 80)
        raise uri.fail(f"'{name}' must not link out of '{root.name}' (links=true in the address allows it)")


def _tiny_imagenet(uri: Uri, folder: Path, part: Path) -> Listing:
    """Tiny-ImageNet: wnids.txt lists the classes, words.txt names them, val_annotations.txt labels val/images.

    Labels follow the sorted identifiers, as everywhere in `folder:`, not the order of wnids.txt.
    """
    wnids = sorted(line.strip() for line in _lines(folder / "wnids.txt") if line.strip())
    if (part / _ANNOTATIONS).is_file():
        listed = _annotated(uri, part, _chosen(uri, wnids))
    else:
        listed = class_folders(uri, part, wnids)
    words = dict(line.split("\t", 1) for line in _lines(folder / "words.txt") if "\t" in line)
    return Listing(tuple(words.get(wnid, wnid).strip() for wnid in listed.classes), listed.files, listed.labels)


def _annotated(uri: Uri, part: Path, wnids: list[str]) -> Listing:
    """The images that val_annotations.txt names, in its order: file, tab, class, and a box that is not read."""
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    files: list[str] = []
    labels: list[int] = []
    for number, line in enumerate(_lines(part / _ANNOTATIONS), start=1):
        fields = line.split("\t")
        if len(fields) < 2:
            raise uri.fail(f"{_ANNOTATIONS}: line {number} must read FILE, tab, CLASS, got '{brief(line, 60)}'")
        if fields[1] in label_of:
            files.append(inside(uri, part / "images", fields[0], _ANNOTATIONS))
            labels.append(label_of[fields[1]])
        elif "classes" not in uri.query:
            raise uri.fail(
                f"{_ANNOTATIONS}: line {number} must name a class of wnids.txt, got '{brief(fields[1], 60)}'"
            )
    if not files:
        raise uri.fail(f"{_ANNOTATIONS} must name images, got none")
    return Listing(tuple(wnids), files, labels)


def inside(uri: Uri, folder: Path, name: str, where: str) -> str:
    """The path of an image that the list `where` names; refused where the name leads out of the folder of images."""
    if PurePath(name).name != name or "\0" in name:
        raise uri.fail(f"{where} must name images of its folder, got '{brief(name, 60)}'")
    path = folder / name
    contained(uri, path)
    return str(path)


def _lines(file: Path) -> list[str]:
    """The lines of a text file, none where it is missing."""
    return file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
