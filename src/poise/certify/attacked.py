"""The smoothed model as an attacker sees it, and the goal that the certificate speaks about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from poise.certify.bounds import check_sigma
from poise.errors import InputError
from poise.objectives.base import Bound, of_class
from poise.rng import Rng
from poise.types import Access, OutputKind, Outputs


class Smoothed(nn.Module):
    """log of the mean of `draws` softmaxes at x + sigma v: the smoothed confidence, estimated anew at every call.

    The gradient through it is that of Salman et al., NeurIPS 2019 (SmoothAdv), expectation over transformation with the
    mean inside the logarithm; an attack on `poise.ModuleTarget(Smoothed(...))` is an attack on the smoothed model.
    What an attack found is judged with fresh draws afterwards: here a lucky draw counts.

    Args:
        module: images (m, C, H, W) to scores (m, K).
        sigma: standard deviation of the noise in the units of a pixel; the noisy image is not clipped.
        draws: noisy copies per image and call.
        kind: what the scores are.

    >>> smoothed = Smoothed(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), sigma=0.25, draws=8)
    >>> bool((smoothed(torch.rand(2, 1, 2, 2)).exp().sum(dim=1) - 1).abs().max() < 1e-5)
    True
    """

    def __init__(
        self, module: nn.Module, *, sigma: float, draws: int = 16, kind: OutputKind = OutputKind.LOGITS
    ) -> None:
        check_sigma(sigma)
        if draws < 1:
            raise InputError(f"Smoothed: draws must be at least 1, got {draws}")
        super().__init__()
        self.module, self.sigma, self.draws, self.kind = module, sigma, draws, kind

    def forward(self, x: Tensor) -> Tensor:
        copies = x.repeat_interleave(self.draws, dim=0)
        answers = Outputs(self.module(copies + self.sigma * torch.randn_like(copies)), self.kind)
        each = answers.log_probabilities.view(len(x), self.draws, -1)
        mean: Tensor = each.logsumexp(dim=1) - torch.log(torch.tensor(float(self.draws)))
        return mean.to(x.dtype)


@dataclass(frozen=True, kw_only=True)
class _OfClass(Bound):
    c: Tensor
    sign: int

    def loss(self, outputs: Outputs, ids: Tensor) -> Tensor:
        return self.sign * of_class(outputs.log_probabilities, self.c[ids])


@dataclass(frozen=True)
class ClassScore:
    """The probability of the class given as each sample's label, whatever the prediction becomes: what a certificate of
    `pred_score` bounds.

    Args:
        up: raise it; else lower it.

    >>> import torch, poise
    >>> from poise.certify import Smoothed
    >>> target, data = poise.models.load("builtin:digits"), poise.data.load("builtin:digits", samples=2)
    >>> smoothed = poise.ModuleTarget(Smoothed(target.module, sigma=0.1, draws=4), num_classes=10)
    >>> goal, search, ball = ClassScore(up=False), poise.searches.PGD(steps=3), poise.constraints.L2(0.5)
    >>> result = poise.attack(smoothed, goal, search, ball, data.images, data.labels)
    >>> bool((result.table["l2"] <= 0.5).all())
    True
    """

    access: ClassVar[Access] = Access.SCORES
    up: bool

    def bind(self, clean: Outputs, labels: Tensor, ids: Tensor, rng: Rng) -> Bound:
        over = torch.full_like(clean.labels, self.up, dtype=torch.bool)
        return _OfClass(k=clean.labels, over=over, c=labels, sign=-1 if self.up else 1)
