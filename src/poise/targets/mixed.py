"""A module that is asked in half precision; what may become a result is asked again in its own."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from poise.errors import InputError
from poise.targets.base import Loss
from poise.targets.module import ModuleTarget
from poise.types import Outputs

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Names of what a model may compute in; None is its own precision."""


class Mixed:
    """Searches in half precision (autocast), results in full.

    An attack asks most of its questions only to learn which way to go. Those are answered in `dtype`. The clean points,
    and every point that would become a sample's best, are put to the module in its own precision too, and that answer
    decides: labels, confidences and merits in a result table are those of the module as it is. These second answers
    are no queries, for nobody is asked anything new.

    Args:
        target: the module's target.
        dtype: `torch.bfloat16` or `torch.float16`; faster where the device has units for it, slower elsewhere.

    Raises:
        InputError: another kind of target, or another dtype.

    >>> import numpy as np, poise
    >>> target, data = poise.models.load("builtin:digits"), poise.data.load("builtin:digits", samples=8)
    >>> mixed = Mixed(target)
    >>> result = poise.run_recipe("sa-mma", mixed, data.images, data.labels, eps=0.1, budget=30)
    >>> again = target.query(result.images, data.ids).confidence
    >>> bool(np.allclose(again, result.table["confidence_after"]))
    True
    """

    def __init__(self, target: ModuleTarget, dtype: torch.dtype = torch.bfloat16) -> None:
        if not isinstance(target, ModuleTarget):
            raise InputError(f"Mixed: target must be a ModuleTarget, got {type(target).__name__}")
        if dtype not in (torch.bfloat16, torch.float16):
            raise InputError(f"Mixed: dtype must be torch.bfloat16 or torch.float16, got {dtype}")
        self.target = target
        self.kind, self.access, self.bounds = target.kind, target.access, target.bounds
        self.num_classes, self.batch_size, self.device = target.num_classes, target.batch_size, target.device
        self._low = ModuleTarget(
            _Autocast(target.module, target.device.type, dtype), num_classes=target.num_classes, bounds=target.bounds,
            device=target.device, batch_size=target.batch_size, outputs=target.kind.name.lower(), access=target.access,
        )  # fmt: skip

    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        """Answers in half precision."""
        return self._low.query(x, ids)

    def gradient(self, x: Tensor, ids: Tensor, loss: Loss) -> tuple[Outputs, Tensor]:
        """Answers and gradients in half precision."""
        return self._low.gradient(x, ids, loss)

    def settled(self, x: Tensor, ids: Tensor) -> Outputs:
        """Answers in the module's own precision."""
        return self.target.query(x, ids)

    def session(self, seed: int | None = None) -> AbstractContextManager[None]:
        """As the target's."""
        return self._low.session(seed)


class _Autocast(nn.Module):
    """A module whose layers compute in another type where that is safe; float32 comes out."""

    def __init__(self, module: nn.Module, device: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.device, self.dtype = module, device, dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device, dtype=self.dtype):
            answer: Tensor = self.module(x)
        return answer.float() if isinstance(answer, Tensor) else answer
