"""The confidence goals of the papers: under- and overconfidence, maximum and random miscalibration, ConfSmooth."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from poise.errors import InputError
from poise.objectives.base import (
    Bound,
    LabelKeeping,
    Objective,
    complement,
    downwards,
    of_class,
    probability_gap,
    upwards,
)
from poise.rng import Rng
from poise.types import Access, Outputs


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise InputError(f"{name} must be in [0, 1), got {value}")


Follow = Literal["goal", "cross-entropy"]
WhichLabel = Literal["predicted", "true"]


@dataclass(frozen=True, kw_only=True)
class _AlongCrossEntropy(LabelKeeping):
    """Ranked and finished by `goal`; the search follows the cross-entropy to class c, up (under) or down (over)."""

    goal: Bound
    c: Tensor

    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        log_p = of_class(outputs.log_probabilities, self.c[ids])
        return torch.where(self.over[ids], -log_p, log_p)

    def merit(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return self.goal.merit(outputs, ids)

    def done(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return self.goal.done(outputs, ids)


def _followed(goal: Bound, labels: Tensor, follow: Follow, label: WhichLabel) -> Bound:
    if follow == "goal":
        return goal
    return _AlongCrossEntropy(k=goal.k, over=goal.over, goal=goal, c=goal.k if label == "predicted" else labels)


def _check_follow(name: str, follow: str, label: str) -> None:
    if follow not in ("goal", "cross-entropy") or label not in ("predicted", "true"):
        raise InputError(
            f"{name}: follow must be 'goal' or 'cross-entropy', label 'predicted' or 'true', got '{follow}', '{label}'"
        )


@dataclass(frozen=True, kw_only=True)
class _Gap(LabelKeeping):
    tol: float

    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return outputs.once(probability_gap, self.k, ids)

    def done(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return self.loss(outputs, ids) < self.tol


@dataclass(frozen=True)
class UCA:
    """Underconfidence: minimise p_k - max_{j != k} p_j while k stays the prediction (calibration attacks, Eq. 3).

    Args:
        tol: done below this gap. The paper says 0.01; its released code stops at 0.1 (and counts queries so).
        follow: what the search follows: the goal itself, or the cross-entropy as in the released white-box code.
        label: the class of that cross-entropy; the released code uses the true one, which moves misclassified samples
            the wrong way.

    The gap shrinks also when the runner-up rises, so p_k itself need not fall unless K = 2.

    >>> import torch, poise
    >>> from poise.rng import Rng
    >>> answer, row = poise.Outputs(torch.tensor([[2.0, 1.0, 0.0]])), torch.tensor([0])
    >>> goal = UCA().bind(answer, labels=row, ids=row, rng=Rng(0, row))
    >>> round(goal.loss(answer, row).item(), 3)  # p_0 - p_1 = 0.665 - 0.245
    0.421
    """

    access: ClassVar[Access] = Access.SCORES
    tol: float = 0.01
    follow: Follow = "goal"
    label: WhichLabel = "predicted"

    def __post_init__(self) -> None:
        _check_fraction("UCA: tol", self.tol)
        _check_follow("UCA", self.follow, self.label)

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        goal = _Gap(k=clean.labels, over=downwards(clean), tol=self.tol)
        return _followed(goal, labels, self.follow, self.label)


@dataclass(frozen=True, kw_only=True)
class _Complement(LabelKeeping):
    tol: float

    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return outputs.once(complement, self.k, ids)

    def done(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return self.loss(outputs, ids) < self.tol


@dataclass(frozen=True)
class OCA:
    """Overconfidence: minimise 1 - p_k while k stays the prediction (calibration attacks, Eq. 4).

    Args:
        tol: done below this distance from certainty; the paper and its code use 0.01.
        follow, label: as in `UCA`.

    >>> import torch, poise
    >>> from poise.rng import Rng
    >>> answer, row = poise.Outputs(torch.tensor([[2.0, 1.0, 0.0]])), torch.tensor([0])
    >>> goal = OCA().bind(answer, labels=row, ids=row, rng=Rng(0, row))
    >>> round(goal.loss(answer, row).item(), 3)  # 1 - p_0
    0.335
    """

    access: ClassVar[Access] = Access.SCORES
    tol: float = 0.01
    follow: Follow = "goal"
    label: WhichLabel = "predicted"

    def __post_init__(self) -> None:
        _check_fraction("OCA: tol", self.tol)
        _check_follow("OCA", self.follow, self.label)

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        goal = _Complement(k=clean.labels, over=upwards(clean), tol=self.tol)
        return _followed(goal, labels, self.follow, self.label)


@dataclass(frozen=True, kw_only=True)
class _Smooth(LabelKeeping):
    smoothing: float
    floor: float
    tol: float

    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        log_p = outputs.log_probabilities
        return -(1 - self.smoothing) * of_class(log_p, self.k[ids]) - self.smoothing * log_p.mean(dim=1)

    def done(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return self.loss(outputs, ids) - self.floor <= self.tol


@dataclass(frozen=True)
class ConfSmooth:
    """Underconfidence by cross-entropy to a smoothed label: -sum_i [(1-e) 1{i=k} + e/K] log p_i (UAT, Eq. 7).

    Args:
        smoothing: e; 0.98 in the paper, so that the target keeps 0.02 + 0.98/K on the clean prediction k.
        tol: done within this distance (in nats) of the loss's minimum, the target's entropy.

    >>> import torch, poise
    >>> from poise.rng import Rng
    >>> answer, row = poise.Outputs(torch.tensor([[2.0, 1.0, 0.0]])), torch.tensor([0])
    >>> goal = ConfSmooth().bind(answer, labels=row, ids=row, rng=Rng(0, row))
    >>> round(goal.loss(answer, row).item(), 3)  # -0.02 log p_0 - 0.98 (log p_0 + log p_1 + log p_2) / 3
    1.388
    """

    access: ClassVar[Access] = Access.SCORES
    smoothing: float = 0.98
    tol: float = 1e-6

    def __post_init__(self) -> None:
        if not 0 < self.smoothing <= 1:
            raise InputError(f"ConfSmooth: smoothing must be in (0, 1], got {self.smoothing}")

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        classes = clean.scores.shape[1]
        rest = self.smoothing / classes
        top = 1 - self.smoothing + rest
        floor = -top * math.log(top) - (classes - 1) * rest * math.log(rest)
        return _Smooth(k=clean.labels, over=downwards(clean), smoothing=self.smoothing, floor=floor, tol=self.tol)


@dataclass(frozen=True, kw_only=True)
class _Split(LabelKeeping):
    """One goal for the samples marked `over`, another for the rest."""

    under_goal: Bound
    over_goal: Bound

    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return torch.where(self.over[ids], self.over_goal.loss(outputs, ids), self.under_goal.loss(outputs, ids))

    def aimed(self, outputs: Outputs, ids: Tensor, aim: Tensor) -> Tensor:
        over, under = self.over_goal.aimed(outputs, ids, aim), self.under_goal.aimed(outputs, ids, aim)
        return torch.where(self.over[ids], over, under)

    def merit(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return torch.where(self.over[ids], self.over_goal.merit(outputs, ids), self.under_goal.merit(outputs, ids))

    def accept(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return torch.where(self.over[ids], self.over_goal.accept(outputs, ids), self.under_goal.accept(outputs, ids))

    def done(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return torch.where(self.over[ids], self.over_goal.done(outputs, ids), self.under_goal.done(outputs, ids))


@dataclass(frozen=True)
class MMA:
    """Maximum miscalibration: `under` where the prediction is right, `over` where it is wrong (calibration attacks).

    Args:
        under: goal of the correctly classified samples; `ConfSmooth()` is stronger than the paper's `UCA()`.
        over: goal of the misclassified ones.

    The ECE that it can reach is at most 1 - accuracy/K (Prop. 3.1; `poise.metrics.mma_bound`).

    >>> import torch, poise
    >>> from poise.rng import Rng
    >>> answers, rows = poise.Outputs(torch.tensor([[2.0, 1.0], [2.0, 1.0]])), torch.tensor([0, 1])
    >>> goal = MMA().bind(answers, labels=torch.tensor([0, 1]), ids=rows, rng=Rng(0, rows))
    >>> goal.over.tolist()  # the first answer is right, the second one wrong
    [False, True]
    """

    access: ClassVar[Access] = Access.SCORES
    under: Objective = field(default_factory=UCA)
    over: Objective = field(default_factory=OCA)

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        under, over = (goal.bind(clean, labels, ids, rng) for goal in (self.under, self.over))
        return _Split(k=clean.labels, over=clean.labels != labels, under_goal=under, over_goal=over)


@dataclass(frozen=True, kw_only=True)
class _Reach(LabelKeeping):
    goal: Tensor

    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return (of_class(outputs.probabilities, self.k[ids]) - self.goal[ids]).abs()

    def done(self, outputs: Outputs, ids: Tensor) -> Tensor:
        confidence = of_class(outputs.probabilities, self.k[ids])
        return torch.where(self.over[ids], confidence >= self.goal[ids], confidence <= self.goal[ids])


@dataclass(frozen=True)
class RCA:
    """Random confidence: every sample draws its own goal g (calibration attacks, 3.2).

    Args:
        mode: "target" moves p_k to g ~ U[1/K, 1] and stops where it is reached or crossed (the paper's text);
            "direction" draws g ~ U(1/K + 0.05, 0.99), only asks whether it lies above p_k (over) or below (under), then
            runs `UCA` or `OCA` to their end (the released code, and the only reading that reproduces the published
            tables).
        tol: as in `UCA` and `OCA`, for mode "direction".

    A goal below 1/2 cannot be reached for K = 2, and none below 1/K ever.

    >>> import torch, poise
    >>> from poise.rng import Rng
    >>> answers, rows = poise.Outputs(torch.tensor([[1.0, 0.0]] * 4)), torch.arange(4)
    >>> goal = RCA(mode="direction").bind(answers, labels=rows % 2, ids=rows, rng=Rng(0, rows))
    >>> goal.over.tolist()  # where the goal that was drawn lies above p_0 = 0.73
    [True, False, False, False]
    """

    access: ClassVar[Access] = Access.SCORES
    mode: Literal["target", "direction"] = "target"
    tol: float = 0.01

    def __post_init__(self) -> None:
        if self.mode not in ("target", "direction"):
            raise InputError(f"RCA: mode must be 'target' or 'direction', got '{self.mode}'")
        _check_fraction("RCA: tol", self.tol)

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        floor = 1 / clean.scores.shape[1]
        low, high = (floor, 1.0) if self.mode == "target" else (min(floor + 0.05, 0.99), 0.99)
        goal = low + (high - low) * rng.uniform("rca-goal", 0, ids).to(clean.confidence.dtype)
        over = goal > clean.confidence
        if self.mode == "target":
            return _Reach(k=clean.labels, over=over, goal=goal)
        under_goal = UCA(self.tol).bind(clean, labels, ids, rng)
        over_goal = OCA(self.tol).bind(clean, labels, ids, rng)
        return _Split(k=clean.labels, over=over, under_goal=under_goal, over_goal=over_goal)
