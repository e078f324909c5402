"""What stands in front of another target: a journal, a purse, a view, a defence."""

from __future__ import annotations

from contextlib import AbstractContextManager

from poise.targets.base import Target
from poise.types import Access


class InFront:
    """Declares what the target behind it declares, without its gradients; a subclass adds `query`.

    Args:
        target: answers.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.kind = target.kind
        self.access = min(target.access, Access.SCORES)
        self.bounds = target.bounds
        self.num_classes = target.num_classes
        self.batch_size = target.batch_size
        self.device = target.device

    def session(self, seed: int | None = None) -> AbstractContextManager[None]:
        """The target's own session."""
        return self.target.session(seed)
