"""DeepMind's wide residual network, which most entries of RobustBench use, and a learnable activation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DMBlock(nn.Module):
    """Norm, SiLU, 3x3 convolution, twice; with stride 2 zeros are added at the right and the bottom only."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.batchnorm_0 = nn.BatchNorm2d(channels_in)
        self.conv_0 = nn.Conv2d(channels_in, channels, 3, stride=stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(channels)
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        same = channels_in == channels
        self.shortcut = None if same else nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False)
        self.padding = (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(m, C_in, H, W) to (m, C, H / stride, W / stride)."""
        active = F.silu(self.batchnorm_0(x))
        out = self.conv_0(F.pad(active, self.padding))
        out = self.conv_1(F.silu(self.batchnorm_1(out)))
        return torch.add(x if self.shortcut is None else self.shortcut(active), out)


class DMStage(nn.Module):
    """Blocks of one width; the first one changes the size."""

    def __init__(self, blocks: int, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        first = DMBlock(channels_in, channels, stride)
        self.block = nn.Sequential(first, *(DMBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out


class DMWideResNet(nn.Module):
    """WRN-depth-width with SiLU and the normalisation inside, for images in [0, 1].

    Gowal, Qin, Uesato, Mann & Kohli, "Uncovering the Limits of Adversarial Training against Norm-Bounded Adversarial
    Examples", arXiv:2010.03593, section 3; the names, the one-sided padding and the buffers `mean` and `std` are those
    of the checkpoints that RobustBench lists.

    Args:
        depth: 6 n + 4.
        width: factor k; the stages have 16 k, 32 k and 64 k channels.
        num_classes: K.
        mean, std: per channel, for images in [0, 1].

    >>> DMWideResNet(10, 1, 7, [0.5] * 3, [0.25] * 3)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 7])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, depth: int, width: int, num_classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        self.init_conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.layer = nn.Sequential(
            DMStage(blocks, 16, 16 * width, 1),
            DMStage(blocks, 16 * width, 32 * width, 2),
            DMStage(blocks, 32 * width, 64 * width, 2),
        )
        self.batchnorm = nn.BatchNorm2d(64 * width)
        self.logits = nn.Linear(64 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(m, 3, H, W) in [0, 1] to logits (m, K)."""
        out = self.layer(self.init_conv((x - self.mean) / self.std))
        logits: Tensor = self.logits(F.silu(self.batchnorm(out)).mean(dim=(2, 3)))
        return logits


class PSSiLU(nn.Module):
    """Parametric shifted SiLU: x (sigmoid(|alpha| x) - |beta|) / (1 - |beta|), with two learnable numbers.

    Dai, Mahloujifar & Mittal, "Parameterizing Activation Functions for Adversarial Robustness", arXiv:2110.05626; it
    starts as SiLU but for beta = 1e-8, as in their code.

    >>> PSSiLU()(torch.tensor([0.0, 100.0])).tolist()
    [0.0, 100.0]
    """

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor([1e-8]))
        self.alpha = nn.Parameter(torch.tensor([1.0]))

    def forward(self, x: Tensor) -> Tensor:
        shift = self.beta.abs()
        return x * (torch.sigmoid(self.alpha.abs() * x) - shift) / (1 - shift)
