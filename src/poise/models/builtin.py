"""The table of architectures that poise brings along."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from poise.models.digits import Note, digits_model
from poise.models.model_a import ModelA
from poise.models.resnet import CifarResNet, ResNet2b
from poise.models.small import CnnA, DigitsCNN, LeNet5
from poise.models.squeezenet import SqueezeNet
from poise.models.vision import cifar_resnet, small_vit
from poise.models.wide_resnet import WideResNet

Channels = tuple[float, ...]

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CNN_A = (0.491373, 0.482353, 0.446667), (0.247059, 0.243529, 0.261569)
_CIFAR = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
_SYMMETRIC_GREY = (0.5,), (0.5,)
_SYMMETRIC = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
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

    >>> from poise.models import BUILTIN
    >>> BUILTIN["cnn-a-cifar10"].shape
    (3, 32, 32)
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


def _torchvision(name: str, title: str) -> Builtin:
    summary = f"{title} for 32x32 images: torchvision's, 3x3 first layer, no pooling behind it"
    return Builtin(summary, (3, 32, 32), 10, partial(cifar_resnet, name), _CIFAR)


def _wide(depth: int, width: int) -> Builtin:
    summary = f"WRN-{depth}-{width} for 32x32 images (Zagoruyko & Komodakis 2016)"
    return Builtin(summary, (3, 32, 32), 10, partial(WideResNet, depth, width))


BUILTIN: dict[str, Builtin] = {
    "digits": Builtin(
        "small CNN for 8x8 digits, trained at first use (2 s)", (1, 8, 8), 10, DigitsCNN, None, 0.2, digits_model
    ),
    "resnet20-cifar10": _resnet(20),
    "resnet32-cifar10": _resnet(32),
    "resnet44-cifar10": _resnet(44),
    "resnet56-cifar10": _resnet(56),
    "resnet2b-cifar10": Builtin("ResNet-2B without batch norm, 32x32 images", (3, 32, 32), 10, ResNet2b, _CIFAR),
    "cnn-a-cifar10": Builtin("CNN-A, two convolutions, 32x32 images", (3, 32, 32), 10, CnnA, _CNN_A),
    "lenet5-mnist": Builtin("LeNet-5 (advertorch's layers) for 28x28 digits", (1, 28, 28), 10, LeNet5, None, 0.3),
    "resnet18-cifar10": _torchvision("resnet18", "ResNet-18"),
    "resnet50-cifar10": _torchvision("resnet50", "ResNet-50"),
    "wrn50-2-cifar10": _torchvision("wide_resnet50_2", "Wide-ResNet-50-2"),
    "wrn16-4-cifar10": _wide(16, 4),
    "wrn28-10-cifar10": _wide(28, 10),
    "wrn34-10-cifar10": _wide(34, 10),
    "vit-small-cifar10": Builtin(
        "small ViT (timm's), patches of 4 pixels, for 32x32 images", (3, 32, 32), 10, small_vit, _CIFAR
    ),
    "model-a-mnist": Builtin(
        "Model A (reconstruction) for 28x28 digits", (1, 28, 28), 10, partial(ModelA, 1), _SYMMETRIC_GREY, 0.3
    ),
    "model-a-cifar10": Builtin(
        "Model A (reconstruction) for 32x32 images", (3, 32, 32), 10, partial(ModelA, 3), _SYMMETRIC
    ),
    "squeezenet10-imagenet": Builtin(
        "SqueezeNet 1.0 (Caffe release) for 227x227 images", (3, 227, 227), 1000, SqueezeNet, _CAFFE, 4 / 255
    ),
}
"""Name → architecture; all but `digits` need weights=FILE, unless they are to be trained."""
