"""Run folders, stores of finished shards, journals and leaderboard entries."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from harness import Stand, examples, fuzz
from hypothesis import given, strategies
from readers import RUNS

NAMES = [reader.name for reader in RUNS]


@pytest.mark.parametrize("name", NAMES)
@examples(5)
@given(rng=strategies.randoms(use_true_random=False))
def test_damaged_runs_are_read_or_refused_in_one_line(stand: Callable[[str], Stand], name: str, rng: Random) -> None:
    assert not fuzz(stand(name), rng).fault
