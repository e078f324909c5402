"""Keep the label: the wrapper that turns any goal into one whose results cannot flip."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from poise.errors import InputError
from poise.objectives.base import Around, Bound, Objective, predicted, probability_gap
from poise.rng import Rng
from poise.types import Access, Outputs


@dataclass(frozen=True, kw_only=True)
class _Kept(Around):
    label_margin: float

    def accept(self, outputs: Outputs, ids: Tensor) -> Tensor:
        kept = predicted(outputs, self.k, ids)
        if self.label_margin > 0:
            kept = kept & (outputs.once(probability_gap, self.k, ids) > self.label_margin)
        return kept & self.inner.accept(outputs, ids)


@dataclass(frozen=True)
class KeepLabel:
    """`objective`, with results that keep the clean prediction k by a margin.

    Args:
        objective: the goal.
        label_margin: a result needs p_k - max_{j != k} p_j above this. Underconfidence drives the gap to 0, where
            another
            batch size or another kernel flips the label; 1e-4 survives that (spec 0, "numerical label flips").

    >>> import torch, poise
    >>> from poise.rng import Rng
    >>> from poise.objectives import UCA
    >>> rows = torch.tensor([0, 0])
    >>> clean = poise.Outputs(torch.tensor([[2.0, 1.0]]))
    >>> goal = KeepLabel(UCA()).bind(clean, labels=rows[:1], ids=rows[:1], rng=Rng(0, rows[:1]))
    >>> goal.accept(poise.Outputs(torch.tensor([[1.1, 1.0], [1.0, 1.0]])), rows).tolist()  # a tie is no kept label
    [True, False]
    """

    objective: Objective
    label_margin: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 <= self.label_margin < 1:
            raise InputError(f"KeepLabel: label_margin must be in [0, 1), got {self.label_margin}")

    @property
    def access(self) -> Access:
        """What the wrapped goal needs; a margin needs scores."""
        return max(self.objective.access, Access.SCORES if self.label_margin > 0 else Access.LABELS)

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        inner = self.objective.bind(clean, labels, ids, rng)
        return _Kept(k=inner.k, over=inner.over, inner=inner, label_margin=self.label_margin)
