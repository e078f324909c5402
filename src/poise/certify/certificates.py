"""Certificates: what is proved about the smoothed confidence of each image, whatever an attacker does in an l2 ball."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from poise.certify.bounds import cdf_lower, cdf_upper, naive_lower, naive_upper
from poise.certify.scores import Floats, Scores
from poise.certify.stream import OnDraws, Smoothing, Stream
from poise.targets.base import Target

GROUP = 16
"""Images whose counts are in memory together."""


@dataclass(frozen=True, eq=False)
class Certificate:
    """Bounds on the smoothed score of one image's class.

    Args:
        id: the caller's name of the image.
        prediction: the class that is certified: the one with the highest mean probability in the first n0 draws.
        mean: empirical mean of the n scores.
        scores: what was drawn.
        smoothing: how it was drawn.

    With a probability of 1 - alpha over the draws, for all radii at once, `lower` and `upper` enclose what the smoothed
    score of `prediction` can be at any point within the radius. Each image has its own alpha: of many certificates a
    share of alpha may fail.

    >>> import torch, poise
    >>> from poise.certify import Smoothing, certify
    >>> target, data = poise.models.load("builtin:digits"), poise.data.load("builtin:digits", samples=1)
    >>> (found,) = certify(target, data.images, smoothing=Smoothing(sigma=0.25, n=500))
    >>> bool(found.lower(0.25) <= found.mean <= found.upper(0.25)), found.abstains
    (True, False)
    """

    id: int
    prediction: int
    mean: float
    scores: Scores
    smoothing: Smoothing

    def lower(self, radius: ArrayLike) -> Floats:
        """(r,) the smoothed score is at least this within each radius, in pixel units (CDF method)."""
        return cdf_lower(self.scores, radius, sigma=self.smoothing.sigma, epsilon=self.smoothing.epsilon)

    def upper(self, radius: ArrayLike) -> Floats:
        """(r,) it is at most this."""
        return cdf_upper(self.scores, radius, sigma=self.smoothing.sigma, epsilon=self.smoothing.epsilon)

    def naive_lower(self, radius: ArrayLike) -> Floats:
        """(r,) the bound from the mean alone."""
        return naive_lower(self.scores, radius, sigma=self.smoothing.sigma, epsilon=self.smoothing.epsilon)

    def naive_upper(self, radius: ArrayLike) -> Floats:
        """(r,) the bound from the mean alone."""
        return naive_upper(self.scores, radius, sigma=self.smoothing.sigma, epsilon=self.smoothing.epsilon)

    @property
    def abstains(self) -> bool:
        """The draws do not show that `prediction` is the smoothed prediction: lower bound at radius 0 below 1/2 for
        pred_score, below 0 for the margin, as in the released code."""
        return bool(self.lower(0.0) < self.smoothing.measure.certified_above)

    def certified(self, radius: ArrayLike) -> NDArray[np.bool_]:
        """(r,) bool: the smoothed prediction is `prediction` at every point within the radius."""
        return np.asarray(self.lower(radius) > self.smoothing.measure.certified_above)


def certify(
    target: Target,
    images: Tensor,
    ids: Tensor | None = None,
    smoothing: Smoothing | None = None,
    *,
    on_draws: OnDraws | None = None,
) -> list[Certificate]:
    """One certificate per image: Kumar et al., NeurIPS 2020, "Certifying Confidence via Randomized Smoothing".

    Asks the target n0 + n times per image. For runs that can be interrupted see `Stream` and `poise certify`.

    Args:
        target: answers with scores.
        images: (N, C, H, W) in the target's bounds, N >= 1.
        ids: (N,) int64 names that the noise is keyed by; 0..N-1 where None.
        smoothing: sigma, n, n0, alpha, measure, seed; the paper's where None.
        on_draws: called with the number of draws done and of all.

    Raises:
        InputError, AccessError: as `Stream`.

    >>> import poise
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> target = poise.ModuleTarget(model, num_classes=3)
    >>> (found,) = certify(target, torch.rand(1, 1, 2, 2), smoothing=Smoothing(n=1000))
    >>> bool(found.lower(0.25) <= found.lower(0.0) <= found.mean <= found.upper(0.0) <= found.upper(0.25))
    True
    """
    smoothing = smoothing or Smoothing()
    names = torch.arange(len(images)) if ids is None else ids
    found: list[Certificate] = []
    each = smoothing.n0 + smoothing.n
    for start in range(0, len(images), GROUP):
        part = slice(start, start + GROUP)
        stream = Stream(target, images[part], names[part], smoothing)
        stream.run(_shifted(on_draws, start * each, len(images) * each))
        found += certificates(stream, names[part].tolist(), smoothing)
    return found


def _shifted(on_draws: OnDraws | None, before: int, total: int) -> OnDraws | None:
    return None if on_draws is None else lambda done, _: on_draws(before + done, total)


def certificates(stream: Stream, ids: Sequence[int], smoothing: Smoothing) -> list[Certificate]:
    """What a complete stream says of each image of its group."""
    rows = zip(ids, stream.classes.tolist(), stream.means.tolist(), strict=True)
    return [Certificate(*row, stream.scores(place), smoothing) for place, row in enumerate(rows)]
