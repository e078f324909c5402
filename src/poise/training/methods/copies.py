"""Adversarial training with several attacked copies of every batch, each with a gradient of its own (DDi-AT)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from poise.errors import InputError
from poise.targets import ModuleTarget
from poise.training.base import Batch, Forward, Terms, Views
from poise.training.losses import smoothed_cross_entropy
from poise.training.methods.adversarial import AT


@dataclass(frozen=True)
class Copies:
    """Cross-entropy at each of several attacked copies of a batch, from random starts of their own.

    Latorre et al., Finding Actual Descent Directions for Adversarial Training, ICLR 2023; meant for the update
    `CommonDescent`, which takes one gradient per copy. Another update follows the mean over the copies.

    Args:
        copies: M; 10 in the released CIFAR-10 configuration. With 1 this is `AT`.
        eps, step, steps, norm: of each PGD; .031, .00797 and 7 there.

    >>> import poise
    >>> from poise.training import Batch
    >>> target, data = poise.models.blank("builtin:digits"), poise.data.load("builtin:digits", samples=8)
    >>> method, batch = Copies(copies=2, eps=0.1, step=0.05, steps=2), Batch(data.images, data.labels, data.ids)
    >>> sorted(method.loss(target.module, batch, method.views(target, batch)))
    ['attacked']
    """

    copies: int = 10
    eps: float = 8 / 255
    step: float = 2 / 255
    steps: int = 7
    norm: str = "linf"

    def __post_init__(self) -> None:
        _ = self.attack
        if not 1 <= self.copies <= 256:
            raise InputError(f"Copies: copies must be in 1..256, got {self.copies}")

    @property
    def attack(self) -> AT:
        """The attack that every copy goes through."""
        return AT(self.eps, self.step, self.steps, self.norm)

    def views(self, target: ModuleTarget, batch: Batch) -> Views:
        inner = self.attack.inner
        return tuple(inner.points(target, batch, copy) for copy in range(self.copies))

    def loss(self, forward: Forward, batch: Batch, views: Views) -> Terms:
        losses = [smoothed_cross_entropy(forward(images), batch.labels) for images in views]
        return {"attacked": torch.stack(losses).mean()}
