"""The optimiser of a recipe, and its learning rate as a function of the step: nothing to store, nothing to resume."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from poise.training.recipe import Optimizer, Schedule


def made_optimizer(spec: Optimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The step rule for these parameters."""
    trained = list(parameters)
    if spec.name == "sgd":
        nesterov = spec.nesterov and spec.momentum > 0
        return torch.optim.SGD(
            trained, spec.lr, momentum=spec.momentum, nesterov=nesterov, weight_decay=spec.weight_decay
        )
    kind = torch.optim.Adam if spec.name == "adam" else torch.optim.AdamW
    return kind(trained, spec.lr, weight_decay=spec.weight_decay)


def learning_rate(spec: Schedule, highest: float, step: int, steps: int, steps_per_epoch: int) -> float:
    """The rate of step 0..steps-1.

    >>> [round(learning_rate(Schedule(), 0.1, step, 4, 1), 4) for step in range(4)]
    [0.1, 0.0854, 0.05, 0.0146]
    >>> [learning_rate(Schedule(name="steps"), 1.0, step, 4, 1) for step in range(4)]
    [1.0, 1.0, 0.1, 0.01]
    """
    rising = spec.warmup * steps_per_epoch
    if step < rising:
        return highest * (step + 1) / (rising + 1)
    if spec.name == "cosine":
        return highest * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))
    if spec.name == "steps":
        passed = sum(step >= share * steps - 1e-6 for share in spec.milestones)  # .55 * 100 is above 55
        return round(highest * spec.factor**passed, 15)
    return highest
