"""Reading layers of a model while it runs: named layers, hooks that are always removed, and a choice of layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from typing import Protocol

from torch import Tensor, nn

from poise.errors import InputError

INPUT = ":input"
"""Behind a layer's name: what the layer is given instead of what it gives."""

Reduce = Callable[[Tensor], Tensor]
"""What is kept of a layer's values (n, ...); the result must share no memory with them."""


class Read(Protocol):
    """What `tapped` gives."""

    def __call__(self, images: Tensor, only: str | None = None) -> list[Tensor]:
        """One pass: images (n, C, H, W) to the kept values of every layer, in the order of the layers.

        With `only`, the values of that layer alone, and the pass ends where they are known.
        """
        ...


class _Enough(BaseException):
    """Ends a pass whose rest nobody needs; no `except Exception` of a model stops it."""


_STAGE = re.compile(r"(layer|block|stage)(\d+)")


def default_layers(model: nn.Module) -> tuple[str, ...]:
    """The layers that a detector reads where none are named.

    Residual networks whose stages are called layer1, layer2, … (ours for CIFAR, torchvision's), block1, … or stage1, …:
    what the first stage is given, that is the stem behind its activation and pooling, and what every stage gives, as
    Lee et al. 2018 do for ResNet-34. The calibration-attack paper does not say which layers it read. Every other
    network: the output of every convolution.

    Args:
        model: any module; with the normalisation in front or not.

    Raises:
        InputError: the model has neither stages nor convolutions.

    Example:
        >>> default_layers(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Flatten()))
        ('0', '2')
    """
    stages: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for name, _ in model.named_modules():
        parent, _, last = name.rpartition(".")
        if found := _STAGE.fullmatch(last):
            stages.setdefault((parent, found[1]), []).append((int(found[2]), name))
    for family in stages.values():  # outermost first
        if len(family) > 1:
            ordered = [name for _, name in sorted(family)]
            return (ordered[0] + INPUT, *ordered)
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    convolutions = tuple(name for name, part in model.named_modules() if name and isinstance(part, kinds))
    if not convolutions:
        raise InputError(
            f"layers: must be named for a model without stages and convolutions, got none for {type(model).__name__}"
        )
    return convolutions


def pooled(values: Tensor) -> Tensor:
    """(n, C, H, W) to (n, C), the mean over space; (n, T, D) tokens to (n, D); (n, F) as it is. A copy in any case.

    >>> import torch
    >>> pooled(torch.arange(8.0).view(1, 2, 2, 2))
    tensor([[1.5000, 5.5000]])
    """
    if values.ndim == 2:
        return values.clone()
    return values.mean(dim=1) if values.ndim == 3 else values.flatten(2).mean(dim=2)


def maps(values: Tensor) -> Tensor:
    """(n, C, H, W) feature maps, copied.

    Raises:
        InputError: the layer gives something else.
    """
    if values.ndim != 4:
        raise InputError(f"layers: must give feature maps (n, C, H, W), got a layer that gives {tuple(values.shape)}")
    return values.clone()


@contextmanager
def tapped(model: nn.Module, layers: Sequence[str], reduce: Reduce = pooled) -> Iterator[Read]:
    """Reads layers of a model; the hooks are gone at the end, however it comes.

    The mode of the model and whether gradients flow are the caller's: what is read is part of the graph where autograd
    records one.

    Args:
        model: images to scores.
        layers: names from `dict(model.named_modules())`; with `:input` behind it, what that layer is given. Each must
            run once in a pass and hold a tensor with a row for every image.
        reduce: what is kept of each; called inside the hook, before a later layer may write into the same memory.

    Yields:
        A function (`Read`): one pass, the kept values in the order of `layers`.

    Raises:
        InputError: no layers, an unknown one (the message names the nearest), or one that does not hold what it must.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 3))
        >>> with tapped(model, ["0", "3:input"]) as read:
        ...     [tuple(part.shape) for part in read(torch.rand(5, 1, 4, 4))]
        [(5, 2), (5, 8)]
        >>> len(model[0]._forward_hooks)
        0
    """
    if not layers:
        raise InputError("layers: must be at least one name, got none")
    seen: dict[str, list[object]] = {}
    last: str | None = None

    def keep(layer: str, value: object) -> None:
        seen.setdefault(layer, []).append(reduce(value) if isinstance(value, Tensor) and value.ndim > 1 else value)
        if layer == last:
            raise _Enough

    def read(images: Tensor, only: str | None = None) -> list[Tensor]:
        nonlocal last
        seen.clear()
        last = only
        with suppress(_Enough):
            model(images.clone())  # its first layer may write into what it is given
        if only is not None:
            return [_only(only, seen.get(only, []), len(images))]
        return [_only(layer, seen.get(layer, []), len(images)) for layer in layers]

    handles = []
    try:
        for layer in layers:
            part = _find(model, layer.removesuffix(INPUT))
            if layer.endswith(INPUT):
                handles.append(part.register_forward_pre_hook(lambda _, given, at=layer: keep(at, given[0])))
            else:
                handles.append(part.register_forward_hook(lambda _, given, found, at=layer: keep(at, found)))
        yield read
    finally:
        for handle in handles:
            handle.remove()


def _only(layer: str, values: list[object], rows: int) -> Tensor:
    """The one value of a layer, checked."""
    if len(values) != 1:
        raise InputError(f"layers: '{layer}' must run once in a pass of the model, ran {len(values)} times")
    value = values[0]
    if not isinstance(value, Tensor) or value.ndim < 2 or len(value) != rows:
        given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"layers: '{layer}' must hold a tensor of {rows} rows, got {given}")
    return value


def _find(model: nn.Module, layer: str) -> nn.Module:
    """The part of the model with this name."""
    parts: dict[str, nn.Module] = dict(model.named_modules())
    if layer and layer in parts:
        return parts[layer]
    near = ", ".join(get_close_matches(layer, [name for name in parts if name], n=3, cutoff=0.4)) or "none is near"
    raise InputError(f"layers: must be parts of the model, got '{layer}' (did you mean: {near}?)")


def wide(values: Tensor) -> Tensor:
    """float64 where the device has it."""
    return values if values.device.type == "mps" else values.double()


__all__ = ["INPUT", "Read", "Reduce", "default_layers", "maps", "pooled", "tapped", "wide"]
