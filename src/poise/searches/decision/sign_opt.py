"""Sign-OPT, the last stage of RamBo: turns the direction in which the boundary is nearest (Cheng et al., ICLR 2020)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from poise.constraints.l2 import per_row, unit
from poise.errors import InputError
from poise.searches.base import Ask, Reply
from poise.searches.decision.decisions import Decided
from poise.searches.decision.hop_skip_jump import BLOCK
from poise.searches.decision.norms import Norm

TRIALS = 15
"""Step sizes that a line search tries, longer and then shorter."""

STILL = 1e-8
"""A sample ends when its smoothing falls below this."""


@dataclass(frozen=True, slots=True)
class SignOPT:
    """Turns the direction along which the boundary is nearest (RamBo's last stage).

    Cheng et al., "Sign-OPT: A Query-Efficient Hard-label Adversarial Attack", ICLR 2020, Alg. 1 and 2.

    With g(theta) the distance of the boundary from the clean image along theta, each iteration asks at g for `probes`
    random turns of theta by beta, one query each: the mean of +-u is the direction in which g rises. A line search then
    doubles alpha while g falls, or divides it by 4 until it does; g is found by binary search to beta / 500. Where
    alpha falls below 1e-4 it is set to 1 and beta divided by 10, and a sample ends when beta falls below 1e-8.

    Args:
        probes: k; 200.
        alpha: first step size; 0.2.
        beta: smoothing; 0.001.

    Deviations from the released code: a direction that is not wrong at the distance found so far is dropped after that
    one query instead of being measured, brackets begin at the last wrong point, points are clipped to the box, and
    binary searches end where the images' floating-point type tells no two points apart.

    >>> from poise.searches import RamBo
    >>> RamBo(signs=SignOPT(probes=20)).signs.alpha
    0.2
    """

    probes: int = 200
    alpha: float = 0.2
    beta: float = 1e-3

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise InputError(f"SignOPT: probes must be at least 1, got {self.probes}")
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            if not 0 < value < float("inf"):
                raise InputError(f"SignOPT: {name} must be a positive number, got {value}")

    def descend(self, norm: Norm, ids: Tensor, x: Tensor) -> Decided:
        """From wrong points x (m, C, H, W) of samples ids (m,) to the end of the budget; returns the nearest ones."""
        decisions, x = norm.decisions, x.clone()
        theta, g = unit(x - norm.problem.clean[ids]), norm.distance(x, ids)
        alpha, beta = torch.full_like(g, self.alpha), torch.full_like(g, self.beta)
        for step in count():
            rows = (decisions.active[ids] & (beta >= STILL) & (g > 0)).nonzero()[:, 0]
            if not len(rows):
                return x
            slope = yield from self._slope(norm, ids[rows], theta[rows], g[rows], beta[rows], step)
            found = _Line(x[rows], theta[rows], g[rows], alpha[rows])
            yield from _search(norm, ids[rows], found, slope, beta[rows] / 500)
            x[rows], theta[rows], g[rows], alpha[rows] = found.x, found.theta, found.g, found.alpha
            still = alpha < 1e-4
            alpha, beta = alpha.masked_fill(still, 1.0), torch.where(still, beta / 10, beta)
        raise AssertionError("count() does not end")

    def _slope(self, norm: Norm, ids: Tensor, theta: Tensor, g: Tensor, beta: Tensor, step: int) -> Decided:
        """(m, C, H, W) the direction in which g rises: the mean of the turns u, those that come nearer turned round."""
        decisions, problem = norm.decisions, norm.problem
        total, most = torch.zeros_like(theta), max(BLOCK // norm.d, 1)
        for block, first in enumerate(range(0, self.probes, most)):
            rows = decisions.active[ids].nonzero()[:, 0]
            if not len(rows):
                break
            size = min(most, self.probes - first)
            turns = norm.directions("sign-probes", step * self.probes + block, ids[rows], size)
            turned = theta[rows, None] + per_row(beta[rows], theta)[:, None] * turns
            directions = unit(turned.flatten(0, 1)).view_as(turned)
            clean = problem.clean[ids[rows], None]
            points = problem.box.project(clean + per_row(g[rows], theta)[:, None] * directions)
            sign = 1 - 2 * (yield from decisions.probe(points, ids[rows])).to(theta.dtype)
            total[rows] += (sign.view(*sign.shape, 1, 1, 1) * turns).sum(dim=1)
        return total / self.probes


@dataclass
class _Line:
    """The best so far of m line searches: wrong points, unit directions, distances along them; and step sizes."""

    x: Tensor
    theta: Tensor
    g: Tensor
    alpha: Tensor


def _search(norm: Norm, ids: Tensor, best: _Line, slope: Tensor, width: Tensor) -> Generator[Ask, Reply, None]:
    """Longer and longer steps against the slope while the distance falls; where none did, shorter ones."""
    decisions, theta, before = norm.decisions, best.theta.clone(), best.g.clone()
    for factor, first in ((2.0, True), (0.25, False)):
        pending = torch.ones_like(ids, dtype=torch.bool) if first else best.g >= before
        for _ in range(TRIALS):
            rows = (pending & decisions.active[ids]).nonzero()[:, 0]
            if not len(rows):
                break
            if not first:
                best.alpha[rows] *= factor
            turned = unit(theta[rows] - per_row(best.alpha[rows], theta) * slope[rows])
            x, g = yield from _measure(norm, ids[rows], turned, best.g[rows], width[rows])
            better = g < best.g[rows]
            wide = better.view(-1, 1, 1, 1)
            best.x[rows] = torch.where(wide, x, best.x[rows])
            best.theta[rows] = torch.where(wide, turned, best.theta[rows])
            best.g[rows] = torch.where(better, g, best.g[rows])
            pending[rows] = better if first else ~better
            if first:
                best.alpha[rows] *= factor


def _measure(
    norm: Norm, ids: Tensor, theta: Tensor, g: Tensor, width: Tensor
) -> Generator[Ask, Reply, tuple[Tensor, Tensor]]:
    """Wrong points (m, C, H, W) along theta and their distances (m,); g where there is none nearer than g."""
    decisions, problem = norm.decisions, norm.problem

    def along(rows: Tensor, t: Tensor) -> Tensor:
        return problem.box.project(problem.clean[ids[rows]] + per_row(t, theta) * theta[rows])

    x = along(torch.arange(len(ids), device=ids.device), g)
    falling = yield from decisions.ask(x, ids)
    high, low = g.clone(), torch.where(falling, 0.99 * g, g)
    while True:
        rows = (falling & decisions.active[ids]).nonzero()[:, 0]
        if not len(rows):
            break
        points = along(rows, low[rows])
        wrong = yield from decisions.ask(points, ids[rows])
        x[rows] = torch.where(wrong.view(-1, 1, 1, 1), points, x[rows])
        high[rows] = torch.where(wrong, low[rows], high[rows])
        low[rows] = torch.where(wrong, 0.99 * low[rows], low[rows])
        falling[rows] = wrong
    least = torch.finfo(theta.dtype).eps * g
    return (yield from decisions.halve(along, ids, x, high, low, torch.maximum(width, least)))
