"""Model A of the paper on confidence thresholding, reconstructed from its description."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ModelA(nn.Module):
    """Model A (reconstruction) for 28x28 grey or 32x32 colour images.

    Goodfellow et al., "An Evaluation of Confidence Thresholding for Rejecting Adversarial Examples", appendix B,
    describe "a convolution and 2X downsampling layer, a residual layer, two convolutional layers, and a fully connected
    layer" and give no sizes. Built here: 3x3 convolution to 64 channels, 2x2 mean pooling, one residual block
    x + conv(relu(conv(x))), two 3x3 convolutions with stride 2 to 128 channels, a linear layer; ReLU, no norm.
    Padding is 1 on all sides.

    Args:
        channels: 1 or 3.
        num_classes: K.

    >>> ModelA(1, 10)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1)
        self.residual1 = nn.Conv2d(64, 64, 3, padding=1)
        self.residual2 = nn.Conv2d(64, 64, 3, padding=1)
        self.conv2 = nn.Conv2d(64, 128, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(128, 128, 3, stride=2, padding=1)
        self.linear = nn.Linear(128 * 4 * 4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(m, C, 28, 28) or (m, C, 32, 32) to logits (m, K)."""
        out = F.avg_pool2d(F.relu(self.conv1(x)), 2)
        out = out + self.residual2(F.relu(self.residual1(out)))
        out = F.relu(self.conv3(F.relu(self.conv2(out))))
        logits: Tensor = self.linear(torch.flatten(out, 1))
        return logits
