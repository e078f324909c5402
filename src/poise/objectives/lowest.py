"""The goals of the standard attack: the confidence itself, followed along a loss that does not stall."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from poise.errors import InputError
from poise.objectives.base import Bound, LabelKeeping, downwards, logit_margin, of_class, probability_gap
from poise.rng import Rng
from poise.types import Access, Outputs

GAP, GOAL = -1.0, -2.0
"""Aims of `MinConfidence` besides an order: p_k - max_{j != k} p_j as in `UCA`, and p_k - 1/K itself."""


def divergence(outputs: Outputs, order: Tensor) -> Tensor:
    """(m,) how far the answer p is from uniform u: KL(u || p) at order 0, Renyi's D_order(p || u) at orders > 1.

    Order 0 pulls every class up at once, which is what a network whose p can become uniform needs; a high order looks
    at the highest probability alone, log(K max p), which is all that counts where uniform is out of reach.

    >>> import torch, poise
    >>> uniform, sure = torch.zeros(1, 4), torch.tensor([[9.0, 0.0, 0.0, 0.0]])
    >>> [round(divergence(poise.Outputs(z), torch.tensor([2.0])).item(), 3) for z in (uniform, sure)]
    [0.0, 1.386]
    """
    log_p = outputs.log_probabilities
    classes = log_p.shape[1]
    q = order.to(log_p.dtype).clamp_min(1 + 1e-6)
    peaked = (q[:, None] * log_p).logsumexp(dim=1) / (q - 1) + math.log(classes)
    return torch.where(order == 0, -log_p.mean(dim=1) - math.log(classes), peaked)


def _check(name: str, weight: float, tol: float) -> None:
    if not 0 <= weight < math.inf:
        raise InputError(f"{name}: weight must be a finite number of at least 0, got {weight}")
    if not 0 <= tol < 1:
        raise InputError(f"{name}: tol must be in [0, 1), got {tol}")


@dataclass(frozen=True, kw_only=True)
class _Lowest(LabelKeeping):
    order: float
    weight: float
    tol: float
    penalty: bool

    def aimed(self, outputs: Outputs, ids: Tensor, aim: Tensor) -> Tensor:
        walk = divergence(outputs, aim.clamp_min(0)) + self.weight * torch.relu(
            -outputs.once(logit_margin, self.k, ids)
        )
        plain = torch.where(aim == GAP, outputs.once(probability_gap, self.k, ids), self.merit(outputs, ids))
        return torch.where(aim < 0, plain, walk)

    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        if self.penalty:
            return self.aimed(outputs, ids, torch.full(ids.shape, self.order, device=ids.device))
        return self.merit(outputs, ids)

    def merit(self, outputs: Outputs, ids: Tensor) -> Tensor:
        probability = of_class(outputs.log_probabilities, self.k[ids]).exp()
        return probability - 1 / outputs.scores.shape[1]

    def done(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return self.merit(outputs, ids) <= self.tol


@dataclass(frozen=True)
class MinConfidence:
    """The lowest confidence p_k while k stays the prediction; ranked by p_k - 1/K, which is 0 at its floor.

    Args:
        follow: "penalty": the search follows the divergence from uniform, plus `weight` times the logits by which
            another class has overtaken k; it may walk through points that lost the label, and none of them becomes a
            result. "goal": it follows p_k - 1/K itself (NewtonFool, ACE).
        order: of the divergence, 0 or above 1 (see `divergence`); a search may ask for others by `aim`.
        weight: of that penalty.
        tol: done within this of 1/K.

    >>> import torch, poise
    >>> from poise.rng import Rng
    >>> answer, row = poise.Outputs(torch.tensor([[2.0, 1.0, 0.0]])), torch.tensor([0])
    >>> goal = MinConfidence().bind(answer, labels=row, ids=row, rng=Rng(0, row))
    >>> round(goal.merit(answer, row).item(), 3)  # p_0 - 1/3
    0.332
    """

    access: ClassVar[Access] = Access.SCORES
    follow: Literal["penalty", "goal"] = "penalty"
    order: float = 0.0
    weight: float = 0.1
    tol: float = 5e-4

    def __post_init__(self) -> None:
        if self.follow not in ("penalty", "goal"):
            raise InputError(f"MinConfidence: follow must be 'penalty' or 'goal', got '{self.follow}'")
        if self.order != 0 and not 1 < self.order < math.inf:
            raise InputError(f"MinConfidence: order must be 0 or above 1, got {self.order}")
        _check("MinConfidence", self.weight, self.tol)

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        return _Lowest(
            k=clean.labels,
            over=downwards(clean),
            order=self.order,
            weight=self.weight,
            tol=self.tol,
            penalty=self.follow == "penalty",
        )


@dataclass(frozen=True, kw_only=True)
class _At(LabelKeeping):
    goal: Tensor
    weight: float
    tol: float

    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return self.aimed(outputs, ids, torch.zeros_like(ids))

    def aimed(self, outputs: Outputs, ids: Tensor, aim: Tensor) -> Tensor:
        own = of_class(outputs.log_probabilities, self.k[ids])
        towards = torch.where(own.exp() > self.goal[ids], divergence(outputs, aim.clamp_min(0)), -own)
        return towards + self.weight * torch.relu(-outputs.once(logit_margin, self.k, ids))

    def merit(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return (of_class(outputs.log_probabilities, self.k[ids]).exp() - self.goal[ids]).abs()

    def done(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return self.merit(outputs, ids) <= self.tol


@dataclass(frozen=True)
class RandomConfidence:
    """A confidence drawn for every sample, g ~ U[1/K, 1], approached from both sides; ranked by |p_k - g|.

    The goal of `RCA`, followed as `MinConfidence` is where p_k lies above g and along -log p_k below it. `RCA` stops
    where g is crossed, this one where p_k is within `tol` of it.

    Args:
        weight: as in `MinConfidence`.
        tol: done within this of g.

    >>> import torch, poise
    >>> from poise.rng import Rng
    >>> answers, rows = poise.Outputs(torch.tensor([[1.0, 0.0]] * 3)), torch.arange(3)
    >>> goal = RandomConfidence().bind(answers, labels=rows * 0, ids=rows, rng=Rng(0, rows))
    >>> goal.merit(answers, rows).numpy().round(3).tolist()  # |p_0 - g|, with p_0 = 0.731 and g drawn for each
    [0.156, 0.214, 0.124]
    """

    access: ClassVar[Access] = Access.SCORES
    weight: float = 0.1
    tol: float = 0.005

    def __post_init__(self) -> None:
        _check("RandomConfidence", self.weight, self.tol)

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        floor = 1 / clean.scores.shape[1]
        goal = floor + (1 - floor) * rng.uniform("rca-goal", 0, ids).to(clean.confidence.dtype)
        return _At(k=clean.labels, over=goal > clean.confidence, goal=goal, weight=self.weight, tol=self.tol)
