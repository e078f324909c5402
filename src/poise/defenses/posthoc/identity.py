"""No defence, in the shape of one."""

from __future__ import annotations

from torch import Tensor

from poise.defenses.base import PostHoc


class Identity(PostHoc):
    """The undefended model, so that every table has its first row from the same code.

    Example:
        >>> import torch
        >>> Identity()(torch.tensor([[2.0, 1.0]]))
        tensor([[2., 1.]])
    """

    keeps_label = True
    keeps_order = True
    monotone = True
    needs_fit = False

    def _map(self, logits: Tensor) -> Tensor:
        return logits
