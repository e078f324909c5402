"""NES and SPSA: the mean of finite differences along random directions, each asked in both senses."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from poise.constraints.l2 import per_row
from poise.errors import InputError
from poise.rng import Rng
from poise.searches.base import Ask, Problem, Reply, Steps
from poise.searches.estimates import Estimating, check_positive, differences, follow

AT_ONCE = 256
"""Probes in one ask, at least two per point: bounds the memory, and changes no result."""

Draw = Callable[[Rng, int, Tensor, tuple[int, ...]], Tensor]
"""(rng, step, ids (m,), shape) -> (m, *shape)."""


@dataclass(frozen=True, slots=True)
class NES(Estimating):
    """g = sum of [L(x + s u) - L(x - s u)] / (2 s) * u over q directions u ~ N(0, I / d) (Ilyas et al., ICML 2018).

    As a search: x <- Pi(x - step * steepest(g)), to the end of the budget, with 2 q + 1 queries per step: the probes,
    and the new point, which alone can become the result. The papers' codes look at the new point without booking it.
    As a source, `PGD(source=NES())`: every gradient that the search asks for costs 2 q queries more than its point;
    `step` and `undo` are then the search's own.

    Args:
        pairs: q, directions per estimate; 20.
        probe: s, length of a probe, as u has length 1 on average; 0.01 in pixel units. In a 32 x 32 image that is about
            a twentieth of a grey level per pixel: lost where the input is rounded, by the target or by `EightBit`.
        step: step length in the units of eps; 2/255. None stands for eps.
        undo: stay where a step's result is not accepted, and draw anew.

    Published settings for linf: the defaults are the AAA paper's for CIFAR-10 (its Table 11, which gives them in
    [0, 255]); `NES(pairs=100, probe=0.1, step=0.02)` are those for ImageNet, as in SignHunter's code;
    `NES(pairs=50, probe=0.1, step=0.01)` are those of the released code of Bandits.

    Deviations: g is multiplied by d / q, so that it estimates the gradient itself and not a multiple; no step depends
    on it. Probes are moved into the box, as an endpoint requires; at pixels on its edge g is about half as large, with
    the sign it should have. Pairs beyond the budget do not count.

    Raises:
        InputError: for pairs below 1, and for lengths that are not positive.

    >>> import poise
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> target = poise.ModuleTarget(model, num_classes=3)
    >>> goal, ball = poise.objectives.Margin(stop=False), poise.constraints.Linf(0.1)
    >>> images, labels = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    >>> poise.attack(target, goal, NES(pairs=5), ball, images, labels, budget=34).table["queries"].to_list()
    [34, 34]
    """

    pairs: int = 20
    probe: float = 0.01
    step: float | None = 2 / 255
    undo: bool = True

    def __post_init__(self) -> None:
        _check(self)

    def estimator(self, problem: Problem) -> Antithetic:
        length = math.sqrt(math.prod(problem.clean.shape[1:]))
        return Antithetic(problem, self.pairs, self.probe / max(length, 1.0), _gaussian)

    def run(self, problem: Problem) -> Steps:
        return follow(problem, self.estimator(problem), self.step, undo=self.undo)


@dataclass(frozen=True, slots=True)
class SPSA(Estimating):
    """g = mean of [L(x + s v) - L(x - s v)] / (2 s) * v over q directions v of signs (Spall 1992; Uesato et al. 2018).

    As a search and as a source it is used, counted and limited as `NES`, from which it differs in the directions: every
    pixel of a probe moves by s.

    Args:
        pairs: q, directions per estimate; 64, the 128 answers per step of CleverHans. Uesato et al. use up to 8192.
        probe: s, by how much a probe moves each pixel; 0.01 (Uesato et al., and CleverHans).
        step: step length in the units of eps; 0.01 (the same). None stands for eps.
        undo: stay where a step's result is not accepted, and draw anew.

    Deviation: both follow g with Adam; here it is the steepest step of the ball, which is Adam's first step for linf.

    Raises:
        InputError: for pairs below 1, and for lengths that are not positive.

    >>> import poise
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> target = poise.ModuleTarget(model, num_classes=3)
    >>> goal, ball = poise.objectives.CrossEntropy(), poise.constraints.Linf(0.1)
    >>> images, labels = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    >>> search = poise.searches.PGD(steps=3, source=SPSA(pairs=4))
    >>> poise.attack(target, goal, search, ball, images, labels).table["queries"].to_list()
    [28, 28]
    """

    pairs: int = 64
    probe: float = 0.01
    step: float | None = 0.01
    undo: bool = True

    def __post_init__(self) -> None:
        _check(self)

    def estimator(self, problem: Problem) -> Antithetic:
        return Antithetic(problem, self.pairs, self.probe, _signs)

    def run(self, problem: Problem) -> Steps:
        return follow(problem, self.estimator(problem), self.step, undo=self.undo)


class Antithetic:
    """The mean of [L(x + s u) - L(x - s u)] / (2 s) * u over directions u with E[u u^T] = I.

    Args:
        problem: what is searched.
        pairs: most directions per estimate.
        probe: s.
        draw: (rng, step, ids (m,), shape) -> (m, *shape), directions.
    """

    def __init__(self, problem: Problem, pairs: int, probe: float, draw: Draw) -> None:
        self.problem, self.pairs, self.probe, self.draw = problem, pairs, probe, draw

    def slope(self, ask: Ask, step: int, pairs: int) -> Generator[Ask, Reply, tuple[Tensor, Tensor]]:
        """d loss / d x at the points of `ask`, (m, C, H, W); and who is active."""
        total, known = torch.zeros_like(ask.x), torch.zeros_like(ask.ids)
        at_once = max(AT_ONCE // (2 * len(ask.ids)), 1)
        for first in range(0, pairs, at_once):
            group = range(first, min(first + at_once, pairs))
            directions = [self._direction(ask, step * self.pairs + pair) for pair in group]
            probes = ask.x.new_empty(len(ask.ids), len(group), 2, *ask.x.shape[1:])
            for i, u in enumerate(directions):
                change = self.probe * u
                torch.add(ask.x, change, out=probes[:, i, 0])
                torch.sub(ask.x, change, out=probes[:, i, 1])
            difference, covered, active = yield from differences(ask, probes, self.problem)
            for i, u in enumerate(directions):  # one by one: a row's sum does not depend on the other rows
                total += per_row(difference[:, i], total) * u
            known = known + covered
        return total / per_row(2 * self.probe * known.clamp_min(1), total), active

    def _direction(self, ask: Ask, number: int) -> Tensor:
        return self.draw(self.problem.rng, number, ask.ids, tuple(ask.x.shape[1:])).to(ask.x.dtype)


def _gaussian(rng: Rng, step: int, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
    return rng.normal("nes", step, ids, shape)


def _signs(rng: Rng, step: int, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
    return rng.signs("spsa", step, ids, shape).float().mul_(2).sub_(1)


def _check(search: NES | SPSA) -> None:
    name = type(search).__name__
    if search.pairs < 1:
        raise InputError(f"{name}: pairs must be at least 1, got {search.pairs}")
    check_positive(name, probe=search.probe, step=search.step)
