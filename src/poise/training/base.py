"""The contract of a training method: other versions of a batch, a loss, and how gradients come from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from poise.rng import Rng
from poise.targets import ModuleTarget

Forward = Callable[[Tensor], Tensor]
"""Images (b, C, H, W) in [0, 1] to logits (b, K), in training mode, with gradients for the parameters."""

Views = tuple[Tensor, ...]
"""Other versions (b, C, H, W) of a batch's images."""

Terms = dict[str, Tensor]
"""Named scalars; their sum is what is minimised, so weights are already in them."""

LossOf = Callable[[Views], Terms]
Backward = Callable[[Tensor], None]


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's images.

    Args:
        images: (b, C, H, W) in [0, 1], augmented.
        labels: (b,) true classes.
        ids: (b,) names of the samples; random draws depend on them.
        seed: of the run.
        step: number of the step in the whole run.
        epoch: number of the pass over the data, from 0.
        progress: share of all steps done, in [0, 1).

    >>> import torch
    >>> batch = Batch(torch.rand(4, 1, 8, 8), torch.arange(4), ids=torch.arange(4))
    >>> batch.part(slice(0, 2)).images.shape, batch.rows
    (torch.Size([2, 1, 8, 8]), tensor([0, 1, 2, 3]))
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    seed: int = 0
    step: int = 0
    epoch: int = 0
    progress: float = 0.0

    @property
    def rng(self) -> Rng:
        """Streams keyed by the seed of the run and the names of the samples."""
        return Rng(self.seed, self.ids)

    @property
    def rows(self) -> Tensor:
        """(b,) 0..b-1, on the images' device."""
        return torch.arange(len(self.labels), device=self.labels.device)

    def part(self, rows: slice) -> Batch:
        """Some of the images."""
        return replace(self, images=self.images[rows], labels=self.labels[rows], ids=self.ids[rows])


class Method(Protocol):
    """A loss, and a way to make the versions of a batch that it needs. Hyper-parameters are its fields.

    >>> import poise
    >>> from poise.training import Batch
    >>> from torch.nn.functional import cross_entropy
    >>> class Upright:
    ...     def views(self, target, batch):
    ...         return (batch.images.flip(2),)
    ...     def loss(self, forward, batch, views):
    ...         both = [cross_entropy(forward(x), batch.labels) for x in (batch.images, *views)]
    ...         return {"upright": both[0], "flipped": 0.5 * both[1]}
    >>> method: Method = Upright()
    >>> target, data = poise.models.blank("builtin:digits"), poise.data.load("builtin:digits", samples=8)
    >>> batch = Batch(data.images, data.labels, data.ids)
    >>> sorted(method.loss(target.module, batch, method.views(target, batch)))
    ['flipped', 'upright']
    """

    def views(self, target: ModuleTarget, batch: Batch) -> Views:
        """Other versions of the images, made in eval mode and without gradients for the parameters."""
        ...

    def loss(self, forward: Forward, batch: Batch, views: Views) -> Terms:
        """Terms whose sum is minimised."""
        ...


class Update(Protocol):
    """How a step's gradients come from the loss: leaves them in the parameters' `grad`.

    >>> from poise.training.updates import SAM, Plain
    >>> update: Update = SAM(rho=0.05)
    >>> hasattr(update, "gradients"), hasattr(Plain(), "gradients")
    (True, True)
    """

    def gradients(self, loss_of: LossOf, views: Views, backward: Backward, module: nn.Module) -> Terms:
        """Calls loss_of(views) and backward(sum of the terms) as often as it needs; returns the terms to be logged."""
        ...


def total(terms: Terms) -> Tensor:
    """The sum of the terms."""
    return sum(list(terms.values())[1:], next(iter(terms.values())))


def trained(module: nn.Module) -> Iterable[nn.Parameter]:
    """The parameters that are trained: frozen ones are left out."""
    return (parameter for parameter in module.parameters() if parameter.requires_grad)
