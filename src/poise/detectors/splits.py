"""Which images the published protocols fit detectors on, and which they test them on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from poise.errors import InputError

Rows = NDArray[np.int64]
LEAST = 10


def lee_split(n: int, share: float = 0.1) -> tuple[Rows, Rows]:
    """Lee et al. 2018: the first tenth to fit on (at least 10 images), the rest to test on.

    Half of the former chooses the hyper-parameter, see `Detector.learn`. The same rows of the clean, the noisy and the
    attacked images are taken, to test on as well: noisy images are negatives there too.

    Args:
        n: at least 20.
        share: of the images to fit on, in (0, 1).

    >>> [len(part) for part in lee_split(500)]
    [50, 450]
    """
    _check(n, 2 * LEAST)
    if not 0 < share < 1:
        raise InputError(f"detectors: the share of images to fit on must be in (0, 1), got {share}")
    train = min(max(int(n * share + 1e-9), LEAST), n - LEAST)
    return np.arange(train), np.arange(train, n)


def harder_split(n: int) -> tuple[Rows, Rows]:
    """Harder et al. 2021: a fifth to test on, four fifths of the rest to fit on, drawn by scikit-learn with seed 42.

    The same rows of the clean and the attacked images are taken. The last fifth of the rest is for validation in their
    code; nothing is chosen on it here, and it is left out.

    >>> [len(part) for part in harder_split(500)]
    [320, 100]
    """
    from sklearn.model_selection import train_test_split

    _check(n, 2 * LEAST)
    rest, test = train_test_split(np.arange(n), test_size=0.2, random_state=42)
    train, _ = train_test_split(rest, test_size=0.2, random_state=42)
    return np.sort(train), np.sort(test)


def _check(n: int, least: int) -> None:
    if n < least:
        raise InputError(f"detectors: must have at least {least} images to fit and test on, got {n}")
