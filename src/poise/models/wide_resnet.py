"""Wide residual networks for 32x32 images, with the parameter names of the common checkpoints."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

UNUSED = "sub_block1."
"""Parameters in the checkpoints of TRADES and its followers that their network never runs."""


class WideBlock(nn.Module):
    """Norm, activation, 3x3 convolution, twice; where the width changes, the shortcut is a 1x1 convolution.

    That convolution starts behind the first activation, as in the authors' code.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, activation: nn.Module) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.activation = activation
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        same = channels_in == channels
        self.convShortcut = None if same else nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(m, C_in, H, W) to (m, C, H / stride, W / stride)."""
        active = self.activation(self.bn1(x))
        out = self.conv2(self.activation(self.bn2(self.conv1(active))))
        return torch.add(x if self.convShortcut is None else self.convShortcut(active), out)


class WideStage(nn.Module):
    """Blocks of one width; the first one changes the size."""

    def __init__(self, blocks: int, channels_in: int, channels: int, stride: int, activation: nn.Module) -> None:
        super().__init__()
        first = WideBlock(channels_in, channels, stride, activation)
        self.layer = nn.Sequential(first, *(WideBlock(channels, channels, 1, activation) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """WRN-depth-width, pre-activation, no dropout.

    Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016, table 1 (parameters: 36.5 M for 28-10, 2.7 M for
    16-4), with its initialisation. The names are those of the code that TRADES and RobustBench share; what such files
    hold under `sub_block1`, which is never run, is passed over.

    Args:
        depth: 6 n + 4.
        width: factor k; the stages have 16 k, 32 k and 64 k channels.
        num_classes: K.
        activation: after each norm; one module for all places, so a learnable one is shared.

    >>> WideResNet(10, 1, 7)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 7])
    """

    def __init__(self, depth: int, width: int, num_classes: int, activation: nn.Module | None = None) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        act = nn.ReLU() if activation is None else activation
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = WideStage(blocks, 16, 16 * width, 1, act)
        self.block2 = WideStage(blocks, 16 * width, 32 * width, 2, act)
        self.block3 = WideStage(blocks, 32 * width, 64 * width, 2, act)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.activation = act
        self.fc = nn.Linear(64 * width, num_classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, 0, math.sqrt(2 / (part.kernel_size[0] ** 2 * part.out_channels)))
        nn.init.zeros_(self.fc.bias)
        self.register_load_state_dict_pre_hook(_pass_over_unused)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """(m, 3, H, W) to logits (m, K)."""
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        logits: Tensor = self.fc(self.activation(self.bn1(out)).mean(dim=(2, 3)))
        return logits


def _pass_over_unused(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Takes what is never run out of a state dict that is about to be loaded."""
    for name in [name for name in state if name.startswith(prefix + UNUSED)]:
        del state[name]
