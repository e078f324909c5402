"""scikit-learn's handwritten digits with fixed train, validation and test parts."""

from __future__ import annotations

import numpy as np
import torch

from poise.data.arrays import Rows, array_images
from poise.data.dataset import Dataset, build
from poise.errors import one_of
from poise.rng import Rng

SPLITS = {"train": (0, 900), "val": (900, 1300), "test": (1300, 1797)}
SPLIT_SEED = 0


def split_rows(split: str) -> Rows:
    """(n,) int64: which of the 1,797 rows belong to a part: 900 train, 400 val, 497 test, drawn once and for all."""
    if split not in SPLITS:
        raise one_of("builtin:digits: split", split, list(SPLITS))
    everything = torch.arange(1797)
    order = Rng(SPLIT_SEED, everything).bits("digits-split", 0, everything, ()).argsort(stable=True)
    start, stop = SPLITS[split]
    return np.asarray(order[start:stop])


def digits(split: str = "test") -> Dataset:
    """1,797 images (1, 8, 8) of ten digits, grey levels 0..16 divided by 16 (UCI, via scikit-learn).

    Args:
        split: "train" (900), "val" (400) or "test" (497).

    Returns:
        The part; ids are the rows of `sklearn.datasets.load_digits`.

    Raises:
        InputError: for another split.

    >>> len(digits("test")), digits().shape
    (497, (1, 8, 8))
    """
    from sklearn.datasets import load_digits

    rows = split_rows(split)
    bunch = load_digits()
    images = (bunch.images / 16).astype(np.float32)
    whole = build("builtin:digits", array_images("builtin:digits", images), bunch.target, tuple(map(str, range(10))))
    return whole.select(rows)
