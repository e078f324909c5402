"""The classic goals: a wrong label, a chosen label, a high score for a chosen class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from poise.errors import InputError
from poise.objectives.base import (
    Bound,
    downwards,
    log_probability,
    logit_margin,
    lost,
    of_class,
    predicted,
    probability_gap,
    upwards,
)
from poise.rng import Rng
from poise.types import Access, Outputs


@dataclass(frozen=True, kw_only=True)
class _AwayFrom(Bound):
    """Lower the score of class y; results are ranked by the margin, so that a flipped label always ranks first."""

    y: Tensor
    stop: bool

    def merit(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return outputs.once(logit_margin, self.y, ids)

    def done(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return lost(outputs, self.y, ids) if self.stop else torch.zeros_like(ids, dtype=torch.bool)


@dataclass(frozen=True, kw_only=True)
class _LogitMargin(_AwayFrom):
    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return outputs.once(logit_margin, self.y, ids)


@dataclass(frozen=True, kw_only=True)
class _ProbabilityMargin(_AwayFrom):
    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return outputs.once(probability_gap, self.y, ids)

    def merit(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return self.loss(outputs, ids)


@dataclass(frozen=True, kw_only=True)
class _LogProbability(_AwayFrom):
    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return outputs.once(log_probability, self.y, ids)


@dataclass(frozen=True, kw_only=True)
class _Label(_AwayFrom):
    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return predicted(outputs, self.y, ids).double()

    def merit(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return self.loss(outputs, ids)


@dataclass(frozen=True)
class Margin:
    """A wrong label, following the logit margin z_y - max_{j != y} z_j (Square's and the AAA paper's default).

    Args:
        stop: stop at the first point whose label differs from the true one.

    >>> import torch, poise
    >>> from poise.rng import Rng
    >>> answer, row = poise.Outputs(torch.tensor([[2.0, 0.5, 0.0]])), torch.tensor([0])
    >>> Margin().bind(answer, labels=row, ids=row, rng=Rng(0, row)).loss(answer, row).item()  # z_0 - z_1
    1.5
    """

    access: ClassVar[Access] = Access.SCORES
    stop: bool = True

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        return _LogitMargin(k=clean.labels, over=downwards(clean), y=labels, stop=self.stop)


@dataclass(frozen=True)
class ProbabilityMargin:
    """A wrong label, following p_y - max_{j != y} p_j (AAA paper, Table 8). Saturates where logits do not.

    Args:
        stop: as in `Margin`.

    >>> import torch, poise
    >>> from poise.rng import Rng
    >>> answer, row = poise.Outputs(torch.tensor([[2.0, 1.0, 0.0]])), torch.tensor([0])
    >>> goal = ProbabilityMargin().bind(answer, labels=row, ids=row, rng=Rng(0, row))
    >>> round(goal.loss(answer, row).item(), 3)  # p_0 - p_1
    0.421
    """

    access: ClassVar[Access] = Access.SCORES
    stop: bool = True

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        return _ProbabilityMargin(k=clean.labels, over=downwards(clean), y=labels, stop=self.stop)


@dataclass(frozen=True)
class CrossEntropy:
    """A wrong label, raising the cross-entropy -log p_y of the true class (PGD, FGSM).

    Args:
        stop: stop at the first point whose label differs; False goes on to the last step, as PGD was published.

    The loss is +log p_y, lower is better. Results are ranked by the logit margin, so that a flipped label is never
    thrown
    away for a higher cross-entropy.

    >>> import torch, poise
    >>> from poise.rng import Rng
    >>> answer, row = poise.Outputs(torch.tensor([[2.0, 1.0, 0.0]])), torch.tensor([0])
    >>> goal = CrossEntropy().bind(answer, labels=row, ids=row, rng=Rng(0, row))
    >>> round(goal.loss(answer, row).item(), 3)  # log p_0
    -0.408
    """

    access: ClassVar[Access] = Access.SCORES
    stop: bool = False

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        return _LogProbability(k=clean.labels, over=downwards(clean), y=labels, stop=self.stop)


@dataclass(frozen=True)
class Misclassify:
    """A wrong label, seen through labels alone: the loss is 1 where the label is the true one, 0 elsewhere.

    Args:
        stop: as in `Margin`.

    >>> import torch, poise
    >>> from poise.rng import Rng
    >>> answers, rows = poise.Outputs(torch.eye(2)), torch.arange(2)
    >>> goal = Misclassify().bind(answers, labels=torch.tensor([0, 0]), ids=rows, rng=Rng(0, rows))
    >>> goal.loss(answers, rows).tolist(), goal.done(answers, rows).tolist()
    ([1.0, 0.0], [False, True])
    """

    access: ClassVar[Access] = Access.LABELS
    stop: bool = True

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        return _Label(k=clean.labels, over=downwards(clean), y=labels, stop=self.stop)


@dataclass(frozen=True, kw_only=True)
class _Towards(Bound):
    target: Tensor

    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return -of_class(outputs.log_probabilities, self.target[ids])


@dataclass(frozen=True, kw_only=True)
class _Labelled(_Towards):
    """Results are ranked by the targeted margin, so that a point labelled t always ranks first."""

    stop: bool

    def merit(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return -outputs.once(logit_margin, self.target, ids)

    def done(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return predicted(outputs, self.target, ids) & self.stop


@dataclass(frozen=True, kw_only=True)
class _LabelledByMargin(_Labelled):
    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return self.merit(outputs, ids)


@dataclass(frozen=True)
class Targeted:
    """A chosen wrong label t: minimise -log p_t, or the targeted margin max_{j != t} z_j - z_t.

    Args:
        classes: t for every sample; None draws it uniformly from the classes other than the true one.
        margin: follow the margin instead of the cross-entropy.
        stop: stop at the first point labelled t.

    >>> import torch, poise
    >>> from poise.rng import Rng
    >>> answer, row = poise.Outputs(torch.tensor([[2.0, 1.0, 0.0]])), torch.tensor([0])
    >>> goal = Targeted(classes=2, margin=True).bind(answer, labels=row, ids=row, rng=Rng(0, row))
    >>> goal.loss(answer, row).item()  # z_0 - z_2
    2.0
    """

    access: ClassVar[Access] = Access.SCORES
    classes: int | None = None
    margin: bool = False
    stop: bool = True

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        count = clean.scores.shape[1]
        if self.classes is None:
            target = (labels + 1 + rng.integers("target-class", 0, ids, count - 1)) % count
        else:
            target = _one_class("Targeted: classes", self.classes, labels, count)
        kind = _LabelledByMargin if self.margin else _Labelled
        return kind(k=clean.labels, over=downwards(clean), target=target, stop=self.stop)


@dataclass(frozen=True)
class TowardsClass:
    """The highest score for class i, whatever the label becomes: minimise -log p_i (MaxConfidence's inner goal).

    Args:
        index: i.

    >>> import torch, poise
    >>> from poise.rng import Rng
    >>> answer, row = poise.Outputs(torch.tensor([[2.0, 1.0, 0.0]])), torch.tensor([0])
    >>> goal = TowardsClass(1).bind(answer, labels=row, ids=row, rng=Rng(0, row))
    >>> round(goal.loss(answer, row).item(), 3)  # -log p_1
    1.408
    """

    access: ClassVar[Access] = Access.SCORES
    index: int

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        target = _one_class("TowardsClass: index", self.index, labels, clean.scores.shape[1])
        return _Towards(k=clean.labels, over=upwards(clean), target=target)


def _one_class(what: str, index: int, labels: Tensor, count: int) -> Tensor:
    if not 0 <= index < count:
        raise InputError(f"{what} must be in 0..{count - 1}, got {index}")
    return torch.full_like(labels, index)
