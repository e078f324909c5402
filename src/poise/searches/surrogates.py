"""Small networks that learn what a victim answers, from the questions that were put to it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from poise.rng import Rng
from poise.searches.base import Problem

FEATURES = 16
"""What a body makes of an image; each sample reads it in its own way."""

SIDE = 32
"""Larger images are averaged down to about this side first, so that the work per image is bounded."""

BATCH = 64
"""Pairs per training step."""

RATE = 1e-3
"""Learning rate of Adam."""


def _plain(channels: int) -> list[nn.Module]:
    """Three 3 x 3 convolutions."""
    return [
        nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, FEATURES),
    ]  # fmt: skip


def _wide(channels: int) -> list[nn.Module]:
    """Larger windows, and a hidden layer."""
    return [
        nn.Conv2d(channels, 16, 5, stride=2, padding=2), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(2048, 64), nn.ReLU(), nn.Linear(64, FEATURES),
    ]  # fmt: skip


def _pooled(channels: int) -> list[nn.Module]:
    """Patches first, then averages: coarse."""
    return [
        nn.Conv2d(channels, 24, 4, stride=2, padding=2), nn.ReLU(),
        nn.Conv2d(24, 48, 4, stride=2, padding=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(192, FEATURES),
    ]  # fmt: skip


ARCHITECTURES: tuple[Callable[[int], list[nn.Module]], ...] = (_wide, _plain, _pooled)
"""Bodies by the number of a surrogate: layers for images of so many channels."""


class Surrogate(nn.Module):
    """f(x, i) = <head_i, body(x)> + bias_i, about sample i's loss at x, in units of its largest change so far.

    The body is common to all samples, as the victim is; a head stands for the sample's goal and classes. Weights come
    from `rng` alone, sample 0 of which is the whole network's stream.

    Args:
        problem: shapes, box and the samples' own streams.
        rng: of one row.
        number: which architecture.
    """

    def __init__(self, problem: Problem, rng: Rng, number: int) -> None:
        super().__init__()
        n, channels, height, width = problem.clean.shape
        shrink = math.ceil(height / SIDE), math.ceil(width / SIDE)
        with torch.device("meta"):  # no weights yet: those of torch's own would come from the global generator
            self.body = nn.Sequential(nn.AvgPool2d(shrink), *ARCHITECTURES[number](channels))
        self.body.to_empty(device=problem.clean.device)
        self.bias = nn.Parameter(problem.clean.new_zeros(n, dtype=torch.float32))
        heads = problem.rng.normal(f"surrogate-{number}-heads", 0, problem.everyone, (FEATURES,))
        self.head = nn.Parameter(heads / FEATURES**0.5)
        self.middle, self.reach = (problem.box.low + problem.box.high) / 2, (problem.box.high - problem.box.low) / 4
        self.rng, self.number, self.trained = rng, number, 0
        self._begin()
        self.optimizer = torch.optim.Adam(self.parameters(), lr=RATE)

    @torch.no_grad()
    def _begin(self) -> None:
        """He et al.'s initial weights, no biases."""
        row = torch.zeros(1, dtype=torch.int64, device=self.bias.device)
        for layer, value in enumerate(self.body.parameters()):
            if value.ndim == 1:
                value.zero_()
            else:
                drawn = self.rng.normal(f"surrogate-{self.number}-weights", layer, row, tuple(value.shape))[0]
                value.copy_(drawn * (2 / value[0].numel()) ** 0.5)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        """(m,) for points x (m, C, H, W) of the samples ids (m,)."""
        features = self.body((x.float() - self.middle) / self.reach)
        answer: Tensor = (features * self.head[ids]).sum(dim=1) + self.bias[ids]
        return answer

    def fit(self, pairs: Pairs, steps: int) -> None:
        """Some steps of Adam on the squared error, each on pairs drawn anew."""
        row = torch.zeros(1, dtype=torch.int64, device=self.bias.device)
        for _ in range(steps):
            drawn = self.rng.integers(f"surrogate-{self.number}-pairs", self.trained, row, 1 << 62, (BATCH,))[0]
            x, ids, wanted, known = pairs.at(drawn % pairs.held)
            error = ((self(x, ids) - wanted).square() * known).mean()
            self.optimizer.zero_grad()
            error.backward()
            self.optimizer.step()
            self.trained += 1

    def slope(self, x: Tensor, ids: Tensor) -> Tensor:
        """(m, C, H, W) its gradient at x, in the type of x."""
        points = x.detach().requires_grad_(True)
        return torch.autograd.grad(self(points, ids).sum(), points)[0]


class Pairs:
    """Questions and answers of all samples, the latest of them: a ring of a fixed number of places.

    Args:
        problem: how many samples of what shape, and how often they can be asked.
        memory: bytes for the points; there is room for one point of every sample in any case.

    Attributes:
        held: pairs that are there.
    """

    def __init__(self, problem: Problem, memory: int) -> None:
        clean = problem.clean
        fit = memory // max(4 * math.prod(clean.shape[1:]), 1)
        self.places = max(min(fit, len(clean) * problem.budget), len(clean), 1)
        self.x = clean.new_empty((self.places, *clean.shape[1:]), dtype=torch.float32)
        self.ids = torch.zeros(self.places, dtype=torch.int64, device=clean.device)
        self.change = clean.new_zeros(self.places, dtype=torch.float32)
        self.known = torch.zeros_like(self.change)
        self.base = torch.zeros(len(clean), dtype=torch.float64, device=clean.device)
        self.largest = clean.new_zeros(len(clean), dtype=torch.float32)
        self.held, self._next = 0, 0

    def add(self, x: Tensor, ids: Tensor, loss: Tensor) -> None:
        """Keeps points (m, C, H, W), m at most n, and their losses (m,); those that were not evaluated count nothing.

        The first loss of a sample is what its others are compared with.
        """
        if not self.held:
            self.base[ids] = loss.double()
        places = (self._next + torch.arange(len(ids), device=ids.device)) % self.places
        known = loss.isfinite()
        change = torch.where(known, loss.double() - self.base[ids], 0).float()
        self.x[places], self.ids[places] = x.float(), ids
        self.change[places], self.known[places] = change, known.float()
        self.largest.scatter_reduce_(0, ids, change.abs(), reduce="amax")
        self._next = (self._next + len(ids)) % self.places
        self.held = min(self.held + len(ids), self.places)

    def at(self, places: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Points, samples, changes of the loss as shares of the sample's largest, and 0 where nothing is known."""
        ids = self.ids[places]
        share = self.change[places] / self.largest[ids].clamp_min(1e-12)
        return self.x[places], ids, share, self.known[places]
