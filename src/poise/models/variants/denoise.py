"""Feature denoising: a non-local block behind every residual stage."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from poise.errors import InputError

Affinity = Literal["softmax", "dot"]
AFFINITIES: tuple[Affinity, ...] = ("softmax", "dot")

STAGES = ("layer1", "layer2", "layer3", "layer4", "block1", "block2", "block3")
"""What residual networks call their stages: each an `nn.Sequential` of blocks, or a part that holds one in `layer`."""


class DenoisingBlock(nn.Module):
    """x + norm(conv1x1(NL(x))): every position is averaged with those that look like it.

    Xie, Wu, van der Maaten, Yuille & He, "Feature Denoising for Improving Adversarial Robustness", CVPR 2019, section
    4. NL_i = sum_j w_ij x_j. "softmax" is their embedded Gaussian: w_i is the softmax over j of
    theta(x_i) phi(x_j) / sqrt(C / 2), with theta and phi 1x1 convolutions to C / 2 channels. "dot" has no embedding:
    w_ij = x_i x_j / (H W). The norm's scale starts at 0, so a new block is the identity.

    Args:
        channels: C.
        affinity: "softmax" or "dot".

    >>> block, x = DenoisingBlock(4), torch.rand(2, 4, 3, 3)
    >>> torch.equal(block(x), x)
    True
    """

    def __init__(self, channels: int, affinity: Affinity = "softmax") -> None:
        super().__init__()
        if affinity not in AFFINITIES:
            raise InputError(f"denoise: affinity must be one of {', '.join(AFFINITIES)}, got '{affinity}'")
        self.affinity: Affinity = affinity
        if affinity == "softmax":
            inner = max(1, channels // 2)
            self.theta = nn.Conv2d(channels, inner, 1, bias=False)
            self.phi = nn.Conv2d(channels, inner, 1, bias=False)
            nn.init.normal_(self.theta.weight, std=0.01)
            nn.init.normal_(self.phi.weight, std=0.01)
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(m, C, H, W) to the same."""
        out: Tensor = self.norm(self.conv(self.weighted(x)))
        return x + out

    def weighted(self, x: Tensor) -> Tensor:
        """NL(x): (m, C, H, W) to the same."""
        flat = x.flatten(2)  # (m, C, positions)
        if self.affinity == "softmax":
            theta, phi = self.theta(x).flatten(2), self.phi(x).flatten(2)
            weights = torch.softmax(theta.transpose(1, 2) @ phi / theta.shape[1] ** 0.5, dim=2)
            mixed = flat @ weights.transpose(1, 2)
        elif flat.shape[1] < flat.shape[2]:  # the cheaper order of the same two products
            mixed = (flat @ flat.transpose(1, 2)) @ flat / flat.shape[2]
        else:
            mixed = flat @ (flat.transpose(1, 2) @ flat) / flat.shape[2]
        return mixed.reshape(x.shape)

    def extra_repr(self) -> str:
        return f"affinity={self.affinity!r}"


def add_denoising(module: nn.Module, affinity: Affinity = "softmax") -> nn.Module:
    """Appends a `DenoisingBlock` to every residual stage, in place; the other parameters keep their names.

    Args:
        module: with stages as in `STAGES`: the CIFAR ResNets and wide ResNets here, ResNets of torchvision and timm.
        affinity: as for `DenoisingBlock`.

    Returns:
        The module.

    Raises:
        InputError: it has no such stages.

    >>> from poise.models.resnet import CifarResNet
    >>> len(add_denoising(CifarResNet(1, 10)).layer3)
    2
    """
    found = []
    for name in STAGES:
        stage = getattr(module, name, None)
        stage = getattr(stage, "layer", stage)
        if isinstance(stage, nn.Sequential):
            widths = [part.out_channels for part in stage.modules() if isinstance(part, nn.Conv2d)]
            found += [(stage, widths[-1])] if widths else []
    if not found:
        names = "layer1, layer2, … or block1, …"
        raise InputError(f"denoise: the network must have residual stages ({names}), got {type(module).__name__}")
    for stage, channels in found:
        stage.append(DenoisingBlock(channels, affinity))
    return module
