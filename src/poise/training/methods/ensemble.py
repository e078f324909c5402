"""TRS: an ensemble whose members have small input gradients that point in different directions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from poise.errors import InputError
from poise.models.variants import Ensemble
from poise.objectives import CrossEntropy
from poise.searches import PGD
from poise.targets import ModuleTarget
from poise.training.base import Batch, Forward, Terms, Views
from poise.training.inner import Inner, check_weight, inner_ball


@dataclass(frozen=True)
class TRS:
    """sum_m CE_m + scale * (coeff * mean |cos| + lamda * smoothness), of the members' input gradients.

    Yang et al., TRS: Transferability Reduced Ensemble via Promoting Gradient Diversity and Model Smoothness, NeurIPS
    2021. The cosines are those of each pair of members at each image, the smoothness is 2 ||grad_x CE_m||^2, both
    averaged; gradients are those of an image's own cross-entropy. Needs a network of the variant "trs".

    Args:
        coeff, lamda, scale: 2, 2 and 5.
        eps, norm, steps: where eps is above 0, every second image is moved by PGD within a radius that grows over the
            run from 0 to eps before the gradients are taken; else they are taken at the images.

    >>> import poise
    >>> from poise.training import Batch
    >>> target, data = poise.models.blank("builtin:digits?variant=trs"), poise.data.load("builtin:digits", samples=8)
    >>> method, batch = TRS(), Batch(data.images, data.labels, data.ids)
    >>> sorted(method.loss(target.module, batch, method.views(target, batch)))
    ['cross_entropy', 'diversity', 'smoothness']
    """

    coeff: float = 2.0
    lamda: float = 2.0
    scale: float = 5.0
    eps: float = 0.0
    norm: str = "linf"
    steps: int = 10

    def __post_init__(self) -> None:
        check_weight("TRS", coeff=self.coeff, lamda=self.lamda, scale=self.scale)
        inner_ball("TRS", self.norm, self.eps, self.steps)

    def views(self, target: ModuleTarget, batch: Batch) -> Views:
        radius = self.eps * batch.progress
        if not radius:
            return ()
        search = PGD(self.steps, 2.5 * radius / self.steps, random_start=True, undo=False)
        images, half = batch.images.clone(), slice(1, None, 2)
        if len(batch.labels) > 1:
            ball = inner_ball("TRS", self.norm, radius, self.steps)
            images[half] = Inner(CrossEntropy(), search, ball).points(target, batch.part(half))
        return (images,)

    def loss(self, forward: Forward, batch: Batch, views: Views) -> Terms:
        images = (views[0] if views else batch.images).detach().clone().requires_grad_(True)
        with members_apart(forward):
            logits = forward(images)  # (b, M, K)
        members = logits.shape[1]
        labels = batch.labels[:, None].expand(-1, members)
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(-1, members)
        slopes = [
            torch.autograd.grad(each[:, m].sum(), images, create_graph=True)[0].flatten(1) for m in range(members)
        ]
        terms = {"cross_entropy": each.mean(dim=0).sum()}
        if members > 1:
            terms["diversity"] = self.scale * self.coeff * mean_cosine(slopes)
        squares = torch.stack([2 * slope.square().sum(dim=1).mean() for slope in slopes])
        return terms | {"smoothness": self.scale * self.lamda * squares.mean()}


def mean_cosine(slopes: list[Tensor]) -> Tensor:
    """|cos| of every pair of gradients (b, d), averaged over pairs and images; 1 where all agree.

    >>> a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    >>> mean_cosine([a, b]).item(), mean_cosine([a, -3 * a]).item()
    (0.0, 1.0)
    """
    pairs = combinations(slopes, 2)
    return torch.stack([F.cosine_similarity(one, other, dim=1, eps=1e-12).abs().mean() for one, other in pairs]).mean()


@contextmanager
def members_apart(forward: Forward) -> Iterator[None]:
    """The ensemble inside answers (b, M, K), one row of logits per member, instead of their common answer."""
    parts = forward.modules() if isinstance(forward, nn.Module) else ()
    found = [part for part in parts if isinstance(part, Ensemble)]
    if len(found) != 1:
        raise InputError(f"TRS: the network must be one ensemble (variant 'trs'), got {len(found)}")
    found[0].apart = True
    try:
        yield
    finally:
        found[0].apart = False
