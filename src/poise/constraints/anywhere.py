"""No ball at all: every legal image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from poise.constraints.base import Box
from poise.rng import Rng


@dataclass(frozen=True, slots=True)
class Anywhere:
    """All points of the box; for attacks without a radius, such as semantic negatives.

    `eps` is infinite; a search whose steps are shares of eps cannot use it.

    >>> bool(Anywhere().contains(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)))
    True
    """

    @property
    def eps(self) -> float:
        """No limit."""
        return float("inf")

    def project(self, x: Tensor, clean: Tensor, box: Box) -> Tensor:
        """The nearest legal point."""
        return box.project(x)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The gradient's signs."""
        return gradient.sign()

    def sample(self, clean: Tensor, box: Box, ids: Tensor, rng: Rng, step: int) -> Tensor:
        """Uniform in the box."""
        noise = rng.uniform("anywhere-start", step, ids, tuple(clean.shape[1:])).to(clean.dtype)
        return box.low + noise * (box.high - box.low)

    def distance(self, x: Tensor, clean: Tensor) -> Tensor:
        """(m,) largest absolute change."""
        return (x - clean).flatten(1).abs().amax(dim=1)

    def contains(self, x: Tensor, clean: Tensor) -> Tensor:
        """(m,) bool: always."""
        return torch.ones(len(x), dtype=torch.bool, device=x.device)
