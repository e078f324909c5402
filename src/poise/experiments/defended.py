"""A defence behind a target that is no PyTorch module: an endpoint, a file, a function."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from poise.defenses import PostHoc
from poise.errors import InputError
from poise.experiments.served import Defence, behind
from poise.targets import ModuleTarget, Target
from poise.types import Access, OutputKind, Outputs


class Defended:
    """A target whose answers pass through a post-hoc defence before anybody sees them; scores alone, no gradients.

    Args:
        target: answers with scores.
        defence: maps their logits to logits; shared, not copied, and moved to the target's device.

    Raises:
        InputError: the target answers labels alone.
    """

    def __init__(self, target: Target, defence: PostHoc) -> None:
        if target.kind is OutputKind.LABELS or target.access < Access.SCORES:
            raise InputError(
                f"defences: a model that answers labels alone cannot carry a defence, got {type(defence).__name__} "
                "(give --defenses none)"
            )
        self._target, self._defence = target, defence.to(target.device)
        self.kind, self.access = OutputKind.LOGITS, Access.SCORES
        self.bounds, self.num_classes = target.bounds, target.num_classes
        self.batch_size, self.device = target.batch_size, target.device

    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        """Defended logits for points x (m, C, H, W)."""
        return Outputs(defended_logits(self._defence, self._target.query(x, ids)))

    def session(self, seed: int | None = None) -> AbstractContextManager[None]:
        """The target's own."""
        return self._target.session(seed)


@torch.no_grad()
def defended_logits(defence: PostHoc, answer: Outputs) -> Tensor:
    """What a defence makes of an answer (m, K): of its logits as they are, or of the logarithms of probabilities."""
    logits = answer.scores if answer.kind is OutputKind.LOGITS else answer.logits
    found: Tensor = defence(logits.to(defence.fitted.device))
    return found


def served(target: Target, defence: Defence) -> Target:
    """The target with a defence behind it, differentiable where the target is a module.

    Raises:
        InputError: the target answers labels alone.
    """
    if isinstance(target, ModuleTarget):
        return behind(target, defence)
    if not isinstance(defence, PostHoc):
        raise InputError(f"defences: {type(defence).__name__} goes around a PyTorch module, got another kind of model")
    return Defended(target, defence)
