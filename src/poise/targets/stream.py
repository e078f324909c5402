"""Answers one part after the other, so that what was paid for can be kept before a later part fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from poise.targets.base import Target
from poise.types import Outputs

Part = tuple[Tensor, Outputs]
"""Positions (k,) in the points that were asked, and the answers to them."""


@runtime_checkable
class StreamingTarget(Target, Protocol):
    """A target that hands out answers as they arrive."""

    def stream(self, x: Tensor, ids: Tensor) -> Iterator[Part]:
        """The answers to points x (m, C, H, W), each once, in any order and in parts of any size."""
        ...


def arriving(target: Target, x: Tensor, ids: Tensor) -> Iterator[Part]:
    """The target's answers as they arrive: its own parts where it streams, else one call per `batch_size` points.

    Args:
        target: answers.
        x: points (m, C, H, W).
        ids: (m,) the sample each belongs to.

    >>> from poise import ModuleTarget
    >>> module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> target = ModuleTarget(module, num_classes=3, batch_size=2)
    >>> [rows.tolist() for rows, _ in arriving(target, torch.rand(5, 1, 2, 2), torch.arange(5))]
    [[0, 1], [2, 3], [4]]
    """
    if isinstance(target, StreamingTarget):
        if len(x):
            yield from target.stream(x, ids)
        return
    for rows, points, names in calls(x, ids, target.batch_size):
        yield rows, target.query(points, names)


def calls(x: Tensor, ids: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Positions, points and ids, `size` at a time and without a copy; nothing where there are none."""
    if len(x):
        rows = torch.arange(len(x), device=x.device)
        yield from zip(*(torch.split(part, size) for part in (rows, x, ids)), strict=True)
