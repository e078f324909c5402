"""FAB: minimal changes by projections onto the linearised decision boundary (Croce & Hein, ICML 2020)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from poise.constraints.base import Box, Constraint
from poise.constraints.l2 import per_row
from poise.errors import InputError
from poise.searches.base import Ask, Problem, Reply, Steps
from poise.searches.gradient import Iterate, begin, check_steps, drop_finished
from poise.types import Access


@dataclass(frozen=True, slots=True)
class FAB:
    """Fast Adaptive Boundary attack (Croce & Hein, "Minimally distorted Adversarial Examples with a Fast Adaptive
    Boundary Attack", ICML 2020, Alg. 1), following the logit margin (`Margin()`), which is 0 on the boundary.

    With d(z) the shortest change that brings z onto the plane {x': L(x_t) + <g, x' - x_t> = 0} within the box, in the
    ball's norm, and alpha = min(|d(x_t)| / (|d(x_t)| + |d(x_0)|), alpha_max):
    x <- box((1 - alpha) * (x_t + eta * d(x_t)) + alpha * (x_0 + eta * d(x_0))) (Eq. 7 to 9); where L(x) < 0 the next
    step begins at x_0 + beta * (x - x_0). Where the plane misses the box, d goes to the box's nearest corner.
    Cost: one forward+backward pass per step, and a second one after a crossing; the reference code always makes two
    forward passes and one backward pass.

    Args:
        steps: number of projections T; 100.
        alpha_max: most weight of the clean image's projection, in [0, 1]; 0.1.
        eta: factor by which a projection is passed, at least 1; 1.05.
        beta: share of the change that is kept after a crossing, in (0, 1); 0.9.

    FAB seeks the smallest change and knows no eps: the ball gives its norm alone, and iterates leave it. Those outside
    are asked for as probes: charged, never a result. So a success is a crossing no farther than eps, as where
    AutoAttack cuts FAB at eps; the driver drops crossings farther away. With `Margin(stop=True)` a sample ends at its
    first such crossing. With `stop=False` its result is the one of lowest margin, not the smallest change, because
    results are ranked by the objective. Samples that are crossed from the start (L < 0) are left alone.

    Deviations: the untargeted paper linearises the boundary to every other class and takes the nearest, for K - 1
    backward passes; here the loss holds one class, the runner-up at x_t. FAB-T (AutoAttack) runs once for each of 9
    fixed target classes instead. No random restarts, no final line search. Where both projections have length 0, alpha
    is 0 (the code's guards make it alpha_max, which pulls towards x_0).

    The projections are exact for norms whose steepest direction has all coordinates move (linf, l2), not for l1.

    >>> import torch, poise
    >>> from poise.searches.fab import FAB
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> target = poise.ModuleTarget(model, num_classes=3)
    >>> images = torch.rand(2, 1, 2, 2)
    >>> labels = model(images).argmax(dim=1)
    >>> result = poise.attack(target, poise.objectives.Margin(), FAB(), poise.constraints.L2(100.0), images, labels)
    >>> (result.table["l2"] <= 2.0).all()
    True
    """

    access: ClassVar[Access] = Access.GRADIENTS
    steps: int = 100
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def __post_init__(self) -> None:
        check_steps("FAB", self.steps, None)
        if not 0 <= self.alpha_max <= 1:
            raise InputError(f"FAB: alpha_max must be in [0, 1], got {self.alpha_max}")
        if not 1 <= self.eta < float("inf"):
            raise InputError(f"FAB: eta must be a number of at least 1, got {self.eta}")
        if not 0 < self.beta < 1:
            raise InputError(f"FAB: beta must be in (0, 1), got {self.beta}")

    def run(self, problem: Problem) -> Steps:
        clean = problem.clean
        at = yield from begin(problem, random_start=False, fall_back=True)
        at = at.only(at.loss >= 0)
        for t in range(self.steps):
            if not len(at.ids):
                return
            candidate, more = self._next(at, problem), t + 1 < self.steps
            reply = yield from _ask(problem, candidate, at.ids, grad=more)
            if not more:
                return
            at = drop_finished(at.where(torch.ones_like(reply.accept), candidate, reply), reply)
            crossed = at.loss < 0
            if bool(crossed.any()):
                rows = at.ids[crossed]
                inner = clean[rows] + self.beta * (at.x[crossed] - clean[rows])
                reply = yield from _ask(problem, inner, rows, grad=True)
                at = drop_finished(_replaced(at, crossed, inner, reply), reply)

    def _next(self, at: Iterate, problem: Problem) -> Tensor:
        """The next iterate: both projections, passed by eta and mixed by alpha."""
        constraint, box, x0 = problem.constraint, problem.box, problem.clean[at.ids]
        slope = (at.gradient.double() * (x0 - at.x)).flatten(1).sum(dim=1)
        d = to_plane(at.x, at.loss.double(), at.gradient, constraint, box)
        d0 = to_plane(x0, at.loss + slope, at.gradient, constraint, box)
        nothing = torch.zeros_like(d)
        length, length0 = constraint.distance(d, nothing), constraint.distance(d0, nothing)
        both = length + length0
        alpha = torch.where(both > 0, length / torch.where(both > 0, both, 1), 0).clamp_max(self.alpha_max)
        x, biased = at.x + self.eta * d, x0 + self.eta * d0
        return box.project(x + per_row(alpha, x) * (biased - x))


def to_plane(x: Tensor, value: Tensor, gradient: Tensor, constraint: Constraint, box: Box) -> Tensor:
    """The shortest change in the ball's norm that brings a linear function to 0 without leaving the box (FAB, Eq. 4).

    A coordinate moves at the speed of the norm's steepest direction until it meets the box, all for the same time: the
    water-filling solution of the projection, found by sorting the times at which coordinates stop.

    Args:
        x: (m, C, H, W) points in the box.
        value: (m,) the function there.
        gradient: (m, C, H, W) its slope.
        constraint, box: the norm, and where points may lie.

    Returns:
        (m, C, H, W) the change; towards the box's corner that comes nearest where the plane misses the box.

    >>> from poise.constraints import L2
    >>> x, slope = torch.tensor([[[[0.9, 0.5]]]]), torch.tensor([[[[3.0, 4.0]]]])
    >>> to_plane(x, torch.tensor([-1.1]), slope, L2(1.0), Box())  # the first value meets the box at 1
    tensor([[[[0.1000, 0.2000]]]])
    """
    x_, w = x.flatten(1).double(), gradient.flatten(1).double()
    u = -value.double().sign()[:, None] * constraint.steepest(gradient.double()).flatten(1)
    rate = (w * u).abs()  # how fast the function nears 0 by each coordinate
    free = rate > 0
    room = torch.where(free, torch.where(u > 0, box.high - x_, x_ - box.low).clamp_min(0), 0)
    times = torch.where(free, room / u.abs(), 0)
    stops, order = times.sort(dim=1)
    rates, gains = rate.gather(1, order), (w.abs() * room).gather(1, order)
    before = gains.cumsum(dim=1) - gains  # by the coordinates that have stopped
    moving = rates.flip(1).cumsum(dim=1).flip(1)
    need = value.double().abs()[:, None]
    k = (before + stops * moving < need).sum(dim=1, keepdim=True)  # stops that come before the plane
    last = k.clamp_max(stops.shape[1] - 1)
    speed = moving.gather(1, last)
    rest = torch.where(speed > 0, (need - before.gather(1, last)) / speed, 0)  # 0: on the plane, or no slope at all
    time = torch.where(k < stops.shape[1], rest, torch.inf)
    change = torch.where(times <= time, room, time * u.abs()) * u.sign()
    return change.view(x.shape).to(x.dtype)


def _ask(problem: Problem, x: Tensor, ids: Tensor, *, grad: bool) -> Generator[Ask, Reply, Reply]:
    """One answer to all points, those outside the ball asked as probes."""
    inside = problem.constraint.contains(x, problem.clean[ids])
    if bool(inside.all()):
        return (yield Ask(x, ids, grad))
    outside = ~inside
    far = yield Ask(x[outside], ids[outside], grad, probe=True)
    if bool(outside.all()):
        return far
    near = yield Ask(x[inside], ids[inside], grad)
    loss, accept, gradient = x.new_empty(len(ids), dtype=near.loss.dtype), inside.clone(), torch.empty_like(x)
    for rows, reply in ((outside, far), (inside, near)):
        loss[rows], accept[rows] = reply.loss, reply.accept
        if reply.grad is not None:
            gradient[rows] = reply.grad
    return Reply(loss, accept, near.active, gradient if grad else None)


def _replaced(at: Iterate, rows: Tensor, x: Tensor, reply: Reply) -> Iterate:
    """`at` with the samples marked in rows (m,) at x (their number, C, H, W), with the reply's loss and gradient."""
    assert reply.grad is not None
    points, loss, gradient = at.x.clone(), at.loss.clone(), at.gradient.clone()
    points[rows], loss[rows], gradient[rows] = x, reply.loss, reply.grad
    return Iterate(at.ids, points, loss, gradient)
