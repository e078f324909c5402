"""Where data comes from: one loader per scheme."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from poise.data.dataset import Dataset
from poise.data.digits import SPLITS, digits
from poise.data.folder import load_folder
from poise.data.idx import load_idx
from poise.data.image_sets import IMAGE_SETS
from poise.data.npz import load_npz
from poise.data.splits import KEYS, take_parts
from poise.data.torchvision_sets import SETS, load_torchvision
from poise.data.uri import Uri, parse
from poise.errors import InputError, one_of

LATER = ("hf", "https", "http")


def _builtin(uri: Uri) -> Dataset:
    if uri.rest != "digits":
        raise one_of("builtin data", uri.rest, ["digits"])
    uri.allow("split")
    return digits(uri.choice("split", tuple(SPLITS), "test"))


LOADERS: dict[str, Callable[[Uri], Dataset]] = {
    "builtin": _builtin,
    "npz": load_npz,
    "folder": load_folder,
    "idx": load_idx,
    "torchvision": load_torchvision,
}


def load(uri: str, *, split: str | None = None, samples: int | None = None, offset: int = 0) -> Dataset:
    """Labelled images from an address.

    A part of a set that is sorted by class (every folder is) is taken from `Dataset.mixed`, because its first rows
    would all be of one class; parts with different offsets never overlap, and ids still name the rows.

    Args:
        uri: `builtin:digits`, `npz:FILE`, `folder:DIR`, `idx:DIR` or `torchvision:NAME?root=DIR`, with query keys.
            Every address takes `part=train|val|test&fractions=80:10:10` (see `split`), `longtail=0.01` (see
            `long_tail`) and `seed`.
        split: the same as the query key `split`.
        samples: at most this many images; all where None.
        offset: images to leave out first, in [0, number of images).

    Returns:
        The data set; nothing but its stored form is in memory.

    Raises:
        InputError: one line for every address, file or content that does not fit.
        MissingExtraError: the source needs an extra that is not installed.

    >>> load("builtin:digits", samples=100)
    Dataset('builtin:digits', 100 images of (1, 8, 8), 10 classes)
    """
    parsed = parse(uri, what="data", schemes=tuple(LOADERS), later=LATER)
    if split is not None:
        if parsed.query.get("split", split) != split:
            raise parsed.fail(f"split must be given once, got '{parsed.query['split']}' and '{split}'")
        parsed = replace(parsed, query={**parsed.query, "split": split})
    parsed = replace(parsed, common=KEYS)
    data = take_parts(parsed, LOADERS[parsed.scheme](parsed))
    if samples is not None and samples < 1:
        raise InputError(f"{data.name}: samples must be at least 1, got {samples}")
    if not 0 <= offset < len(data):
        raise InputError(f"{data.name}: offset must be in 0..{len(data) - 1}, got {offset}")
    if samples is None and offset == 0:
        return data
    return data.mixed()[offset : None if samples is None else offset + samples]


def names() -> dict[str, str]:
    """Address → one line, for every source of data.

    >>> names()["npz:FILE"]
    'arrays images and labels (or SPLIT_images and SPLIT_labels) of a NumPy archive'
    """
    listed = {
        "builtin:digits": "1,797 handwritten digits (1, 8, 8), 10 classes; split=train (900), val (400), test (497)",
        "npz:FILE": "arrays images and labels (or SPLIT_images and SPLIT_labels) of a NumPy archive",
        "idx:DIR": "the files of MNIST and its kin as their sites give them; split=train or test",
        "folder:DIR": "image files in one subfolder per class, or per split and class; size=N resizes and crops",
    }
    arrays = {
        f"torchvision:{name}?root=DIR": f"{name} as torchvision stores it, never downloaded" for name in sorted(SETS)
    }
    files = {
        f"torchvision:{name}?root=DIR&size=N": f"{name} as torchvision lays it out, streamed, never downloaded"
        for name in sorted(IMAGE_SETS)
    }
    return listed | arrays | files
