"""AAA's equation solved exactly: the margin and confidence of least objective, and logits that have both."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from poise.defenses.base import keep_top, wide

LEAST_MARGIN = 1e-3
"""No target below this: a margin of 0 is a tie."""

_LEAST_TAIL = 1e-9  # weight of the other classes where none is wanted: p falls short of its limit by 3e-10 at most
_FARTHEST = 1e12  # larger gaps are cut: such a class has no weight at any temperature in use
_OUT = 1e30  # stands for the gap of the top two: no weight, even times the smallest stretch
_LEAST_STRETCH = 1e-24
_NEWTON_STEPS = 4  # in float32; one in the type of the logits follows, and what is left is made up by a shift
_TINY = 1e-37


class Rows(NamedTuple):
    """What AAA needs to know of n rows of K logits. One number per row is float64, K numbers are of the logits' type,
    at least float32: the pair is exact, and the weights are as exact as the logits they come from."""

    top: Tensor  # (n, 1) int64 a, the lowest index among the highest logits
    second: Tensor  # (n, 1) int64 b, a highest among the others
    high: Tensor  # (n, 1) z_a
    margin: Tensor  # (n, 1) m = z_a - z_b
    gaps: Tensor  # (n, K) d_j = z_b - z_j of the other K - 2 classes; a number without weight for a and b
    total: Tensor  # (n, 1) sum of d_j over those K - 2


def read(logits: Tensor) -> Rows:
    """The rows of logits (n, K) of any floating type."""
    top = logits.argmax(dim=1, keepdim=True)
    second = logits.detach().scatter(1, top, -torch.inf).argmax(dim=1, keepdim=True)
    z = logits if logits.dtype == torch.float64 else logits.float()
    high, low = z.gather(1, top), z.gather(1, second)
    gaps = (low - z).clamp_(0.0, _FARTHEST)
    margin = (wide(high) - wide(low)).clamp_max(_FARTHEST)
    total = wide(gaps.sum(dim=1, keepdim=True))
    return Rows(top, second, wide(high), margin, gaps.scatter_(1, torch.cat([top, second], dim=1), _OUT), total)


def doubt(rows: Rows, inverse: Tensor | float) -> Tensor:
    """(n, 1) ln(1/p* - 1) for p* = max softmax(z / T), from inverse = 1/T; exact where p* rounds to 1."""
    return torch.log1p(wide((-inverse * rows.gaps).exp_().sum(dim=1, keepdim=True))) - inverse * rows.margin


def nearest_pair(target: Tensor, doubt: Tensor, *, classes: int, beta: float) -> tuple[Tensor, Tensor]:
    """The margin m and tail v that minimise |m - target| + beta |p - p*| over all logits with m >= 0.001.

    With the top logit at 0, 1/p = 1 + exp(-m) (1 + rho), where rho in (0, K - 2] is the weight of the other classes
    relative to the runner-up's. In v = ln(1 + rho) in (0, ln(K - 1)] the confidence is p = sigmoid(m - v), so a margin
    allows p from sigmoid(m - ln(K - 1)) to sigmoid(m). If the target allows p*, that is the minimum. If not, p is at
    the edge, whose slope p (1 - p) is worth a step of the margin where beta p (1 - p) > 1.

    Args:
        target: any shape, wanted margin.
        doubt: same shape, -logit(p*).
        classes: K.
        beta: weight of the confidence.

    Returns:
        m and v, same shape; v at least 1e-9 (0 for K = 2), because a weight of 0 needs logits of minus infinity.
    """
    goal, wish, most = target.clamp_min(LEAST_MARGIN), -doubt, math.log(classes - 1)
    margin = goal
    if beta > 4:
        edge = (1 + math.sqrt(1 - 4 / beta)) / 2
        bend = math.log(edge / (1 - edge))  # beta p (1 - p) = 1 at the margins -bend and bend
        raised = torch.maximum(goal, wish.clamp_max(bend))
        lowered = torch.minimum(goal, wish.clamp_min(-bend) + most).clamp_min(LEAST_MARGIN)
        gain = beta * ((goal - most).sigmoid() - (lowered - most).sigmoid())
        lower = (wish < goal - most) & (gain > goal - lowered)
        margin = torch.where(wish > goal, raised, torch.where(lower, lowered, goal))
    return margin, (margin + doubt).clamp(min(math.log1p(_LEAST_TAIL), most), most)


def rebuild(rows: Rows, logits: Tensor, margin: Tensor, tail: Tensor) -> Tensor:
    """Logits of the wanted margin and confidence, with the mean, the type and the label of logits (n, K).

    The others become z'_j = z'_b - s d_j - t: a shift t alone where their weight is to fall (s = 1), a stretch s alone
    where it is to rise (t = 0, sum exp(-s d_j) = rho).
    """
    change, count, largest = margin - rows.margin, logits.shape[1], torch.finfo(logits.dtype).max
    if count == 2:
        high, out = rows.high + change / 2, torch.zeros_like(rows.gaps)
    else:
        stretch, shift = _stretch_and_shift(rows.gaps, tail)
        high = rows.high + ((count - 1) * change + (stretch - 1) * rows.total + (count - 2) * shift) / count
        base = (high - margin - shift).clamp(-largest, largest)
        out = base.to(rows.gaps.dtype) - stretch.to(rows.gaps.dtype) * rows.gaps
    index, ends = torch.cat([rows.top, rows.second], dim=1), torch.cat([high, high - margin], dim=1)
    out = out.scatter_(1, index, ends.clamp(-largest, largest).to(out.dtype))
    return keep_top(logits, out.clamp_(-largest, largest).to(logits.dtype))


def _stretch_and_shift(gaps: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 1) s in (0, 1] and t >= 0 with sum exp(-s d_j) = rho exp(t), t = 0 where s < 1.

    ln sum exp(-s d_j) falls and is convex in s, so that a Newton step from anywhere ends left of the root, where t is
    not negative. It starts where the chord over [0, 1] meets the goal. The last step is seen by autograd: at the root
    this is the implicit function theorem. Rows whose gaps span many orders of magnitude may end short of the root; the
    shift then makes up the rest, so that margin and confidence are met all the same.
    """
    goal = tail.expm1().log()
    start, flat = goal.detach(), gaps.detach().float()
    full, least = math.log(gaps.shape[1] - 2), (-flat).exp_().sum(dim=1, keepdim=True).clamp_min(_TINY).log()
    s = ((full - start) / (full - least).clamp_min(_TINY)).float().clamp(_LEAST_STRETCH, 1.0)
    for _ in range(_NEWTON_STEPS):
        s = _newton(flat, s, start.float())
    s = _newton(gaps, s.to(gaps.dtype), goal.to(gaps.dtype))
    return wide(s), wide((-s * gaps).exp_().sum(dim=1, keepdim=True)).log() - goal


def _newton(gaps: Tensor, s: Tensor, goal: Tensor) -> Tensor:
    weight = (-s * gaps).exp_()
    total = weight.sum(dim=1, keepdim=True).clamp_min(_TINY)
    fall = (weight * gaps).sum(dim=1, keepdim=True) / total
    return (s + (total.log() - goal) / fall.clamp_min(_TINY)).clamp(_LEAST_STRETCH, 1.0)
