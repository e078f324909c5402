"""RamBo: HopSkipJump until it is slow, then BlockDescent, then Sign-OPT for the rest of the budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from poise.constraints.l2 import L2
from poise.searches.base import Problem, Steps
from poise.searches.decision.block_descent import CIFAR, BlockDescent
from poise.searches.decision.decisions import Decisions
from poise.searches.decision.hop_skip_jump import HopSkipJump
from poise.searches.decision.norms import Euclidean
from poise.searches.decision.sign_opt import SignOPT
from poise.searches.decision.slow import Slow
from poise.types import Access

HOPS, BLOCKS, SIGNS = HopSkipJump(iterations=50), BlockDescent(), SignOPT()


@dataclass(frozen=True, slots=True)
class RamBo:
    """Labels alone: HopSkipJump until it is slow, then BlockDescent, then Sign-OPT (RamBoAttack).

    Vo, Abbasnejad & Ranasinghe, "RamBoAttack: A Robust Query Efficient Deep Neural Network Decision Exploit", NDSS
    2022; for `Misclassify()`.

    Three stages, each from the nearest wrong point of the one before; every sample changes stage by itself. The
    defaults are the settings for CIFAR-10; `RamBo.imagenet()` has those for ImageNet.

    Args:
        hops: the first stage, at most 50 iterations.
        slow: when it ends: its distance has fallen by less than so much over so many Monte-Carlo probes.
        blocks: the second stage.
        signs: the third.

    Distances are Euclidean in every ball: the ball only says which wrong point is a result, as in `HopSkipJump`. The
    released code's copy of HopSkipJump uses the wide probes of the first iteration in the second; here it is the
    published one.

    >>> import torch, poise
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> target = poise.ModuleTarget(model, num_classes=3)
    >>> images = torch.rand(2, 1, 2, 2)
    >>> labels = model(images).argmax(dim=1)
    >>> result = poise.attack(target, poise.objectives.Misclassify(), RamBo(), poise.constraints.L2(0.5),
    ...                       images, labels, budget=200)
    >>> (result.table["l2"] <= 0.50001).all()
    True
    """

    access: ClassVar[Access] = Access.LABELS
    hops: HopSkipJump = HOPS
    slow: Slow = CIFAR
    blocks: BlockDescent = BLOCKS
    signs: SignOPT = SIGNS

    @classmethod
    def imagenet(cls) -> RamBo:
        """The settings for ImageNet.

        >>> RamBo.imagenet().blocks.blocks
        16
        """
        return cls(slow=Slow(1.0, 2000), blocks=BlockDescent(50.0, blocks=16, shrink=2.0, slow=Slow(1e-1, 1000)))

    def run(self, problem: Problem) -> Steps:
        decisions = Decisions(problem, "RamBo")
        norm = Euclidean(decisions, L2(0.0))
        ids = yield from decisions.begin()
        ids, x = yield from decisions.start(ids, self.hops.tries)
        x = yield from self.hops.hops(norm, ids, x, self.slow)
        x = yield from self.blocks.descend(norm, ids, x)
        yield from self.signs.descend(norm, ids, x)
