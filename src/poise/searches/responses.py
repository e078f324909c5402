"""How all logits answer to changes of an image: a linear model for every sample, learned from its own queries."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from poise.constraints.l2 import per_row
from poise.searches.base import Problem

SMOOTH, REACH, SHARED = 0.9, 1.5, 0.5
"""What is believed before the first query: neighbouring tiles (REACH of 8 tiles apart) and channels act alike."""


class Tiles:
    """Changes of an image, seen through the means of up to `side` x `side` tiles per channel.

    Args:
        clean: (n, C, H, W), for shape, dtype and device.
        side: tiles per row and column, at most the image's pixels.
        eps: the unit of a change.
    """

    def __init__(self, clean: Tensor, side: int, eps: float) -> None:
        self.channels, self.height, self.width = clean.shape[1:]
        self.rows, self.columns = min(side, self.height), min(side, self.width)
        self.eps, self.like = max(eps, 1e-12), clean
        self.number = self.channels * self.rows * self.columns

    def seen(self, change: Tensor) -> Tensor:
        """(m, d) means of change (m, C, H, W) over the tiles, in units of eps."""
        means = functional.adaptive_avg_pool2d(change / self.eps, (self.rows, self.columns))
        return means.flatten(1)

    def image(self, values: Tensor) -> Tensor:
        """(m, C, H, W) constant on every tile, from values (m, d)."""
        tiles = values.view(-1, self.channels, self.rows, self.columns)
        return functional.interpolate(tiles, size=(self.height, self.width), mode="nearest")

    @cached_property
    def prior(self) -> Tensor:
        """(d, d) covariance of a logit's slopes, trace 1."""

        def near(count: int) -> Tensor:
            at = torch.arange(count, device=self.like.device, dtype=self.like.dtype) * (8 / count)
            return torch.exp(-(at[:, None] - at).square() / (2 * REACH**2))

        pixels = self.rows * self.columns
        one = torch.eye(pixels, device=self.like.device, dtype=self.like.dtype)
        space = SMOOTH * torch.kron(near(self.rows), near(self.columns)) + (1 - SMOOTH) * one
        colour = torch.full((self.channels, self.channels), SHARED, device=one.device, dtype=one.dtype)
        colour = colour + (1 - SHARED) * torch.eye(self.channels, device=one.device, dtype=one.dtype)
        return torch.kron(colour, space) / self.number


def product(matrices: Tensor, vectors: Tensor) -> Tensor:
    """(m, a) of matrices (m, a, d) and vectors (m, d); unlike a batched matmul, a row's bits do not depend on m."""
    return (matrices * vectors[:, None]).sum(dim=2)


def regress(slopes: Tensor, doubt: Tensor, seen: Tensor, error: Tensor, noise: Tensor, known: Tensor) -> Tensor:
    """One step of recursive least squares, in place: what was seen was answered with an error.

    Args:
        slopes: (m, K, d) posterior means. doubt: (m, d, d) covariance of each of their rows.
        seen: (m, d). error: (m, K) of the prediction slopes seen. noise: (m,) variance of the answer.
        known: (m,) bool, rows that teach.

    Returns:
        (m,) bool, rows that taught something: known, of a finite error and a positive variance.
    """
    spread = product(doubt, seen)
    variance = (seen * spread).sum(dim=1) + noise
    known = known & (variance > 0) & error.isfinite().all(dim=1)
    gain = torch.where(known[:, None], spread / variance.clamp_min(1e-30)[:, None], 0)
    slopes += torch.where(known[:, None], error, 0)[:, :, None] * gain[:, None]
    doubt -= gain[:, :, None] * spread[:, None]
    return known


@dataclass
class Slopes:
    """The expected response J (m, K, d) of m samples."""

    tiles: Tiles
    slopes: Tensor

    def rise(self, change: Tensor) -> Tensor:
        """(m, K) by how much the logits are expected to move."""
        return product(self.slopes, self.tiles.seen(change))

    def pull(self, weights: Tensor) -> Tensor:
        """(m, C, H, W) the expected slope of sum_j weights_j logit_j, constant on every tile; weights (m, K)."""
        return self.tiles.image((self.slopes * weights[:, :, None]).sum(dim=1))


class Responses(Slopes):
    """A matrix J (K, d) per sample with logits(x + change) - logits(x) ~ J seen(change): recursive least squares.

    The posterior mean of Bayesian linear regression, all K rows of J with the prior covariance of `Tiles` and noise of
    variance `noise` x (mean squared change), which stands for curvature and for what the tiles cannot see. One update
    costs O(d^2 + K d) per sample and no solve.
    """

    def __init__(self, tiles: Tiles, samples: int, classes: int, noise: float) -> None:
        super().__init__(tiles, tiles.like.new_zeros(samples, classes, tiles.number))
        self.noise = noise
        self.doubt = tiles.prior.expand(samples, -1, -1).clone()

    def learn(self, change: Tensor, rise: Tensor, known: Tensor) -> None:
        """change (m, C, H, W) moved the logits by rise (m, K); rows where known (m,) is False teach nothing."""
        seen = self.tiles.seen(change)
        size = (change / self.tiles.eps).square().flatten(1).mean(dim=1)
        regress(self.slopes, self.doubt, seen, rise - product(self.slopes, seen), self.noise * size, known)

    def of(self, rows: Tensor) -> Slopes:
        """What is expected of these samples."""
        return Slopes(self.tiles, self.slopes[rows])

    def keep(self, rows: Tensor) -> None:
        """Forgets all samples but these."""
        self.slopes, self.doubt = self.slopes[rows], self.doubt[rows]


def patterns(number: int, bits: Tensor, shape: tuple[int, int]) -> Tensor:
    """(m, C, H, W) random signs: blocks of 2 x 2 pixels for even numbers, stripes 4 pixels wide for odd ones.

    bits (m, C, R, R) bool, R at least half the longer side. The published images are 32 pixels wide; elsewhere blocks
    and stripes are those shares (1/16 and 1/8) of the image.
    """
    rows, columns = (16, 16) if number % 2 == 0 else (1, 8)
    signs = bits[:, :, : min(rows, shape[0]), : min(columns, shape[1])].to(torch.float32).mul(2).sub(1)
    return functional.interpolate(signs, size=shape, mode="nearest")


def full(problem: Problem, ids: Tensor, pattern: Tensor) -> Tensor:
    """(m, C, H, W) the clean images ids (m,) moved by all of eps along a pattern of signs, cut to ball and box."""
    clean, ball = problem.clean[ids], problem.constraint
    return ball.project(clean + ball.eps * ball.steepest(pattern.to(clean.dtype)), clean, problem.box)


def mixed(chosen: Tensor, there: Tensor, here: Tensor) -> Tensor:
    """there (m, C, H, W) where chosen (m,), else here."""
    return torch.where(per_row(chosen, there).bool(), there, here)
