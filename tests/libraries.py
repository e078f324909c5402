"""Other libraries in tests: imported without their warnings, their global generators put back."""

from __future__ import annotations

import importlib
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np


def peer(name: str) -> ModuleType:
    """Imports a library that warns on import (foolbox and ART use names that scipy has deprecated)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """ART draws from the global generators: seeds them, and puts them back."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
