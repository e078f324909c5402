"""Models for the audit's tests, named on the command line as py:FILE:FACTORY; each misbehaves in one way, or not."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from poise import Access, ModuleTarget

SIDE, CLASSES = 6, 4


class Linear(nn.Module):
    """Logits of (n, 1, 6, 6) images, four classes, confidences from about 0.3 to 0.99."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(7)
        self.weight = nn.Parameter(torch.randn(SIDE * SIDE, CLASSES, generator=source) * scale)

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5).flatten(1) @ self.weight


class Changed(nn.Module):
    """The linear model with something done to its logits."""

    def __init__(self, change, *, scale: float = 1.0) -> None:
        super().__init__()
        self.inner, self.change = Linear(scale), change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.inner(x))


class Small(nn.Module):
    """A net for images of any size whose activations are no larger than its input."""

    def __init__(self) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(3, CLASSES, generator=source) * 30)

    def forward(self, x: Tensor) -> Tensor:
        return (x.mean(dim=(2, 3)) - 0.5) @ self.weight


class Fails(nn.Module):
    """Raises what no library would."""

    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("a key\nthat is missing")


class ThroughNumpy(Linear):
    """Answers, but not where a gradient is wanted."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(super().forward(x).numpy())


class NeedsLarge(Linear):
    """For images of another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean(dim=(2, 3))


def layered() -> nn.Module:
    """Two linear layers; what the second is given is the output of layer "1"."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    with torch.no_grad():
        model[3].weight *= 6
    return model


class Convolved(nn.Module):
    """Two convolutions, the mean over places, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            self.body = nn.Sequential(
                nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU()
            )
            self.head = nn.Linear(5, CLASSES)
        with torch.no_grad():
            self.head.weight *= 40

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(dim=(2, 3)))


def convolved() -> nn.Module:
    return Convolved()


def linear() -> nn.Module:
    return Linear()


def small() -> nn.Module:
    return Small()


def other_weights() -> nn.Module:
    return Linear(1.01)


def probabilities() -> nn.Module:
    return Changed(lambda z: z.softmax(dim=1))


def nan() -> nn.Module:
    return Changed(lambda z: torch.where(torch.arange(len(z))[:, None] == 3, math.nan, z))


def infinite() -> nn.Module:
    return Changed(lambda z: z / 0.0)


def fails() -> nn.Module:
    return Fails()


def through_numpy() -> nn.Module:
    return ThroughNumpy()


def needs_large() -> nn.Module:
    return NeedsLarge()


def factory_fails() -> nn.Module:
    raise ZeroDivisionError("no model today")


def scores_only() -> ModuleTarget:
    return ModuleTarget(Linear(), num_classes=CLASSES, access=Access.SCORES)


def two_classes() -> nn.Module:
    return Changed(lambda z: z[:, :2])


def labels_only() -> ModuleTarget:
    return ModuleTarget(Linear(), num_classes=CLASSES, access=Access.LABELS)


def saturated() -> nn.Module:
    return Linear(1000.0)


def noisy() -> nn.Module:
    return Changed(lambda z: z + 0.1 * torch.randn_like(z))


def detached() -> nn.Module:
    return Changed(lambda z: z.detach())


def batch_dependent() -> nn.Module:
    return Changed(lambda z: z - z.mean(dim=0))


def rounded() -> nn.Module:
    return Changed(lambda z: (10 * z).round() / 10)


def rounded_probabilities() -> nn.Module:
    """To two decimals, yet differentiable and never 0."""

    def change(z: Tensor) -> Tensor:
        p = z.softmax(dim=1)
        q = (100 * p).round().clamp_min(1)
        q = q + (torch.arange(CLASSES) == q.argmax(dim=1)[:, None]) * (100 - q.sum(dim=1, keepdim=True))
        return (p + (q / 100 - p).detach()).log()

    return Changed(change)


def clipped() -> nn.Module:
    return Changed(lambda z: z.clamp(-0.5, 0.5))


def sigmoid() -> nn.Module:
    """Independent probabilities in the place of logits."""
    return Changed(lambda z: z.sigmoid(), scale=30.0)


def softmax_twice() -> ModuleTarget:
    module = Changed(lambda z: z.softmax(dim=1).softmax(dim=1), scale=30.0)
    return ModuleTarget(module, num_classes=CLASSES, outputs="probabilities")


def percent() -> nn.Module:
    return Changed(lambda z: 100 * z.softmax(dim=1))


def log_probabilities() -> nn.Module:
    return Changed(lambda z: z.log_softmax(dim=1))
