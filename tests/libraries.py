"""Other libraries in tests: imported without their warnings, their global generators put back."""

from __future__ import annotations

import importlib
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCH, STUBS = Path(sys.prefix) / "bench", Path(__file__).parent / "peers" / "stubs"


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


@contextmanager
def library_from(folder: Path, name: str) -> Iterator[ModuleType]:
    """The module `name` of a folder that is not in the search path; forgotten at the end."""
    before = {key: sys.modules.pop(key) for key in list(sys.modules) if key.partition(".")[0] == name}
    sys.path.insert(0, str(folder))
    try:
        importlib.invalidate_caches()
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
        for key in [key for key in sys.modules if key.partition(".")[0] == name]:
            del sys.modules[key]
        sys.modules.update(before)


@pytest.fixture
def real_torchattacks() -> Iterator[ModuleType]:
    """torchattacks from where `make venv` has put it."""
    assert (BENCH / "torchattacks").is_dir(), "torchattacks is missing: make venv"
    with library_from(BENCH, "torchattacks") as module:
        yield module


@pytest.fixture(params=["library", "stand-in"])
def torchattacks(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """torchattacks, and a small stand-in that is there in every environment."""
    if request.param == "library":
        yield request.getfixturevalue("real_torchattacks")
        return
    with library_from(STUBS, "torchattacks") as module:
        yield module
