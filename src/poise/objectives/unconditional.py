"""No goal: the first point that changes the answer is the result; for changes that are judged, not optimised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from poise.objectives.base import Bound, upwards
from poise.rng import Rng
from poise.types import Access, Outputs


@dataclass(frozen=True, kw_only=True)
class _Unconditional(Bound):
    clean: Tensor

    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return (outputs.scores == self.clean[ids]).all(dim=1).to(torch.float64)


@dataclass(frozen=True)
class Unconditional:
    """Takes the first point whose answer differs from the clean one: semantic negatives and other fixed changes.

    The loss is 1 where the answer is the clean one and 0 elsewhere.

    >>> import torch, poise
    >>> from poise.rng import Rng
    >>> answers, rows = poise.Outputs(torch.eye(2)), torch.arange(2)
    >>> goal = Unconditional().bind(answers, labels=rows, ids=rows, rng=Rng(0, rows))
    >>> goal.loss(poise.Outputs(torch.eye(2)[[0, 0]]), rows).tolist()  # the second one differs
    [1.0, 0.0]
    """

    access: ClassVar[Access] = Access.LABELS

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        return _Unconditional(k=clean.labels, over=upwards(clean), clean=clean.scores)
