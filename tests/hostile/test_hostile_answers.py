"""Answers of endpoints, and requests to `poise serve`."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from harness import Stand, examples, fuzz
from hypothesis import given, strategies
from readers import NETWORK

NAMES = [reader.name for reader in NETWORK]


@pytest.mark.parametrize("name", NAMES)
@examples(25)
@given(rng=strategies.randoms(use_true_random=False))
def test_damaged_answers_are_read_or_refused_in_one_line(stand: Callable[[str], Stand], name: str, rng: Random) -> None:
    assert not fuzz(stand(name), rng).fault
