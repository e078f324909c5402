"""Data sets that lie on disk in the form torchvision reads; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import numpy as np

from poise.data.arrays import array_images
from poise.data.dataset import Dataset, build
from poise.data.image_sets import IMAGE_SETS, load_image_set
from poise.data.uri import Uri
from poise.data.vision import import_torchvision
from poise.errors import brief, one_of

KEYS = ("root", "split")
SETS = {
    "CIFAR10": "train",
    "CIFAR100": "train",
    "FashionMNIST": "train",
    "KMNIST": "train",
    "MNIST": "train",
    "STL10": "split",
    "SVHN": "split",
}
"""Name → the argument that chooses the part: a flag `train`, or a text `split`."""

_CHANNELS_FIRST = ("STL10", "SVHN")


def load_torchvision(uri: Uri) -> Dataset:
    """torchvision:NAME?root=DIR[&split=train|test]: a data set of torchvision, `test` unless told otherwise.

    torchvision checks the checksums of the pickled CIFAR files before it opens them. ids are the rows of the part.
    Caltech101, GTSRB and ImageNet are files of different sizes: see `poise.data.image_sets.load_image_set`.

    Raises:
        MissingExtraError: torchvision is not installed.
        InputError: for an unknown name, a missing root, files that are missing or damaged.
    """
    if uri.rest not in SETS and uri.rest not in IMAGE_SETS:
        raise one_of("torchvision data", uri.rest, [*SETS, *IMAGE_SETS])
    if uri.rest in SETS:
        uri.allow(*KEYS)
    root = uri.text("root")
    if root is None:
        raise uri.fail("needs root=DIR, the folder that holds the files (poise does not download data)")
    folder = uri.folder(root, role="root")
    if uri.rest in IMAGE_SETS:
        return load_image_set(uri, folder)
    split = uri.choice("split", ("train", "test"), "test")
    factory = getattr(import_torchvision("datasets", feature="torchvision: data"), uri.rest)
    part: dict[str, Any] = {"train": split == "train"} if SETS[uri.rest] == "train" else {"split": split}
    try:
        loaded = factory(root=str(folder), download=False, **part)
    except Exception as error:  # torchvision raises RuntimeError, but damaged files raise what their readers raise
        reason = str(error).split(". You can use download")[0] or type(error).__name__
        raise uri.fail(f"root must hold the complete files of {uri.rest}, got '{root}': {brief(reason)}") from error
    name = f"{uri}?split={split}"
    labels = loaded.targets if hasattr(loaded, "targets") else loaded.labels
    classes = [str(text) for text in getattr(loaded, "classes", range(10))]
    layout = None if np.asarray(loaded.data).ndim == 3 else "nchw" if uri.rest in _CHANNELS_FIRST else "nhwc"
    return build(name, array_images(name, np.asarray(loaded.data), layout), np.asarray(labels), classes)
