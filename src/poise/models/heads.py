"""The classification head of a network: found, made anew, and left alone while the rest is frozen."""

from __future__ import annotations

from functools import partial

from torch import nn

from poise.errors import InputError
from poise.models.variants.ensemble import Ensemble


def head_name(module: nn.Module, num_classes: int | None = None) -> str:
    """The name of the last linear layer: `fc`, `classifier.1`, `heads.head`, …

    It is what the network itself calls its classifier (timm), else the last `nn.Linear` that it registers, of those
    with `num_classes` outputs where that is given.

    Args:
        module: images to logits.
        num_classes: K.

    Raises:
        InputError: the network has no such layer.

    >>> head_name(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    '2'
    """
    layers = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    ask = getattr(module, "get_classifier", None)
    declared = ask() if callable(ask) else None
    if declared is not None:
        layers = [(name, part) for name, part in layers if part is declared]
    fitting: list[str] = [name for name, part in layers if num_classes in (None, part.out_features)]
    if not fitting or not fitting[-1]:
        outputs = "" if num_classes is None else f" with {num_classes} outputs"
        raise InputError(f"head: the network must end in a linear layer{outputs}, got {type(module).__name__}")
    return fitting[-1]


def head_names(module: nn.Module, num_classes: int | None = None) -> list[str]:
    """`head_name` of the network, or of each member of an `Ensemble`."""
    if not isinstance(module, Ensemble):
        return [head_name(module, num_classes)]
    return [f"members.{i}.{head_name(member, num_classes)}" for i, member in enumerate(module.members)]


def renew_head(module: nn.Module, num_classes: int) -> nn.Module:
    """Puts a linear layer with K outputs and fresh weights in place of the last one; the draws are torch's global ones.

    Args:
        module: changed in place.
        num_classes: K.

    Returns:
        The module.

    Raises:
        InputError: the network has no linear layer.

    >>> renew_head(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), 5)[1]
    Linear(in_features=4, out_features=5, bias=True)
    """
    parent, _, last = head_name(module).rpartition(".")
    holder = module.get_submodule(parent)
    old = getattr(holder, last)
    fresh = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    setattr(holder, last, fresh.to(old.weight.device, old.weight.dtype))
    if isinstance(module.__dict__.get("num_classes"), int):  # timm's own record
        module.__dict__["num_classes"] = num_classes
    return module


def freeze_backbone(module: nn.Module, num_classes: int | None = None) -> nn.Module:
    """Leaves only the last linear layer to be trained, in place; for transfer learning.

    All other parameters stop asking for gradients (images still get theirs). Layers with running statistics, such as
    batch norm, are put into evaluation mode and stay there: `train()` of the whole network passes them by, so that what
    the backbone computes does not move while the head learns. Dropout follows `train()` as ever. Copies are frozen too.

    Args:
        module: images to logits; of an `Ensemble` each member is frozen.
        num_classes: K, where a linear layer with another number of outputs may come last.

    Returns:
        The module.

    Raises:
        InputError: the network has no linear layer; nothing is changed.

    >>> frozen = freeze_backbone(nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 3))).train()
    >>> [part.training for part in frozen], [part.requires_grad for part in frozen.parameters()]
    ([False, True, True], [False, False, True, True])
    """
    heads = head_names(module, num_classes)
    module.requires_grad_(False)
    for name in heads:
        module.get_submodule(name).requires_grad_(True)
    for part in module.modules():
        if getattr(part, "running_mean", None) is not None:
            part.eval()
            part.__dict__["train"] = partial(_stay, part)  # found by `train()` of whatever holds the layer
    return module


def _stay(part: nn.Module, mode: bool = True) -> nn.Module:
    """`part.train(mode)` of a frozen layer."""
    part.training = False
    return part
