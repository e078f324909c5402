"""Labelled images from everywhere: streamed, checked, with ids that survive splitting."""

from poise.data.augment import (
    AUGMENTATIONS,
    Augmentation,
    Compose,
    HorizontalFlip,
    RandomCrop,
    RandomResizedCrop,
    augmentation,
)
from poise.data.dataset import Dataset, ImageSource, check_matches, from_arrays
from poise.data.loader import Loader, epoch_batches, epoch_length
from poise.data.sources import load, names
from poise.data.splits import long_tail, split

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "Compose",
    "Dataset",
    "HorizontalFlip",
    "ImageSource",
    "Loader",
    "RandomCrop",
    "RandomResizedCrop",
    "augmentation",
    "check_matches",
    "epoch_batches",
    "epoch_length",
    "from_arrays",
    "load",
    "long_tail",
    "names",
    "split",
]
