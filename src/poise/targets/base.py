"""What is attacked: anything that answers points with scores. Declared, never guessed from values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from poise.types import Access, OutputKind, Outputs

Loss = Callable[[Outputs], Tensor]
"""Per-sample scalar of an answer: row i of the result depends on row i of the answer alone."""


@runtime_checkable
class Target(Protocol):
    """A classifier seen through what its attacker may use.

    Attributes:
        kind: what `query` returns.
        access: the most an attacker gets.
        bounds: lowest and highest legal pixel value.
        num_classes: K.
        batch_size: most points sent in one call.
        device: where points are expected.
    """

    kind: OutputKind
    access: Access
    bounds: tuple[float, float]
    num_classes: int
    batch_size: int
    device: torch.device

    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        """Answers for points x (m, C, H, W), each belonging to the sample named in ids (m,).

        The points are the caller's, which may write into them afterwards: who keeps them, keeps a copy.
        """
        ...

    def session(self, seed: int | None = None) -> AbstractContextManager[None]:
        """Prepares for many calls (eval mode, random state from `seed`) and restores everything at the end."""
        ...


@runtime_checkable
class DifferentiableTarget(Target, Protocol):
    """A target that also gives gradients with respect to its input."""

    def gradient(self, x: Tensor, ids: Tensor, loss: Loss) -> tuple[Outputs, Tensor]:
        """Answers at x and d loss_i / d x_i (m, C, H, W), from one forward and one backward pass."""
        ...


@runtime_checkable
class SettledTarget(Target, Protocol):
    """A target whose answers only show the way: what may become a result is settled by a better answer."""

    def settled(self, x: Tensor, ids: Tensor) -> Outputs:
        """The answers that count, at points that were asked; no query of their own."""
        ...


@contextmanager
def private_random(device: torch.device, seed: int | None) -> Iterator[None]:
    """A copy of torch's random state for what a target draws, from `seed` where one is given; restored at the end."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
        yield
