"""When a stage of RamBo makes room for the next."""

from __future__ import annotations

from dataclasses import dataclass

from poise.errors import InputError


@dataclass(frozen=True, slots=True)
class Slow:
    """Slow convergence: the distance has fallen by less than `gain` over `queries` queries.

    Args:
        gain: in units of images in [0, 1], scaled with the target's bounds.
        queries: how many lie between two looks.

    >>> from poise.searches import RamBo
    >>> RamBo(slow=Slow(gain=0.5, queries=100)).slow.queries
    100
    """

    gain: float
    queries: int

    def __post_init__(self) -> None:
        if not 0 <= self.gain < float("inf"):
            raise InputError(f"Slow: gain must be a number of at least 0, got {self.gain}")
        if self.queries < 1:
            raise InputError(f"Slow: queries must be at least 1, got {self.queries}")
