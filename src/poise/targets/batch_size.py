"""The batch size that a machine takes: tried out, without running out of memory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from poise.errors import InputError
from poise.targets.base import DifferentiableTarget, Target
from poise.targets.module import ModuleTarget
from poise.types import Outputs

SHARE = 0.5
"""How much of the memory that is free now a batch may take."""

LEVEL = 0.95
"""A smaller batch is taken where it reaches this share of the best rate."""

UNKNOWN = 256
"""The most for a target that is no PyTorch module: what it takes cannot be seen from here."""


def fitting_batch_size(
    target: Target, shape: tuple[int, int, int], *, gradients: bool = False, most: int = 4096
) -> int:
    """The smallest batch that is nearly as fast per image as the fastest that fits; the target is left as it was.

    Sizes are doubled from 1. Before each, what it will take is foretold from what all layers put out for one image, so
    that nothing is tried which would not fit; where a GPU runs out of memory all the same, the size before counts.
    Asks about 4 x the answer, all of it outside any budget: for endpoints give the batch size yourself.

    Args:
        target: a `ModuleTarget`; any other that is not paid for by the question is tried up to 256.
        shape: (C, H, W) of an image.
        gradients: forward and backward passes, which keep what all layers put out; False for forward passes alone.
        most: the largest size tried.

    Raises:
        InputError: sizes below 1, or a target without gradients where they are asked for.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    >>> 1 <= fitting_batch_size(ModuleTarget(model, num_classes=3), (1, 2, 2), most=8) <= 8
    True
    """
    if most < 1 or min(shape) < 1 or len(shape) != 3:
        raise InputError(f"fitting_batch_size: most and shape (C, H, W) must be at least 1, got {most} and {shape}")
    if gradients and not isinstance(target, DifferentiableTarget):
        raise InputError(f"fitting_batch_size: gradients must be False for a {type(target).__name__}, got True")
    one = torch.full((1, *shape), sum(target.bounds) / 2, device=target.device)
    try:
        each = _bytes(target, one) if isinstance(target, ModuleTarget) else 0
    except torch.OutOfMemoryError:
        most = 0
    most = most if isinstance(target, ModuleTarget) else min(most, UNKNOWN)
    rates: dict[int, float] = {}
    size = 1
    with _any_batch(target, most):
        while size <= most and (size == 1 or size * each <= SHARE * _free(target.device)):
            try:
                rates[size] = size / _seconds(target, one.expand(size, -1, -1, -1), gradients)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                break
            size *= 2
    if not rates:
        raise InputError(f"fitting_batch_size: not even one image of shape {shape} fits the memory of {target.device}")
    return min(size for size, rate in rates.items() if rate >= LEVEL * max(rates.values()))


@contextmanager
def _any_batch(target: Target, most: int) -> Iterator[None]:
    """A target that does not cut what is tried into parts."""
    before, target.batch_size = target.batch_size, most
    try:
        yield
    finally:
        target.batch_size = before


def _bytes(target: ModuleTarget, one: Tensor) -> int:
    """What all layers put out for one image."""
    total = 0

    def add(module: nn.Module, given: object, answer: object) -> None:
        nonlocal total
        total += answer.numel() * answer.element_size() if isinstance(answer, Tensor) else 0

    hooks = [part.register_forward_hook(add) for part in target.module.modules() if not any(part.children())]
    try:
        target.query(one, torch.zeros(1, dtype=torch.long, device=target.device))
    finally:
        for hook in hooks:
            hook.remove()
    return total + one.numel() * one.element_size()


def _free(device: torch.device) -> int:
    """Bytes of memory that nobody uses now; without limit where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 2**63


def _seconds(target: Target, images: Tensor, gradients: bool) -> float:
    """The faster of two passes, after one that warms up."""
    ids = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def loss(outputs: Outputs) -> Tensor:
        return outputs.scores.sum(dim=1)

    def once() -> float:
        _wait(images.device)
        began = time.perf_counter()
        if gradients:
            assert isinstance(target, DifferentiableTarget)
            target.gradient(images, ids, loss)
        else:
            target.query(images, ids)
        _wait(images.device)
        return time.perf_counter() - began

    once()
    return max(min(once(), once()), 1e-9)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
