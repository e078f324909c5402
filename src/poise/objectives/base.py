"""What an attacker minimises: per-sample, pure functions of a target's answers. An objective never calls the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from poise.rng import Rng
from poise.types import Access, OutputKind, Outputs, exact


class Objective(Protocol):
    """A goal, free of data. `bind` fixes what it needs to know of each sample.

    >>> import poise
    >>> goal: Objective = poise.objectives.KeepLabel(poise.objectives.UCA())
    >>> goal.access.name
    'SCORES'
    """

    @property
    def access(self) -> Access:
        """The least that the attacker needs to see of the target."""
        ...

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        """The goal for n samples: clean answers (n, K), true labels (n,), rows ids = 0..n-1, random streams."""
        ...


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A goal bound to n samples. `ids` (m,) says which of them each answered point belongs to; row i never sees row j.

    Attributes:
        k: (n,) the clean prediction, lowest index on ties.
        over: (n,) bool, True where the goal raises the confidence in k; searches with one setting per direction read
            it.

    >>> import torch, poise
    >>> from poise.rng import Rng
    >>> answer, row = poise.Outputs(torch.tensor([[2.0, 1.0, 0.0]])), torch.tensor([0])
    >>> goal: Bound = poise.objectives.Margin().bind(answer, labels=row, ids=row, rng=Rng(0, row))
    >>> goal.k, goal.loss(answer, row), goal.done(answer, row)
    (tensor([0]), tensor([1.], dtype=torch.float64), tensor([False]))
    """

    k: Tensor
    over: Tensor

    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        """(m,) what the search follows downhill; differentiable in the scores."""
        raise TypeError(f"{type(self).__name__} must define loss(outputs, ids)")

    def aimed(self, outputs: Outputs, ids: Tensor, aim: Tensor) -> Tensor:
        """(m,) the loss that a search asked for by number, aim (m,); the loss itself where a goal has one alone."""
        return self.loss(outputs, ids)

    def merit(self, outputs: Outputs, ids: Tensor) -> Tensor:
        """(m,) what the attacker wants and results are ranked by, lower is better; the loss unless stated."""
        return self.loss(outputs, ids)

    def accept(self, outputs: Outputs, ids: Tensor) -> Tensor:
        """(m,) bool: the point would do as a result."""
        return torch.ones_like(ids, dtype=torch.bool)

    def aside(self, outputs: Outputs, ids: Tensor) -> Tensor | None:
        """(m,) a second figure whose lowest value over all contained points is reported; None where there is none."""
        return None

    def done(self, outputs: Outputs, ids: Tensor) -> Tensor:
        """(m,) bool: the goal is reached; asked only of points that are accepted and better than all before."""
        return torch.zeros_like(ids, dtype=torch.bool)


@dataclass(frozen=True, kw_only=True)
class Around(Bound):
    """Another bound goal in every respect; wrappers change one of them."""

    inner: Bound

    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return self.inner.loss(outputs, ids)

    def aimed(self, outputs: Outputs, ids: Tensor, aim: Tensor) -> Tensor:
        return self.inner.aimed(outputs, ids, aim)

    def aside(self, outputs: Outputs, ids: Tensor) -> Tensor | None:
        return self.inner.aside(outputs, ids)

    def merit(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return self.inner.merit(outputs, ids)

    def accept(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return self.inner.accept(outputs, ids)

    def done(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return self.inner.done(outputs, ids)


@dataclass(frozen=True, kw_only=True)
class LabelKeeping(Bound):
    """A goal whose results keep the clean prediction."""

    def accept(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return predicted(outputs, self.k, ids)


def downwards(clean: Outputs) -> Tensor:
    """(n,) `over` of a goal that lowers the confidence in every sample's clean prediction."""
    return torch.zeros_like(clean.labels, dtype=torch.bool)


def upwards(clean: Outputs) -> Tensor:
    """(n,) `over` of a goal that raises it."""
    return torch.ones_like(clean.labels, dtype=torch.bool)


def of_class(values: Tensor, classes: Tensor) -> Tensor:
    """(m,) the entry of each row of values (m, K) at classes (m,)."""
    return values.gather(1, classes.unsqueeze(1)).squeeze(1)


def best_other(values: Tensor, classes: Tensor) -> Tensor:
    """(m,) the highest entry of each row of values (m, K) away from classes (m,)."""
    return values.scatter(1, classes.unsqueeze(1), -torch.inf).amax(dim=1)


_MANY = 64
"""Classes beyond which the label is slow to find on a CPU."""


def predicted(outputs: Outputs, classes: Tensor, ids: Tensor) -> Tensor:
    """(m,) bool: the answers' labels are those of their samples in classes (n,)."""
    many = outputs.scores.shape[1] > _MANY and ids.device.type == "cpu"
    if "labels" not in vars(outputs) and many:  # the margin is cheaper then, and asked for anyway
        margin = outputs.once(logit_margin, classes, ids)
        if not bool((margin == 0).any()):
            return margin > 0
    return outputs.labels == classes.index_select(0, ids)


def lost(outputs: Outputs, classes: Tensor, ids: Tensor) -> Tensor:
    """(m,) bool: the contrary of `predicted`, for goals that know the margin; cheaper while nobody is behind."""
    behind = outputs.once(logit_margin, classes, ids) <= 0
    if behind.device.type == "cpu" and not bool(behind.any()):
        return behind
    return ~predicted(outputs, classes, ids)


def logit_margin(outputs: Outputs, classes: Tensor) -> Tensor:
    """(m,) z_c - max_{j != c} z_j; negative where another class wins."""
    if outputs.kind is OutputKind.LOGITS and "logits" not in vars(outputs):  # chosen first, widened then
        own = of_class(outputs.scores, classes).to(exact(outputs.scores.device))
        return own - best_other(outputs.scores, classes)  # which is widened in passing
    return of_class(outputs.logits, classes) - best_other(outputs.logits, classes)


def log_probability(outputs: Outputs, classes: Tensor) -> Tensor:
    """(m,) log p_c."""
    return of_class(outputs.log_probabilities, classes)


def probability_gap(outputs: Outputs, classes: Tensor) -> Tensor:
    """(m,) p_c - max_{j != c} p_j in [-1, 1], resolved to about 1e-16 near a tie (float64)."""
    own, other = of_class(outputs.log_probabilities, classes), best_other(outputs.log_probabilities, classes)
    ahead = own >= other
    distance = torch.where(ahead, own - other, other - own)
    size = -torch.where(ahead, own, other).exp() * torch.expm1(-distance)
    return torch.where(ahead, size, -size)


def complement(outputs: Outputs, classes: Tensor) -> Tensor:
    """(m,) 1 - p_c in [0, 1], resolved to about 1e-16 near 1, where float32 ends at 6e-8."""
    return -torch.expm1(of_class(outputs.log_probabilities, classes).clamp_max(0))
