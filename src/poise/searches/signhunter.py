"""SignHunter: divide and conquer on the signs of the gradient (Al-Dujaili & O'Reilly, ICLR 2020)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from poise.errors import InputError
from poise.searches.base import Ask, Problem, Steps, running
from poise.types import Access


def chunks(d: int) -> Iterator[tuple[int, int]]:
    """First and last + 1 position of the chunks of one pass over d signs: all of them, the halves, ..., single ones.

    >>> list(chunks(3))
    [(0, 3), (0, 2), (2, 3), (0, 1), (1, 2), (2, 3)]
    """
    for level in range((d - 1).bit_length() + 1):
        length = -(-d // 2**level)
        yield from ((start, min(start + length, d)) for start in range(0, d, length))


@dataclass(frozen=True, slots=True)
class SignHunter:
    """Flips ever smaller chunks of a vector of signs s and keeps what does not raise the loss.

    Al-Dujaili & O'Reilly 2020, Algorithm 2. The point is x_o + eps * s for linf and x_o + eps * s / ||s|| for l2,
    projected into ball and box. A pass begins with s = +1 everywhere, whatever its loss, then flips the chunks of
    `chunks`, one query each; a tie keeps the flip. The first x_o is the clean image. After a pass over d values, at
    most 2^(ceil(log2 d) + 1) queries, x_o is the current point. On a linear loss one pass finds every sign; for linf
    that is FGSM's point.

    Args:
        order: how an image is laid out as a vector: "hwc" (as published: a chunk is a stripe of rows, all channels) or
            "chw" (channel by channel).

    Where a point would not do as a result (another label), nothing of it is kept. So where all-ones is not accepted,
    s begins at zero, which is x_o itself, and chunks still at zero are tried with one sign, then the other, level by
    level: -1 for the whole image, +1 for its halves, and so on. A sample then takes the largest chunks that keep its
    label, and every point it moves to would do. (Paths through other labels do not come back: the loss of an
    underconfidence goal goes on falling there.) Goals that accept every point never see a zero: that is the paper's.

    Deviations: the loss is the goal's, the paper's the cross-entropy; the released finite-difference step has no effect
    and does not exist here, nor does the clean image's second query.

    >>> import poise
    >>> target = poise.ModuleTarget(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)), num_classes=3)
    >>> goal, ball = poise.objectives.Margin(stop=False), poise.constraints.Linf(0.1)
    >>> result = poise.attack(target, goal, SignHunter(), ball, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), budget=10)
    >>> bool((result.table["loss_after"] < result.table["loss_before"]).all())
    True
    """

    access: ClassVar[Access] = Access.LABELS
    order: Literal["hwc", "chw"] = "hwc"

    def __post_init__(self) -> None:
        if self.order not in ("hwc", "chw"):
            raise InputError(f"SignHunter: order must be 'hwc' or 'chw', got '{self.order}'")

    def run(self, problem: Problem) -> Steps:
        clean, constraint = problem.clean, problem.constraint
        if not constraint.eps < float("inf"):
            raise InputError(f"SignHunter: the constraint must have a finite radius, got {constraint!r}")
        eps = constraint.eps * constraint.steepest(torch.ones_like(clean[:1]))  # of each value
        reply = yield Ask(clean, problem.everyone)
        ids = reply.active.nonzero()[:, 0]
        origin, loss, d = clean[ids], reply.loss[ids], clean[:1].numel()
        while len(ids):
            s = torch.zeros(len(ids), d, dtype=torch.int8, device=clean.device)
            other = torch.ones_like(s)  # what each sign is tried as next
            for step, (start, stop) in enumerate([(0, d), *chunks(d)]):
                if not len(ids):
                    return
                flipped = s.clone()
                flipped[:, start:stop] = other[:, start:stop]
                x = constraint.project(origin + eps * self._image(flipped, clean), clean[ids], problem.box)
                reply = yield Ask(x, ids)
                kept = reply.accept & (reply.loss.isfinite() if step == 0 else reply.loss <= loss)
                turned = kept[:, None] | (s[:, start:stop] == 0)
                s = torch.where(kept[:, None], flipped, s)
                other[:, start:stop] = torch.where(turned, -other[:, start:stop], other[:, start:stop])
                loss = torch.where(kept, reply.loss, loss)
                ids, origin, s, other, loss = running(reply.active, ids, origin, s, other, loss)
            origin = constraint.project(origin + eps * self._image(s, clean), clean[ids], problem.box)

    def _image(self, s: Tensor, clean: Tensor) -> Tensor:
        """(m, C, H, W) signs s (m, d) laid out as images."""
        channels, height, width = clean.shape[1:]
        if self.order == "chw":
            return s.view(-1, channels, height, width)
        return s.view(-1, height, width, channels).permute(0, 3, 1, 2).contiguous()
