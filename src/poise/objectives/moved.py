"""Any goal, reached as soon as the confidence has moved by a given amount."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from poise.errors import InputError
from poise.objectives.base import Around, Bound, Objective, of_class
from poise.rng import Rng
from poise.types import Access, Outputs


@dataclass(frozen=True, kw_only=True)
class _Moved(Around):
    clean: Tensor
    by: float

    def done(self, outputs: Outputs, ids: Tensor) -> Tensor:
        change = of_class(outputs.probabilities, self.k[ids]) - self.clean[ids]
        return (change.abs() >= self.by) | self.inner.done(outputs, ids)


@dataclass(frozen=True)
class Moved:
    """`objective`, done as soon as p_k, the probability of the clean prediction k, has moved by `by` (either way).

    Obadinma et al., Calibration Attacks, Table 3: "the attack stops once confidence moved by 0.10".

    Args:
        objective: the goal that the search follows; `KeepLabel` goes around this one.
        by: in (0, 1).

    >>> import torch
    >>> from poise.objectives import OCA
    >>> clean, after = Outputs(torch.tensor([[1.0, 0.0]])), Outputs(torch.tensor([[1.6, 0.0]]))
    >>> row, rng = torch.tensor([0]), Rng(0, torch.tensor([0]))
    >>> bound = Moved(OCA(), 0.1).bind(clean, torch.tensor([0]), row, rng)
    >>> bool(bound.done(clean, row)), bool(bound.done(after, row))  # .731 to .832
    (False, True)
    """

    objective: Objective
    by: float

    def __post_init__(self) -> None:
        if not 0 < self.by < 1:
            raise InputError(f"Moved: by must be in (0, 1), got {self.by:g}")

    @property
    def access(self) -> Access:
        """What the goal needs, and scores at least."""
        return max(self.objective.access, Access.SCORES)

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        inner = self.objective.bind(clean, labels, ids, rng)
        return _Moved(k=clean.labels, over=inner.over, inner=inner, clean=clean.confidence, by=self.by)
