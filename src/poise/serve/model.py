"""A target as a server shows it: what it says of itself, and images to scores."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poise.errors import InputError, TargetError
from poise.targets import Target
from poise.types import Access, OutputKind

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A target behind HTTP.

    Args:
        target: what answers; gives scores.
        name: what clients read: no path, no secret.
        outputs: what clients get, `OutputKind.LOGITS` or `OutputKind.PROBABILITIES`. The logits of a target of
            probabilities are their logarithms.
        shape: (C, H, W) of its images; None where it is not known, and every shape is tried.
        classes: one name per class.

    Raises:
        InputError: the target gives labels only, or the names are not one per class.

    >>> from poise.targets import ModuleTarget
    >>> target = ModuleTarget(torch.nn.Flatten(), num_classes=4)
    >>> model = ServedModel(target, "flat", OutputKind.PROBABILITIES, (1, 2, 2))
    >>> model.answer(torch.zeros(1, 1, 2, 2)).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """

    target: Target
    name: str
    outputs: OutputKind = OutputKind.LOGITS
    shape: tuple[int, int, int] | None = None
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.target.access < Access.SCORES or self.target.kind is OutputKind.LABELS:
            raise InputError("serve: the model must give scores, got one that gives labels only")
        if self.outputs is OutputKind.LABELS:
            raise InputError("serve: outputs must be logits or probabilities, got labels")
        if self.classes is not None and len(self.classes) != self.target.num_classes:
            raise InputError(
                f"serve: classes must be the model's {self.target.num_classes} names, got {len(self.classes)}"
            )

    def metadata(self, max_batch: int) -> dict[str, Any]:
        """What `GET /metadata` answers."""
        return {
            "poise": version("poise"),
            "model": self.name,
            "num_classes": self.target.num_classes,
            "outputs": self.outputs.value,
            "bounds": list(self.target.bounds),
            "shape": None if self.shape is None else list(self.shape),
            "max_batch": max_batch,
            "classes": None if self.classes is None else list(self.classes),
        }

    def answer(self, images: Tensor) -> Array:
        """Scores (m, K) float32 of images (m, C, H, W).

        Raises:
            TargetError: the answer has another shape, NaN or infinities.
        """
        found = self.target.query(images.to(self.target.device), torch.arange(len(images)))
        wanted = found.logits if self.outputs is OutputKind.LOGITS else found.probabilities
        scores = (found.scores if found.kind is self.outputs else wanted).float().cpu().numpy()
        if scores.shape != (len(images), self.target.num_classes) or not np.isfinite(scores).all():
            raise TargetError(
                f"model: must answer ({len(images)}, {self.target.num_classes}) finite scores, "
                f"got {scores.shape}, {int((~np.isfinite(scores)).sum())} of them NaN or infinite"
            )
        return scores
