"""Small convolutional networks: the digits network, LeNet-5 for MNIST, CNN-A for CIFAR-10."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DigitsCNN(nn.Sequential):
    """Two convolutions and two linear layers for 8x8 grey images; 38,282 parameters.

    >>> DigitsCNN(10)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 64),
            nn.ReLU(),
            nn.Linear(64, num_classes),
        )


class LeNet5(nn.Module):
    """The wide LeNet of the adversarial-robustness literature for 28x28 grey images (advertorch's layers).

    >>> LeNet5(10)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.linear1 = nn.Linear(64 * 7 * 7, 200)
        self.linear2 = nn.Linear(200, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(m, 1, 28, 28) to logits (m, K)."""
        out = F.max_pool2d(F.relu(self.conv1(x)), 2)
        out = F.max_pool2d(F.relu(self.conv2(out)), 2)
        logits: Tensor = self.linear2(F.relu(self.linear1(torch.flatten(out, 1))))
        return logits


class CnnA(nn.Sequential):
    """CNN-A of the verification benchmarks for 32x32 colour images.

    Dathathri et al., "Enabling certification of verification-agnostic networks via memory-efficient semidefinite
    programming", NeurIPS 2020; the layers are those of the checkpoints that alpha-beta-CROWN ships.

    >>> CnnA(10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 8 * 8, 100),
            nn.ReLU(),
            nn.Linear(100, num_classes),
        )
