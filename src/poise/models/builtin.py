"""The table of architectures that poise brings along."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from poise.models.digits import Note, digits_model
from poise.models.resnet import CifarResNet, ResNet2b
from poise.models.small import CnnA, DigitsCNN, LeNet5
from poise.models.squeezenet import SqueezeNet

Channels = tuple[float, ...]

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CNN_A = (0.491373, 0.482353, 0.446667), (0.247059, 0.243529, 0.261569)
_RESNET_2B = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
_CAFFE = (123 / 255, 117 / 255, 104 / 255), (1 / 255, 1 / 255, 1 / 255)


@dataclass(frozen=True, slots=True)
class Builtin:
    """An architecture under a name.

    Args:
        summary: one line for `poise list models`.
        shape: (C, H, W) of its images.
        num_classes: K unless the address says otherwise.
        build: makes the module for K classes, with arbitrary weights.
        normalisation: mean and std per channel of its known checkpoints; None where pixels go in as they are.
        eps: a radius in the maximum norm, in pixel units, that is usual for such images.
        trained: gives the module with weights of its own; None where the user must bring a file.
    """

    summary: str
    shape: tuple[int, int, int]
    num_classes: int
    build: Callable[[int], nn.Module]
    normalisation: tuple[Channels, Channels] | None = None
    eps: float = 8 / 255
    trained: Callable[[Note], nn.Module] | None = None


def _resnet(depth: int) -> Builtin:
    blocks = (depth - 2) // 6
    summary = f"ResNet-{depth} for 32x32 images (He et al. 2016, option A shortcuts)"
    return Builtin(summary, (3, 32, 32), 10, partial(CifarResNet, blocks), _IMAGENET)


BUILTIN: dict[str, Builtin] = {
    "digits": Builtin(
        "small CNN for 8x8 digits, trained at first use (2 s)", (1, 8, 8), 10, DigitsCNN, None, 0.2, digits_model
    ),
    "resnet20-cifar10": _resnet(20),
    "resnet32-cifar10": _resnet(32),
    "resnet44-cifar10": _resnet(44),
    "resnet56-cifar10": _resnet(56),
    "resnet2b-cifar10": Builtin("ResNet-2B without batch norm, 32x32 images", (3, 32, 32), 10, ResNet2b, _RESNET_2B),
    "cnn-a-cifar10": Builtin("CNN-A, two convolutions, 32x32 images", (3, 32, 32), 10, CnnA, _CNN_A),
    "lenet5-mnist": Builtin("LeNet-5 (advertorch's layers) for 28x28 digits", (1, 28, 28), 10, LeNet5, None, 0.3),
    "squeezenet10-imagenet": Builtin(
        "SqueezeNet 1.0 (Caffe release) for 227x227 images", (3, 227, 227), 1000, SqueezeNet, _CAFFE, 4 / 255
    ),
}
"""Name → architecture; all but `digits` need weights=FILE."""
