"""Weights, checkpoints, fitted defences and ONNX files."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from harness import Stand, examples, fuzz
from hypothesis import given, strategies
from readers import WEIGHTS

NAMES = [reader.name for reader in WEIGHTS]


@pytest.mark.parametrize("name", NAMES)
@examples(25)
@given(rng=strategies.randoms(use_true_random=False))
def test_damaged_models_are_read_or_refused_in_one_line(stand: Callable[[str], Stand], name: str, rng: Random) -> None:
    assert not fuzz(stand(name), rng).fault
