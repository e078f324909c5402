"""MaxConfidence: the wrong answer that the classifier is surest of (Goodfellow et al., confidence thresholding)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from poise.errors import InputError
from poise.objectives.base import Bound, best_other, of_class, upwards
from poise.rng import Rng
from poise.types import Access, Outputs


@dataclass(frozen=True, kw_only=True)
class _SurelyWrong(Bound):
    y: Tensor
    tol: float

    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return -best_other(outputs.log_probabilities, self.y[ids])

    def aimed(self, outputs: Outputs, ids: Tensor, aim: Tensor) -> Tensor:
        classes = outputs.scores.shape[1]
        return -of_class(outputs.log_probabilities, (self.y[ids] + 1 + aim.long()) % classes)

    def aside(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return -best_other(outputs.probabilities, self.y[ids])

    def merit(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return self.aside(outputs, ids) - (outputs.labels != self.y[ids]).to(torch.float64)

    def done(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return self.merit(outputs, ids) <= -2 + self.tol


@dataclass(frozen=True)
class MaxConfidence:
    """max_{j != y} p_j over the ball, for the true class y (confidence thresholding, section 5).

    Results are ranked misclassified first, then by the wrong class's probability (spec 23, rule C), which gives the
    failure rate at every threshold. The table's `wrong_confidence` is the highest probability of a wrong class at any
    point seen (rule A), of which the upper bound of the success-fail curve is made.

    `aim` r = 0 .. K - 2 follows -log p_i of class i = (y + 1 + r) mod K; `EveryClass` asks for all of them.

    Args:
        tol: done within this of certainty in a wrong class.

    >>> import poise
    >>> target, data = poise.models.load("builtin:digits"), poise.data.load("builtin:digits", samples=4)
    >>> search = poise.searches.EveryClass(poise.searches.PGD(steps=10, step=0.05, undo=False))
    >>> ball = poise.constraints.Linf(0.2)
    >>> result = poise.attack(target, MaxConfidence(), search, ball, data.images, data.labels)
    >>> (result.table["wrong_confidence"] > 0.5).all()
    True
    """

    access: ClassVar[Access] = Access.SCORES
    tol: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.tol < 1:
            raise InputError(f"MaxConfidence: tol must be in [0, 1), got {self.tol}")

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        return _SurelyWrong(k=clean.labels, over=upwards(clean), y=labels, tol=self.tol)
