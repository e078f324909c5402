"""Defences that look inside the model: reading a layer, the model with such a defence in it, data to fit it on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from poise.defenses.inference.base import InferenceDefense
from poise.defenses.posthoc.multi_domain import Domain, MultiDomainTemperature
from poise.errors import InputError

Attack = Callable[[Tensor, Tensor], Tensor]
"""Images (n, C, H, W) and labels (n,) to attacked images of the same shape."""

Side = Literal["output", "input"]
"""What of a layer is read: what it gives, or what it is given."""


class FeatureDefended(nn.Module):
    """The model with a defence behind it that needs the output of one of its layers.

    It is a module from images to (n, K) logits like the model itself: `poise.ModuleTarget`, `stack` and torch.export
    take it, and gradients flow through logits and features both. The layer is read by a forward hook that is there
    only while `forward` runs, so that copies and pickles carry none.

    Args:
        model: images to (n, K) logits; it is shared, not copied.
        layer: a name from `dict(model.named_modules())`, such as "avgpool"; it must run once in each pass and give a
            tensor (n, ...), which is flattened to (n, F). Take a pooled layer: unpooled ones have far too many numbers.
        defense: fitted with features of this layer; it is shared, not copied.
        side: "input" reads what the layer is given instead: `last_linear` names the one to take.

    Raises:
        InputError: the model has no such layer (the message names the nearest).

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Identity())  # two pixels are its logits
        >>> images = torch.tensor([4.0, 0.0]).view(1, 1, 1, 2).repeat(10, 1, 1, 1)
        >>> labels = torch.tensor([0] * 8 + [1] * 2)  # right in 80 %
        >>> domains = make_domains(model, "0", images, labels, {"dark": lambda x, y: x / 2})
        >>> defense = MultiDomainTemperature().fit_domains(list(domains.values()))
        >>> defended = FeatureDefended(model, "0", defense)
        >>> torch.cat([defended(images[:1]), defended(images[:1] / 2)]).softmax(1)[:, 0]
        tensor([0.8000, 0.8000])
    """

    def __init__(self, model: nn.Module, layer: str, defense: MultiDomainTemperature, side: Side = "output") -> None:
        _find(model, layer)
        super().__init__()
        self.side: Side = side
        self.model = model
        self.layer = layer
        self.defense = defense

    def forward(self, images: Tensor) -> Tensor:
        """(n, C, H, W) images to (n, K) defended logits."""
        features, logits = features_and_logits(self.model, self.layer, images, self.side)
        defended: Tensor = self.defense(logits, features)
        return defended

    def extra_repr(self) -> str:
        return f"layer={self.layer!r}, side={self.side!r}"


class ByFeatures(InferenceDefense):
    """A defence of the answers that reads a layer, as one that goes around a model: `around` gives `FeatureDefended`.

    Args:
        layer: a name from `dict(model.named_modules())`.
        defense: fitted with features of this layer.
        side: whether the layer's output was read or its input.

    >>> import torch
    >>> from torch import nn
    >>> from poise.defenses import MultiDomainTemperature, make_domains
    >>> model = nn.Sequential(nn.Flatten(), nn.Identity())
    >>> images = torch.tensor([4.0, 0.0]).view(1, 1, 1, 2).repeat(10, 1, 1, 1)
    >>> domains = make_domains(model, "0", images, torch.tensor([0] * 8 + [1] * 2), {"dark": lambda x, y: x / 2})
    >>> defense = ByFeatures("0", MultiDomainTemperature().fit_domains(list(domains.values())))
    >>> defense.around(model)(images).shape
    torch.Size([10, 2])
    """

    keeps_label = True

    def __init__(self, layer: str, defense: MultiDomainTemperature, side: Side = "output") -> None:
        self.layer = layer
        self.defense = defense
        self.side: Side = side

    def around(self, model: nn.Module) -> nn.Module:
        device = next((part.device for part in model.parameters()), torch.device("cpu"))
        return FeatureDefended(model, self.layer, self.defense.to(device), self.side)


def last_linear(model: nn.Module, images: Tensor) -> str | None:
    """The linear layer that runs last in a pass, whose input is the penultimate features; None where there is none.

    Args:
        model: images to logits; read in evaluation mode, then set back.
        images: (n, C, H, W), n >= 1, for one pass.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
        >>> last_linear(model, torch.rand(2, 1, 5, 5))
        '3'
    """
    ran: list[str] = []
    linear = [(name, part) for name, part in model.named_modules() if name and isinstance(part, nn.Linear)]
    hooks = [part.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, part in linear]
    try:
        with _evaluating(model), torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return ran[-1] if ran else None


def features_and_logits(model: nn.Module, layer: str, images: Tensor, side: Side = "output") -> tuple[Tensor, Tensor]:
    """One pass: the output of a layer, or its input, flattened to (n, F), and the logits (n, K).

    Args:
        model: images to logits, in the mode that it is to be read in.
        layer: a name from `dict(model.named_modules())`.
        images: (n, C, H, W).

    Raises:
        InputError: no such layer, or it does not run exactly once, or its output is not a tensor of n rows.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2))
        >>> [part.shape for part in features_and_logits(model, "1", torch.rand(5, 1, 2, 2))]
        [torch.Size([5, 3]), torch.Size([5, 2])]
    """
    seen: list[object] = []

    def keep(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        seen.append(output if side == "output" else inputs[0])

    handle = _find(model, layer).register_forward_hook(keep)
    try:
        logits: Tensor = model(images)
    finally:
        handle.remove()
    if len(seen) != 1:
        raise InputError(f"features: layer '{layer}' must run once in a pass of the model, ran {len(seen)} times")
    found = seen[0]
    if not isinstance(found, Tensor) or found.ndim < 2 or found.shape[0] != images.shape[0]:
        given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        what = "give" if side == "output" else "be given"
        raise InputError(f"features: layer '{layer}' must {what} a tensor of {len(images)} rows, got {given}")
    return found.flatten(1), logits


@torch.no_grad()
def make_domains(
    model: nn.Module,
    layer: str,
    images: Tensor,
    labels: Tensor,
    attacks: Mapping[str, Attack],
    *,
    side: Side = "output",
    batch_size: int = 256,
) -> dict[str, Domain]:
    """The same held-out images clean and attacked, as the model sees them: what `fit_domains` learns from.

    The domains of Obadinma et al., appendix D.2, are 500 validation images clean, under and over attack:

        attacks = {"underconfidence": lambda x, y: poise.run_recipe("pgd-uca", target, x, y, eps=0.05).images, ...}
        domains = make_domains(target.module, "avgpool", images, labels, attacks)
        defense.fit_domains(list(domains.values()))

    The attacks are given as functions because defences know nothing of attacks. They run on all images at once, before
    the model is read; what they do with its mode is theirs.

    Args:
        model: images to logits (`ModuleTarget.module`), on the images' device; read in evaluation mode, then set back.
        layer: a name from `dict(model.named_modules())`.
        images: (n, C, H, W) in the model's bounds.
        labels: (n,) integers.
        attacks: by the name of their domain, not "clean".
        side: what of the layer is read.
        batch_size: images in one pass of the model.

    Returns:
        By name: "clean" first, then the attacks in their order.

    Raises:
        InputError: as for `features_and_logits`, no images, a batch size below 1, an attack that is called "clean" or
            that returns another shape.

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Flatten(), nn.Identity())
    >>> images, labels = torch.rand(4, 1, 1, 2), torch.tensor([0, 1, 0, 1])
    >>> sorted(make_domains(model, "0", images, labels, {"dark": lambda x, y: x / 2}))
    ['clean', 'dark']
    """
    if len(images) == 0 or len(labels) != len(images):
        raise InputError(f"make_domains: needs a label for each of 1 or more images, got {len(labels)}, {len(images)}")
    if batch_size < 1:
        raise InputError(f"make_domains: batch_size must be at least 1, got {batch_size}")
    if "clean" in attacks:
        raise InputError("make_domains: the domain 'clean' is made of the images, got an attack of that name")
    _find(model, layer)
    versions = {"clean": images}
    for name, attack in attacks.items():
        with torch.enable_grad():
            attacked = attack(images, labels)
        if attacked.shape != images.shape:
            given = f"{tuple(attacked.shape)} for {tuple(images.shape)}"
            raise InputError(f"make_domains: attack '{name}' must keep the images' shape, got {given}")
        versions[name] = attacked
    domains = {}
    with _evaluating(model):
        for name, version in versions.items():
            parts = [features_and_logits(model, layer, batch, side) for batch in torch.split(version, batch_size)]
            features, logits = (torch.cat(part) for part in zip(*parts, strict=True))
            domains[name] = Domain(features, logits, labels)
    return domains


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every part is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _find(model: nn.Module, layer: str) -> nn.Module:
    """The part of the model with this name."""
    from difflib import get_close_matches

    parts: dict[str, nn.Module] = dict(model.named_modules())
    if layer and layer in parts:
        return parts[layer]
    near = ", ".join(get_close_matches(layer, [name for name in parts if name], n=3, cutoff=0.4)) or "none is near"
    raise InputError(f"features: the layer must be a part of the model, got '{layer}' (did you mean: {near}?)")


__all__ = ["Attack", "ByFeatures", "FeatureDefended", "Side", "features_and_logits", "last_linear", "make_domains"]
