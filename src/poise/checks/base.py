"""What the property checks share: the error they raise, and a watch over the global random generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from poise.errors import PoiseError


class CheckError(PoiseError, AssertionError):
    """A part breaks its contract; one line says what was checked, what is required and what was found."""


def require(holds: bool, message: str) -> None:
    """Raises CheckError with `message` unless `holds`."""
    if not holds:
        raise CheckError(message)


def generator_states() -> tuple[list[int], list[int], int, object]:
    """The state of torch's, numpy's and Python's global generators, as something that compares."""
    legacy = np.random.get_state(legacy=False)  # noqa: NPY002
    assert isinstance(legacy, dict)
    state = legacy["state"]
    return torch.random.get_rng_state().tolist(), state["key"].tolist(), int(state["pos"]), random.getstate()


@contextmanager
def global_generators_untouched(name: str) -> Iterator[None]:
    """Raises CheckError where a global generator is advanced or seeded inside."""
    before = generator_states()
    yield
    require(generator_states() == before, f"{name}: the global random generators must stay untouched, one was not")


def same(first: Tensor, second: Tensor, tolerance: float = 0.0) -> bool:
    """Equal shapes and values; infinities equal themselves, NaN equals nothing."""
    if first.shape != second.shape:
        return False
    return torch.allclose(first.double(), second.double(), rtol=tolerance, atol=tolerance)
