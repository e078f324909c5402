"""Parametric noise injection: noise on every weight, as strong as training makes it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from poise.errors import InputError

Granularity = Literal["layer", "channel", "element"]
GRANULARITIES: tuple[Granularity, ...] = ("layer", "channel", "element")


class _Noisy(nn.Module):
    """What the two layers share: the weight with fresh noise on it."""

    weight: Tensor
    alpha: Tensor

    def noisy_weight(self) -> Tensor:
        """W + alpha eta, eta ~ N(0, std(W)^2) for each element, drawn from torch's global generator."""
        weight = self.weight.detach()
        std = weight.std(correction=min(1, weight.numel() - 1))
        return self.weight + self.alpha * (torch.randn_like(weight) * std)


class NoisyConv2d(_Noisy, nn.Conv2d):
    """A convolution whose weight is noisy in every pass."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._conv_forward(x, self.noisy_weight(), self.bias)
        return out


class NoisyLinear(_Noisy, nn.Linear):
    """A linear layer whose weight is noisy in every pass."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.noisy_weight(), self.bias)


def inject_noise(module: nn.Module, granularity: Granularity = "channel", alpha: float = 0.25) -> nn.Module:
    """Turns every convolution and linear layer into its noisy form, in place.

    He, Rakin & Fan, "Parametric Noise Injection", CVPR 2019, equations 2 and 3: W~ = W + alpha eta with
    eta ~ N(0, std(W)^2), drawn anew in each forward pass of training and of evaluation alike, std(W) over the layer and
    without a gradient; the gradient of alpha is (dL/dW~ eta), summed over what shares it. alpha = 0 is the network
    itself. The parameters keep their names; each layer gains `alpha`. A target's session seeds the noise.

    Args:
        module: changed in place.
        granularity: one alpha for a layer, for an output channel, or for an element.
        alpha: where all of them start.

    Returns:
        The module.

    Raises:
        InputError: it has no such layers, or a part whose weights this would not reach.

    >>> layer = inject_noise(nn.Sequential(nn.Linear(2, 3)))[0]
    >>> layer.alpha.shape, torch.equal(layer(torch.ones(1, 2)), layer(torch.ones(1, 2)))
    (torch.Size([3, 1]), False)
    """
    if granularity not in GRANULARITIES:
        raise InputError(f"pni: granularity must be one of {', '.join(GRANULARITIES)}, got '{granularity}'")
    found = _layers(module)
    for part in found:
        shape = tuple(part.weight.shape)
        ones = {"layer": (1,), "channel": (shape[0], *[1] * (len(shape) - 1)), "element": shape}[granularity]
        part.__class__ = NoisyConv2d if isinstance(part, nn.Conv2d) else NoisyLinear
        part.alpha = nn.Parameter(torch.full(ones, alpha, dtype=part.weight.dtype, device=part.weight.device))
    return module


def _layers(module: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """The layers that become noisy; nothing is changed before all are known to be of a plain kind."""
    found: list[nn.Conv2d | nn.Linear] = []
    for name, part in module.named_modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)) and type(part) in (nn.Conv2d, nn.Linear):
            found.append(part)
        elif isinstance(part, (nn.Conv2d, nn.Linear, nn.MultiheadAttention)):
            where = f"{type(part).__name__} at '{name or 'the top'}'"
            raise InputError(f"pni: layers must be plain Conv2d and Linear, got {where}")
    if not found:
        raise InputError("pni: the network must have convolutions or linear layers, got none")
    return found
