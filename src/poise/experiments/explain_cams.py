"""Grad-CAM: where in the image a network's answer comes from, read at the last layer that still has places."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from poise.data.vision import import_torchvision
from poise.errors import MissingExtraError

Reshape = Callable[[Tensor], Tensor]
MOST_PREFIX = 8
"""Tokens, at most, that stand before those of the patches (class token, registers)."""


@dataclass(frozen=True)
class MapLayer:
    """A layer whose output has places.

    Args:
        name: from `dict(model.named_modules())`.
        reshape: its output to (n, C, h, w).
        kind: "convolution" or "tokens".

    >>> import torch
    >>> from torch import nn
    >>> from poise.experiments.explain_cams import map_layer
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    >>> found = map_layer(model, torch.rand(2, 1, 5, 5))
    >>> isinstance(found, MapLayer), found.kind
    (True, 'convolution')
    """

    name: str
    reshape: Reshape
    kind: str


@dataclass(frozen=True)
class _Ran:
    """A part of the model that has run, and what it gave."""

    name: str
    part: nn.Module
    output: Tensor


def check_installed() -> None:
    """Refuses before any attack what would fail after all of them.

    Raises:
        MissingExtraError: pytorch-grad-cam is not installed.
    """
    if find_spec("pytorch_grad_cam") is None:
        raise MissingExtraError("explain: Grad-CAM", "explain")


def map_layer(model: nn.Module, images: Tensor) -> MapLayer | None:
    """The last layer whose output has places and reaches the answer through them; None where there is none.

    In a convolutional network that is the end of the last stage with more than one place: layer4 of a ResNet, an
    earlier stage where layer4 has shrunk a small image to one place. In a vision transformer it is the last
    normalisation whose patch tokens still count: the one before the last attention where the answer is read from the
    class token, the final one where the tokens are averaged; tokens before the patches are dropped. No layer is known
    by its name.

    Args:
        model: images to logits; its mode, gradients and hooks are left as they were.
        images: (n, C, H, W), n >= 1, for one pass.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    >>> map_layer(model, torch.rand(2, 1, 5, 5)).name
    '1'
    """
    with untouched(model), torch.enable_grad():
        ran, logits = _watched(model, images)
        if not logits.requires_grad:
            return None
        times, top = Counter(entry.name for entry in ran), logits.max(dim=1).values.sum()
        for entry, reshape in reversed(list(_placed(ran, len(images)))):
            if times[entry.name] > 1:
                continue
            (slope,) = torch.autograd.grad(top, entry.output, retain_graph=True, allow_unused=True)
            if slope is not None and bool(reshape(slope).abs().sum() > 0):
                return MapLayer(entry.name, reshape, "convolution" if entry.output.ndim == 4 else "tokens")
    return None


def _placed(ran: list[_Ran], n: int) -> Iterator[tuple[_Ran, Reshape]]:
    """The outputs of n rows that have places, in their order, and how each becomes (n, C, h, w).

    Four axes are places from the first convolution on, until tokens take over: what attention makes has four too.
    """
    grid: tuple[int, ...] | None = None
    tokens = False
    for entry in ran:
        if isinstance(entry.part, nn.Conv2d):
            grid, tokens = tuple(entry.output.shape[2:]), False
        if entry.output.shape[0] != n:
            continue
        reshape = _of_tokens(entry, grid)
        tokens = tokens or reshape is not None
        if reshape is None and grid is not None and not tokens:
            reshape = _of_places(entry)
        if reshape is not None:
            yield entry, reshape


def _watched(model: nn.Module, images: Tensor) -> tuple[list[_Ran], Tensor]:
    """One pass: every part that gave a tensor with a gradient, in the order in which they ended, and the logits."""
    ran: list[_Ran] = []

    def keep(name: str, part: nn.Module, output: object) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            ran.append(_Ran(name, part, output))

    hooks = [
        part.register_forward_hook(lambda module, _, output, name=name: keep(name, module, output))
        for name, part in model.named_modules()
        if name
    ]
    try:
        logits: Tensor = model(_followed(images))
    finally:
        for hook in hooks:
            hook.remove()
    return ran, logits


def _of_places(entry: _Ran) -> Reshape | None:
    """How four axes become (n, C, h, w) with more than one place; None where they do not."""
    shape = tuple(entry.output.shape)
    if len(shape) != 4:
        return None
    if _normalised(entry) and shape[1] * shape[2] > 1:
        return lambda x: x.permute(0, 3, 1, 2)  # channels last
    return (lambda x: x) if shape[2] * shape[3] > 1 else None


def _of_tokens(entry: _Ran, grid: tuple[int, ...] | None) -> Reshape | None:
    """How the normalised tokens of patches (n, T, C) become (n, C, h, w); None for anything else."""
    if entry.output.ndim != 3 or not _normalised(entry):
        return None
    found = _patches(entry.output.shape[1], grid)
    if found is None:
        return None
    skipped, (high, wide) = found
    return lambda x: x[:, skipped:].transpose(1, 2).reshape(len(x), -1, high, wide)


def _normalised(entry: _Ran) -> bool:
    """Whether the last axis is that of the channels, because a normalisation runs over it."""
    return isinstance(entry.part, nn.LayerNorm) and tuple(entry.part.normalized_shape) == (entry.output.shape[-1],)


def _patches(tokens: int, grid: tuple[int, ...] | None) -> tuple[int, tuple[int, int]] | None:
    """How many tokens stand before the patches, and the patches' grid: that of the convolution, or a square.

    >>> _patches(65, (8, 8)), _patches(17, None), _patches(1, None)
    ((1, (8, 8)), (1, (4, 4)), None)
    """
    if grid is not None and 0 <= tokens - math.prod(grid) <= MOST_PREFIX and math.prod(grid) > 1:
        return tokens - math.prod(grid), (grid[0], grid[1])
    for skipped in (0, 1):
        side = math.isqrt(max(tokens - skipped, 0))
        if side > 1 and side * side == tokens - skipped:
            return skipped, (side, side)
    return None


def cams(model: nn.Module, layer: MapLayer, images: Tensor) -> NDArray[np.float32]:
    """Grad-CAM maps for the class that the model predicts of each image.

    Selvaraju et al., "Grad-CAM", as pytorch-grad-cam computes it: relu(sum over channels of w A), with w the mean over
    places of the gradient of the predicted class's logit by the output A; minus its least value, divided by its
    largest, and brought to the images' size with bilinear interpolation. A map that is 0 everywhere stays so.

    Args:
        model: images to logits; its mode, gradients and hooks are left as they were.
        layer: where to look, from `map_layer`.
        images: (n, C, H, W) on the model's device.

    Returns:
        (n, H, W) maps in [0, 1].

    Raises:
        MissingExtraError: pytorch-grad-cam is not installed.

    >>> import poise
    >>> from poise.experiments.explain_cams import map_layer
    >>> target, data = poise.models.load("builtin:digits"), poise.data.load("builtin:digits", samples=4)
    >>> cams(target.module, map_layer(target.module, data.images), data.images).shape
    (4, 8, 8)
    """
    check_installed()
    import_torchvision("transforms", feature="explain: Grad-CAM")  # the library imports torchvision as it is
    from pytorch_grad_cam import GradCAM

    with untouched(model), torch.enable_grad():
        library: Any = GradCAM(model, [dict(model.named_modules())[layer.name]], layer.reshape)
        try:
            found = library(input_tensor=_followed(images), targets=None)
        finally:
            library.activations_and_grads.release()
    return np.asarray(found, dtype=np.float32)


def _followed(images: Tensor) -> Tensor:
    """The images as the result of a step that autograd follows, so that frozen models and in-place layers work too."""
    return images.detach().clone().requires_grad_() + 0


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients of weights; afterwards modes, gradients and what wants one are as before."""
    modes = {part: part.training for part in model.modules()}
    weights = [(weight, weight.requires_grad, weight.grad) for weight in model.parameters()]
    model.eval()
    for weight, _, _ in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
        for weight, wanted, slope in weights:
            weight.requires_grad_(wanted)
            weight.grad = slope
