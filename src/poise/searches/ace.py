"""ACE: one step along one gradient, halved until the label is kept (Galil & El-Yaniv, NeurIPS 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from poise.errors import InputError
from poise.searches.base import Ask, Problem, Steps
from poise.types import Access


@dataclass(frozen=True, slots=True)
class ACE:
    """x' = Pi(x - e * steepest(grad L(x))) with e = eps, decay * eps, decay^2 * eps, … until x' is accepted.

    Attack on Confidence Estimation (Galil & El-Yaniv, NeurIPS 2021). The gradient is taken once, at the clean image; it
    is not PGD, although later papers say so. A sample ends at its first accepted candidate; one that has none keeps its
    clean image. Cost: one forward+backward pass and at most `tries` forward passes.

    Args:
        tries: most candidates per sample; 15 in the released code.
        decay: factor on e after a refusal, in (0, 1); 0.5.

    The paper lowers the confidence of right predictions and raises that of wrong ones: that is the objective's part
    (`KeepLabel(MMA())`), whose loss is always lowered. The released code knows the linf ball alone, where the change is
    e * (+-1) before clipping; here the step is of length e in the norm of the given ball. In the l2 ball a step that
    leaves the box is clipped, so the change may be shorter than e.

    >>> import torch, poise
    >>> from poise.searches.ace import ACE
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> target = poise.ModuleTarget(model, num_classes=3)
    >>> goal = poise.objectives.KeepLabel(poise.objectives.UCA(tol=0.0))
    >>> images, labels = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    >>> result = poise.attack(target, goal, ACE(), poise.constraints.Linf(0.01), images, labels)
    >>> result.table["gradients"].to_list()
    [1, 1]
    """

    access: ClassVar[Access] = Access.GRADIENTS
    tries: int = 15
    decay: float = 0.5

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise InputError(f"ACE: tries must be at least 1, got {self.tries}")
        if not 0 < self.decay < 1:
            raise InputError(f"ACE: decay must be in (0, 1), got {self.decay}")

    def run(self, problem: Problem) -> Steps:
        constraint, clean = problem.constraint, problem.clean
        reply = yield Ask(clean, problem.everyone, grad=True)
        assert reply.grad is not None
        direction, ids = constraint.steepest(reply.grad), problem.everyone[reply.active]
        for m in range(self.tries):
            if not len(ids):
                return
            e = constraint.eps * self.decay**m  # the same for all that still run: each was refused m times
            candidate = constraint.project(clean[ids] - e * direction[ids], clean[ids], problem.box)
            reply = yield Ask(candidate, ids)
            ids = ids[~reply.accept & reply.active[ids]]
