"""Images and labels: archives, MNIST's files, image files, lists of files, addresses."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from harness import Stand, examples, fuzz
from hypothesis import given, strategies
from readers import IMAGES

NAMES = [reader.name for reader in IMAGES]


@pytest.mark.parametrize("name", NAMES)
@examples(20)
@given(rng=strategies.randoms(use_true_random=False))
def test_damaged_images_are_read_or_refused_in_one_line(stand: Callable[[str], Stand], name: str, rng: Random) -> None:
    assert not fuzz(stand(name), rng).fault
