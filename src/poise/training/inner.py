"""Adversarial batches for training: the same objectives, searches and driver as the attacks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from poise.constraints import Constraint
from poise.errors import InputError
from poise.objectives import Objective
from poise.recipebook import ball
from poise.rng import mix_int
from poise.searches import Search
from poise.searches.driver import Driver
from poise.targets import ModuleTarget
from poise.training.base import Batch

UNLIMITED = 2**31 - 1
"""Queries per sample: inside training the number of steps is the only limit."""


@dataclass(frozen=True, slots=True)
class Inner:
    """The attack inside a training step: the best point that the driver verified, of the model as it is now.

    Args:
        objective, search, constraint: as in `poise.attack`.

    A point is the best that the search has seen and the objective accepts, not the last one; where nothing was found
    it is the clean image.

    >>> import poise
    >>> from poise.training import Batch
    >>> target, data = poise.models.blank("builtin:digits"), poise.data.load("builtin:digits", samples=4)
    >>> inner = Inner(poise.objectives.CrossEntropy(), poise.searches.PGD(steps=2), poise.constraints.Linf(0.1))
    >>> x = inner.points(target, Batch(data.images, data.labels, data.ids))
    >>> bool((x - data.images).abs().max() <= 0.1 + 1e-6)
    True
    """

    objective: Objective
    search: Search
    constraint: Constraint

    def points(self, target: ModuleTarget, batch: Batch, copy: int = 0) -> Tensor:
        """(b, C, H, W) in the ball around the batch's images and in the target's bounds.

        Args:
            target: the model, whose eval mode is used and whose parameters get no gradients.
            batch: images, labels, ids, and the step that keys the random draws.
            copy: number of one of several independent attacks on the same batch.
        """
        driver = Driver(
            target=target,
            objective=self.objective,
            search=self.search,
            constraint=self.constraint,
            labels=batch.labels,
            sample_ids=batch.ids,
            budget=UNLIMITED,
            seed=mix_int((batch.seed << 1) ^ mix_int((batch.step << 8) + copy)) >> 1,
        )
        return driver.run(batch.images).best.x


def inner_ball(name: str, norm: str, eps: float, steps: int, step: float = 1.0) -> Constraint:
    """The ball of an inner attack; refuses numbers that cannot be meant."""
    if steps < 1:
        raise InputError(f"{name}: steps must be at least 1, got {steps}")
    if not 0 < step < float("inf"):
        raise InputError(f"{name}: step must be a positive number, got {step}")
    return ball(norm, eps)


def check_weight(name: str, **given: float) -> None:
    """Refuses weights of terms that are negative or no numbers."""
    for field, value in given.items():
        if not 0 <= value < float("inf"):
            raise InputError(f"{name}: {field} must be a number of at least 0, got {value}")
