"""What the tests of training share: small networks and batches, runs watched step by step, losses in numpy."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from poise.data import Dataset, from_arrays
from poise.models.resnet import CifarResNet
from poise.targets import ModuleTarget
from poise.training import Batch, TrainingRecipe, training_recipe
from poise.training.loop import Job, Progress, Silent, Trainer
from toys import generator

SGD = {"optimizer.name": "sgd", "optimizer.lr": 0.05, "optimizer.momentum": 0.9, "optimizer.nesterov": True}

# --- numpy, from the definitions ---


def log_softmax(z: np.ndarray) -> np.ndarray:
    """Row by row, with the largest logit taken out."""
    return np.array([row - row.max() - np.log(np.exp(row - row.max()).sum()) for row in np.asarray(z, dtype=float)])


def cross_entropy(z: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log p_y."""
    return float(np.mean([-row[y] for row, y in zip(log_softmax(z), labels, strict=True)]))


def divergence(natural: np.ndarray, other: np.ndarray) -> float:
    """Mean of sum_k p_k (log p_k - log q_k)."""
    log_p, log_q = log_softmax(natural), log_softmax(other)
    return float(np.mean([(np.exp(p) * (p - q)).sum() for p, q in zip(log_p, log_q, strict=True)]))


# --- batches ---


def batch(
    n: int = 6, shape: tuple[int, int, int] = (1, 4, 4), classes: int = 3, *, source: int = 0, **rest: Any
) -> Batch:
    """Random images in [0.1, 0.9], random labels, and names that are not 0..n-1."""
    draws = generator(source)
    images = 0.1 + 0.8 * torch.rand(n, *shape, generator=draws)
    labels = torch.randint(classes, (n,), generator=draws)
    return Batch(images, labels, torch.randperm(500, generator=draws)[:n] * 3 + 11, **rest)


def turned(given: Batch, order: Tensor) -> Batch:
    """The same samples in another order."""
    return Batch(
        given.images[order],
        given.labels[order],
        given.ids[order],
        given.seed,
        given.step,
        given.epoch,
        given.progress,
    )


def network(
    shape: tuple[int, int, int] = (1, 4, 4), classes: int = 3, *, seed: int = 0, scale: float = 4.0
) -> nn.Module:
    """Flatten, 12 hidden units, K classes; logits that spread."""
    draws = generator(seed)
    pixels = shape[0] * shape[1] * shape[2]
    module = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 12), nn.Tanh(), nn.Linear(12, classes))
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(torch.randn(value.shape, generator=draws) / max(value[0].numel(), 1) ** 0.5)
        module[3].weight.mul_(scale)
        typical = module(torch.rand(200, *shape, generator=draws))
        module[3].bias.sub_(typical.mean(dim=0))
    return module


def linear(weight: list[list[float]], bias: list[float] | None = None) -> nn.Module:
    """Flatten, then W x + b, in float64."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(len(weight[0]), len(weight))).double()
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor(weight))
        module[1].bias.copy_(torch.tensor(bias or [0.0] * len(weight)))
    return module


def target_of(module: nn.Module, classes: int = 3) -> ModuleTarget:
    return ModuleTarget(module, num_classes=classes)


# --- whole runs ---


def pictures(n: int, shape: tuple[int, int, int], classes: int, *, seed: int = 0) -> Dataset:
    """Classes that differ in brightness by rows, with noise."""
    draws = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    images = draws.integers(0, 120, (n, *shape), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, label % shape[1]] += np.uint8(120)
    return from_arrays(images.transpose(0, 2, 3, 1), labels)


@dataclass
class Watched:
    """A run: the network's tensors after every step, and where it ended."""

    states: list[dict[str, Tensor]] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)
    module: nn.Module = field(default_factory=nn.Identity)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.progress.rows


class _Follower(Silent):
    def __init__(self, module: nn.Module, watched: Watched) -> None:
        self.module, self.watched = module, watched

    def step(self, done: int) -> None:
        self.watched.states.append({name: value.clone() for name, value in self.module.state_dict().items()})


def run(
    module: nn.Module,
    recipe: TrainingRecipe,
    train: Dataset,
    val: Dataset | None = None,
    *,
    seed: int = 0,
    wrap: Callable[[Any], Any] | None = None,
) -> Watched:
    """Trains a copy of the module on one CPU; `wrap` may stand between the loop and the method."""
    watched = Watched(module=deepcopy(module))
    target = ModuleTarget(watched.module, num_classes=train.num_classes)
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    job = Job(target, recipe, train, train[:8] if val is None else val, seed=seed, workers=0)
    trainer = Trainer(fabric, job, _Follower(watched.module, watched))
    if wrap is not None:
        trainer.method = wrap(trainer.method)
    watched.progress = trainer.run()
    return watched


def small(name: str, **changes: Any) -> TrainingRecipe:
    """A recipe for a few steps of SGD without augmentation; `a__b` stands for the field a.b."""
    fewer = {key.replace("__", "."): value for key, value in changes.items()}
    return training_recipe(name, {"epochs": 2, "batch_size": 6, "augment": [], **SGD} | fewer)


def with_norm(classes: int = 10) -> nn.Module:
    """ResNet-8 with batch norm; the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return CifarResNet(1, classes)


def without_norm(classes: int = 10) -> nn.Module:
    """A network for the same images, without batch norm, with dropout, which draws random numbers in every pass."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, classes)
        )


def differences(one: Watched, other: Watched) -> list[float]:
    """The largest difference of any tensor, after each step."""
    assert len(one.states) == len(other.states) > 0
    return [
        max(float((a[name].double() - b[name].double()).abs().max()) for name in a)
        for a, b in zip(one.states, other.states, strict=True)
    ]
