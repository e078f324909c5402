"""Away from the clean answer: TRADES' inner goal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from poise.objectives.base import Bound, downwards
from poise.rng import Rng
from poise.types import Access, Outputs


@dataclass(frozen=True, kw_only=True)
class _Away(Bound):
    log_p: Tensor

    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        log_p = self.log_p[ids]
        return (log_p.exp() * (outputs.log_probabilities - log_p)).sum(dim=1)


@dataclass(frozen=True)
class KLDivergence:
    """The answer furthest from the clean one: maximise KL(p(x) || p(x')) (TRADES, Zhang et al., ICML 2019).

    The loss is -KL, in nats, lower is better; labels may change. At the clean image the slope is exactly 0, so a
    search must begin elsewhere (`PGD(jitter=1e-3)`, or a random start).

    >>> import torch, poise
    >>> from poise.rng import Rng
    >>> clean, row = poise.Outputs(torch.tensor([[1.0, 0.0]])), torch.tensor([0])
    >>> goal = KLDivergence().bind(clean, labels=row, ids=row, rng=Rng(0, row))
    >>> goal.loss(clean, row).item() == 0, round(goal.loss(poise.Outputs(torch.zeros(1, 2)), row).item(), 3)
    (True, -0.111)
    """

    access: ClassVar[Access] = Access.SCORES

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        return _Away(k=clean.labels, over=downwards(clean), log_p=clean.log_probabilities)
