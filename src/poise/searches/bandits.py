"""Bandits-TD: gradient estimates that remember earlier ones, on tiles (Ilyas, Engstrom & Madry, ICLR 2019)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from poise.constraints.l2 import L2, per_row, unit
from poise.constraints.linf import Linf
from poise.errors import InputError
from poise.searches.base import Ask, Problem, Reply, Steps
from poise.searches.estimates import Estimating, check_positive, differences, follow


@dataclass(frozen=True, slots=True)
class Rates:
    """How a prior learns and how far an image moves; lengths in pixel units.

    Args:
        probe: length of a probe's step in the image, Euclidean.
        share: step length of the image as a share of eps.
        tau: learning rate of the prior.
        zeta: length of the noise that is added to the prior.
        prior: (m, C, h, w) -> the same: the prior of what has been added up.
    """

    probe: float
    share: float
    tau: float
    zeta: float
    prior: Callable[[Tensor], Tensor]


RATES = {
    Linf: Rates(probe=0.1, share=0.01 / 0.05, tau=0.01, zeta=1.0, prior=torch.tanh),
    L2: Rates(probe=0.01, share=0.5 / 5.0, tau=0.1 * 0.01, zeta=0.01, prior=torch.clone),
}
"""By the ball: the values of the released code (but for tau in the linf ball), and how updates become a prior."""


@dataclass(frozen=True, slots=True)
class Bandits(Estimating):
    """A prior v on tiles learns from two probes per step; the image follows it (Ilyas et al., ICLR 2019, Alg. 1 to 3).

    q+- = up(v +- zeta u), scaled to length 1, with u ~ N(0, I / dim v); e = [L(x + s q+) - L(x + s q-)] / (s zeta).
    v learns e u: in the linf ball by exponentiated gradient, which keeps v in [-1, 1], in the l2 ball by v + tau e u.
    x <- Pi(x - step * steepest(up(v))).

    As a search it goes on to the end of the budget with 3 queries per step: two probes, and the new point, which alone
    can become the result; the released code books two. As a source, `PGD(source=Bandits())`, it learns once from every
    gradient that is asked for; `step` and `undo` are then the search's own.

    Args:
        tile: rows and columns of the prior, spread over the image by nearest neighbour; a tile larger than the image is
            sampled. None is 50, and no more than the image has: images up to 50 x 50 have no tiles.
        probe: s, Euclidean length of a probe; None is 0.1 for linf, 0.01 for l2.
        step: step length in the units of eps; None is eps / 5 for linf, eps / 10 for l2.
        tau: learning rate of the prior; None is 0.01 for linf, 0.001 for l2.
        zeta: length of the noise; None is 1 for linf, 0.01 for l2.
        undo: stay where a step's result is not accepted; the prior learns on.

    None stands for the released code's values (its steps are 0.01 at eps 0.05, and 0.5 at eps 5), but for tau in the
    linf ball: the released 100 was made for cross-entropy on ImageNet. Updates grow with the slope of the loss; under
    the margin of a CIFAR-10 network 100 drives about half of the prior to 1 or -1 in the first step. 0.01 is the AAA
    paper's. `official_linf`, `official_l2`, `aaa` and `signhunter` are published settings in full. The
    released code multiplies u by zeta once more in the update; here that is part of tau, so its 0.1 for l2 is 0.001.

    The exponentiated gradient, (1 + v) exp(tau g) against (1 - v) exp(-tau g), adds tau g to atanh(v): that sum is what
    is kept, so that no exponential overflows and a v that rounds to 1 can return.

    Deviations: the step follows the objective's loss, the released code cross-entropy. Probes are moved into the box.

    Raises:
        InputError: for a tile below 1, for lengths and rates that are not positive, and for a ball without rates.

    >>> import poise
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> target = poise.ModuleTarget(model, num_classes=3)
    >>> goal, ball = poise.objectives.Margin(stop=False), poise.constraints.Linf(0.1)
    >>> images, labels = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
    >>> poise.attack(target, goal, Bandits(), ball, images, labels, budget=31).table["queries"].to_list()
    [31, 31]
    """

    tile: int | None = None
    probe: float | None = None
    step: float | None = None
    tau: float | None = None
    zeta: float | None = None
    undo: bool = True

    def __post_init__(self) -> None:
        if self.tile is not None and self.tile < 1:
            raise InputError(f"Bandits: tile must be at least 1, got {self.tile}")
        check_positive("Bandits", probe=self.probe, step=self.step, tau=self.tau, zeta=self.zeta)

    @classmethod
    def official_linf(cls) -> Self:
        """The released code's ImageNet setting for linf, at eps 0.05."""
        return cls(tile=50, probe=0.1, step=0.01, tau=100.0, zeta=1.0)

    @classmethod
    def official_l2(cls) -> Self:
        """The released code's ImageNet setting for l2, at eps 5."""
        return cls(tile=50, probe=0.01, step=0.5, tau=0.1 * 0.01, zeta=0.01)

    @classmethod
    def aaa(cls) -> Self:
        """The AAA paper's, for linf: a prior that hardly learns (tau 0.01) and a tile larger than a CIFAR image."""
        return cls(tile=50, probe=0.1, step=0.01, tau=0.01, zeta=1.0)

    @classmethod
    def signhunter(cls) -> Self:
        """The one for CIFAR-10 and linf in SignHunter's code."""
        return cls(tile=20, probe=2.55 / 255, step=5 / 255, tau=1e-4 * 0.1, zeta=0.1)

    def estimator(self, problem: Problem) -> Prior:
        height, width = problem.clean.shape[2:]
        tile = (min(50, height), min(50, width)) if self.tile is None else (self.tile, self.tile)
        return Prior(problem, self._rates(problem), tile)

    def run(self, problem: Problem) -> Steps:
        step = self._rates(problem).share * problem.constraint.eps if self.step is None else self.step
        return follow(problem, self.estimator(problem), step, undo=self.undo)

    def _rates(self, problem: Problem) -> Rates:
        """The ball's, but for what is given."""
        ball = problem.constraint
        usual = next((rates for kind, rates in RATES.items() if isinstance(ball, kind)), None)
        if usual is None:
            raise InputError(f"Bandits: the constraint must be Linf or L2, got {ball!r}")
        given = {name: getattr(self, name) for name in ("probe", "tau", "zeta") if getattr(self, name) is not None}
        return dataclasses.replace(usual, **given)


class Prior:
    """What is known of every sample's gradient.

    Attributes:
        sums: (n, C, h, w), all updates added up.
    """

    def __init__(self, problem: Problem, rates: Rates, tile: tuple[int, int]) -> None:
        clean = problem.clean
        self.pairs, self.problem, self.rates = 1, problem, rates
        self.sums = clean.new_zeros(*clean.shape[:2], *tile)
        self.rows = torch.arange(clean.shape[2], device=clean.device) * tile[0] // clean.shape[2]
        self.columns = torch.arange(clean.shape[3], device=clean.device) * tile[1] // clean.shape[3]

    def spread(self, v: Tensor) -> Tensor:
        """v (m, C, h, w) at the size of the image, by nearest neighbour."""
        if v.shape[2:] == self.problem.clean.shape[2:]:
            return v
        return v[:, :, self.rows][:, :, :, self.columns]

    def slope(self, ask: Ask, step: int, pairs: int) -> Generator[Ask, Reply, tuple[Tensor, Tensor]]:
        """Lets the prior learn at the points of `ask`; what it then says, (m, C, H, W), and who is active."""
        problem, rates, ids = self.problem, self.rates, ask.ids
        shape, v = tuple(self.sums.shape[1:]), rates.prior(self.sums[ids])
        u = problem.rng.normal("bandits", step, ids, shape).to(v.dtype) / math.sqrt(max(math.prod(shape), 1))
        probes = [ask.x + rates.probe * unit(self.spread(v + sign * rates.zeta * u)) for sign in (1, -1)]
        difference, _, active = yield from differences(ask, torch.stack(probes, dim=1)[:, None], problem)
        learnt = per_row(difference[:, 0] / (rates.probe * rates.zeta), u) * u
        self.sums.index_add_(0, ids, rates.tau * learnt)
        return self.spread(rates.prior(self.sums[ids])), active
