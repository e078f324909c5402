"""What the gradient searches share: where they begin, and dropping finished samples."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from poise.constraints.l2 import per_row
from poise.errors import InputError
from poise.searches.base import Ask, Problem, Reply, marked


@dataclass(frozen=True, slots=True)
class Iterate:
    """State of m running samples: rows, points, losses, gradients there, and who was active when they were chosen."""

    ids: Tensor
    x: Tensor
    loss: Tensor
    gradient: Tensor
    active: Tensor | None = None

    def where(self, moved: Tensor, x: Tensor, reply: Reply) -> Iterate:
        """Samples marked in moved (m,) go to x with the reply's loss and gradient; the others stay."""
        assert reply.grad is not None
        if moved.device.type == "cpu" and bool(moved.all()):
            return Iterate(self.ids, x, reply.loss, reply.grad, self.active)
        rows = moved.view(-1, 1, 1, 1)
        return Iterate(
            self.ids,
            torch.where(rows, x, self.x),
            torch.where(moved, reply.loss, self.loss),
            torch.where(rows, reply.grad, self.gradient),
            self.active,
        )

    def only(self, keep: Tensor) -> Iterate:
        """The samples marked in keep (m,)."""
        return Iterate(*marked(keep, self.ids, self.x, self.loss, self.gradient))


def begin(
    problem: Problem, *, random_start: bool, fall_back: bool, jitter: float = 0.0
) -> Generator[Ask, Reply, Iterate]:
    """Clean points first, then, if asked for, a random point of the ball (`fall_back`: only where accepted).

    With `jitter` that point is the clean one plus Gaussian noise of this standard deviation, projected.
    """
    elsewhere = random_start or jitter > 0
    reply = yield Ask(problem.clean, problem.everyone, grad=fall_back or not elsewhere)
    gradient = torch.zeros_like(problem.clean) if reply.grad is None else reply.grad
    state = Iterate(problem.everyone, problem.clean, reply.loss, gradient)
    state = drop_finished(state, reply)
    if not elsewhere or not len(state.ids):
        return state
    if jitter > 0:
        noise = problem.rng.normal("jitter", 0, state.ids, tuple(state.x.shape[1:])).to(state.x.dtype)
        start = problem.constraint.project(state.x + jitter * noise, state.x, problem.box)
    else:
        start = problem.constraint.sample(state.x, problem.box, state.ids, problem.rng, 0)
    reply = yield Ask(start, state.ids, grad=True)
    moved = reply.accept if fall_back else torch.ones_like(reply.accept)
    return drop_finished(state.where(moved, start, reply), reply)


def drop_finished(state: Iterate, reply: Reply) -> Iterate:
    """The samples that are still active (one look at the device)."""
    if reply.active is state.active:
        return state
    keep = reply.active[state.ids]
    return replace(state if bool(keep.all()) else state.only(keep), active=reply.active)


def unit_sum(gradient: Tensor) -> Tensor:
    """Rows scaled to absolute sum 1, in two steps so that nothing vanishes; rows of zeros stay zero."""
    top = gradient.flatten(1).abs().amax(dim=1)
    scaled = gradient / per_row(torch.where(top > 0, top, 1), gradient)
    total = scaled.flatten(1).abs().sum(dim=1)
    return scaled / per_row(torch.where(total > 0, total, 1), gradient)


def check_steps(name: str, steps: int, step: float | None) -> None:
    """Refuses step counts and step sizes that cannot be meant."""
    if steps < 1:
        raise InputError(f"{name}: steps must be at least 1, got {steps}")
    if step is not None and not 0 < step < float("inf"):
        raise InputError(f"{name}: step must be a positive number, got {step}")
