"""Inputs that are small on disk and large in memory, each read in a process of its own."""

from __future__ import annotations

import pytest
from bombs import BOMBS, LONG
from harness import EXAMPLES, Outcome

LARGE = {"onnx that claims a petabyte", *LONG}
"""As large as is allowed, or harmless until they run: they are taken."""


@pytest.mark.parametrize("name", [name for name in BOMBS if EXAMPLES or name not in LONG])
def test_a_bomb_takes_neither_memory_nor_time(exploded: dict[str, Outcome], name: str) -> None:
    assert not exploded[name].fault
    assert exploded[name].kind == ("accepted" if name in LARGE else "refused"), exploded[name]
