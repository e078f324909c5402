"""Gratings: fine stripes lose nearly any label, and half way back lies a tie: a confidence of 1/2 in ten queries."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import count
from typing import ClassVar

import torch
from torch import Tensor

from poise.constraints.l2 import per_row
from poise.errors import InputError
from poise.objectives.base import logit_margin
from poise.searches.base import Ask, Problem, Reply, Steps, marked
from poise.searches.responses import full, mixed
from poise.types import Access

WAVES = ((0.5, 0.0), (0.25, 0.25), (0.25, -0.25), (0.25, 0.0), (0.0, 0.25))
"""Cycles per pixel across and down: columns in turn, then slanting and straight stripes two pixels wide."""

SHORTEST = 0.05
"""A step on the way back leaves at least this share of what is left on either side."""


@dataclass(frozen=True, slots=True)
class Gratings:
    """The first queries on a confidence that is to fall (this library; no paper). Nothing is drawn at random.

    A lost label is easy to get, and with the clean image it brackets what is sought: on the way between them lies a tie
    of two classes, at a confidence of about one half.

    1. Full gratings on the ball's surface, the same signs in all channels, until one loses the label. Networks that
       were trained in the usual way lose nearly every label to the finest one, those trained against attacks lose some
       to wider ones.
    2. From there back towards the clean image: false position on the logit margin, with a bisection every third time,
       until the label is kept by at most `close` logits, or `halvings` queries are spent.

    It ends there, and at once for samples whose confidence is to rise. It is made to come first in a `Cascade`, before
    a search that begins at the best point.

    Args:
        waves: cycles per pixel across and down of each grating.
        halvings: queries on the way back, at most.
        close: logits by which the label is kept at the end.

    Raises:
        InputError: no waves or one that is not finite, fewer than one halving, a negative or infinite `close`.

    >>> import poise
    >>> target, data = poise.models.load("builtin:digits"), poise.data.load("builtin:digits", samples=8)
    >>> goal, ball = poise.objectives.KeepLabel(poise.objectives.MinConfidence()), poise.constraints.Linf(0.2)
    >>> result = poise.attack(target, goal, Gratings(), ball, data.images, data.labels, budget=14)
    >>> bool((result.table["confidence_after"] < 0.6).any())
    True
    """

    access: ClassVar[Access] = Access.SCORES
    waves: tuple[tuple[float, float], ...] = WAVES
    halvings: int = 8
    close: float = 0.1

    def __post_init__(self) -> None:
        if not self.waves or not all(len(wave) == 2 and all(map(math.isfinite, wave)) for wave in self.waves):
            raise InputError(
                f"Gratings: waves must be pairs of finite cycles per pixel, at least one, got {self.waves}"
            )
        if self.halvings < 1:
            raise InputError(f"Gratings: halvings must be at least 1, got {self.halvings}")
        if not 0 <= self.close < math.inf:
            raise InputError(f"Gratings: close must be a finite number of at least 0, got {self.close}")

    def run(self, problem: Problem) -> Steps:
        reply = yield Ask(problem.clean, problem.everyone)
        label = None if reply.outputs is None else reply.outputs.labels
        ids = (reply.active & ~problem.over).nonzero()[:, 0]
        way = Way.unlost(problem.clean[ids], margin(reply, label, problem.everyone)[ids])
        for i in count():
            if not len(ids):
                return
            clean, share = problem.clean[ids], way.share(self.close / 2)
            candidate = problem.constraint.project(way.point(clean, share), clean, problem.box)
            if i < len(self.waves):
                candidate = mixed(way.lost, candidate, full(problem, ids, grating(self.waves[i], clean)))
            reply = yield Ask(candidate, ids)
            way = way.told(candidate, share, margin(reply, label, ids))
            staying = reply.active[ids] & ~way.ended(self.close, self.halvings)
            if i + 1 >= len(self.waves):
                staying &= way.lost
            if not bool(staying.all()):
                ids, way = ids[staying], way.of(staying)


def grating(wave: tuple[float, float], like: Tensor) -> Tensor:
    """(m, C, H, W) signs, the same in all channels: stripes of `wave` cycles per pixel across and down.

    >>> grating((0.5, 0.0), torch.zeros(1, 1, 1, 4)), grating((0.25, 0.0), torch.zeros(1, 1, 1, 4))
    (tensor([[[[ 1., -1.,  1., -1.]]]]), tensor([[[[ 1., -1., -1.,  1.]]]]))
    """
    down, across = (
        torch.arange(size, dtype=torch.float64) * cycles
        for size, cycles in zip(like.shape[2:], (wave[1], wave[0]), strict=True)
    )
    turns = (across + down[:, None] + 1 / 8).remainder(1)  # an eighth of a turn: no pixel lies where the sign changes
    return torch.where((turns < 0.25) | (turns > 0.75), 1.0, -1.0).to(like).expand_as(like)


def margin(reply: Reply, label: Tensor | None, ids: Tensor) -> Tensor:
    """(m,) by how many logits each answer keeps the label (n,) of its sample, negative where it lost it.

    Where no answers are handed on, 1 and -1: the way back is halved then.
    """
    if reply.outputs is None or label is None:
        return torch.where(reply.accept, 1.0, -1.0).to(reply.loss)
    return reply.outputs.once(logit_margin, label, ids)


@dataclass(frozen=True)
class Way:
    """Between m clean images (share 0) and the points at which they lost their label (share 1) lies the boundary.

    Args:
        far: (m, C, H, W) where the label was lost.
        lost: (m,) bool, such a point is known.
        low, high: (m,) shares between which the boundary lies.
        inner, outer: (m,) logit margins there, of the label: at least 0, below 0.
        asked: (m,) queries on the way.
    """

    far: Tensor
    lost: Tensor
    low: Tensor
    high: Tensor
    inner: Tensor
    outer: Tensor
    asked: Tensor

    @classmethod
    def unlost(cls, clean: Tensor, margins: Tensor) -> Way:
        """No label of clean (m, C, H, W), kept by margins (m,), is lost yet."""
        none = torch.zeros_like(margins)
        return cls(clean, none.bool(), none, none + 1, margins, none, none.long())

    def ended(self, close: float, most: int) -> Tensor:
        """(m,) bool: the label is kept by at most `close` logits, or `most` queries are spent on the way."""
        return self.lost & ((self.inner <= close) | (self.asked >= most))

    def share(self, left: float) -> Tensor:
        """(m,) where a margin of `left` is expected; every third time the middle of what is left of the way."""
        part = ((self.inner - left) / (self.inner - self.outer).clamp_min(1e-12)).clamp(SHORTEST, 1 - SHORTEST)
        part = torch.where(self.asked % 3 == 2, 0.5, part)
        return self.low + part * (self.high - self.low)

    def point(self, clean: Tensor, share: Tensor) -> Tensor:
        """(m, C, H, W) the points at shares (m,) of the ways from clean (m, C, H, W)."""
        return clean + per_row(share, clean).to(clean.dtype) * (self.far - clean)

    def told(self, points: Tensor, share: Tensor, margins: Tensor) -> Way:
        """What is known once points (m, C, H, W) were answered with margins (m,).

        Those of samples with a lost label lie on the way, at share (m,); another may be what loses it.
        """
        taken = margins < 0
        first, back, out = taken & ~self.lost, self.lost & ~taken, self.lost & taken
        return Way(
            far=mixed(first, points, self.far),
            lost=self.lost | first,
            low=torch.where(back, share, self.low),
            high=torch.where(out, share, self.high),
            inner=torch.where(back, margins, self.inner),
            outer=torch.where(taken, margins, self.outer),
            asked=self.asked + self.lost,
        )

    def of(self, rows: Tensor) -> Way:
        """That of the samples marked in a mask."""
        return Way(*marked(rows, *(getattr(self, field.name) for field in fields(self))))
