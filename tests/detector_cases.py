"""What the tests of detectors share: a small network, images of known classes, an attack that shows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from poise.models.small import DigitsCNN
from poise.targets import ModuleTarget
from toys import generator


def hooks(model: nn.Module) -> int:
    """How many hooks there are in a model."""
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


def network(classes: int = 4) -> ModuleTarget:
    """The digits network with arbitrary weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = DigitsCNN(classes)
    return ModuleTarget(module, num_classes=classes, batch_size=32)


def pictures(n: int, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(n, 1, 8, 8) smooth images, each class about a picture of its own, and labels (n,)."""
    means = torch.rand(classes, 1, 2, 2, generator=generator(5))
    labels = torch.arange(n) % classes
    coarse = means[labels] + 0.15 * torch.randn(n, 1, 2, 2, generator=generator(seed))
    return nn.functional.interpolate(coarse, size=8, mode="bilinear").clamp(0.1, 0.9), labels


def checkered(images: Tensor, size: float = 0.1) -> Tensor:
    """The images with a fine pattern: what an attack in high frequencies looks like."""
    rows = torch.arange(images.shape[-1])
    return images + size * (1.0 - 2.0 * ((rows[:, None] + rows) % 2))


class Identity(nn.Module):
    """The first pixels of an image as its features, in a layer called `features`; three classes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.features = width, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.features(x.flatten(1)[:, : self.width])
        return found[:, :3] * 3 - 1


def as_target(module: nn.Module) -> ModuleTarget:
    return ModuleTarget(module, num_classes=3, bounds=(-1e6, 1e6), batch_size=64)


def as_images(points: Tensor) -> Tensor:
    """(n, F) points as images (n, 1, 1, F)."""
    return points[:, None, None]
