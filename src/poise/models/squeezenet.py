"""SqueezeNet 1.0 as its compressed Caffe release defines it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Fire(nn.Module):
    """A 1x1 convolution that squeezes, then 1x1 and 3x3 convolutions side by side that expand."""

    def __init__(self, channels_in: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels_in, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(m, C_in, H, W) to (m, 2 * expanded, H, W)."""
        out = F.relu(self.squeeze(x))
        return torch.cat((F.relu(self.expand1x1(out)), F.relu(self.expand3x3(out))), dim=1)


def _pool() -> nn.Module:
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.0 for 227x227 images.

    Iandola et al., "SqueezeNet", arXiv:1602.07360, table 1, with the padding of 1 that the released network has on
    its last 1x1 convolution. The release takes blue, green, red: the channels are turned around inside.

    >>> SqueezeNet(5)(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 5])
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 96, 7, stride=2),
            nn.ReLU(),
            _pool(),
            Fire(96, 16, 64),
            Fire(128, 16, 64),
            Fire(128, 32, 128),
            _pool(),
            Fire(256, 32, 128),
            Fire(256, 48, 192),
            Fire(384, 48, 192),
            Fire(384, 64, 256),
            _pool(),
            Fire(512, 64, 256),
        )
        self.classifier = nn.Sequential(nn.Identity(), nn.Conv2d(512, num_classes, 1, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """(m, 3, H, W) red, green, blue, to logits (m, K)."""
        logits: Tensor = self.classifier(self.features(x.flip(1))).mean(dim=(2, 3))
        return logits
