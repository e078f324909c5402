"""The plain values that the parts exchange: access levels, answers of a target, results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from functools import cached_property

import polars as pl
import torch
from torch import Tensor


class Access(IntEnum):
    """What an attacker gets from a target; a higher level includes the lower ones."""

    LABELS = 0
    SCORES = 1
    GRADIENTS = 2


class OutputKind(Enum):
    """What the numbers of an answer are. Declared by the target, never guessed from values.

    >>> import torch, poise
    >>> poise.Outputs(torch.tensor([[0.7, 0.3]]), OutputKind.PROBABILITIES).confidence
    tensor([0.7000], dtype=torch.float64)
    """

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    LABELS = "labels"


def exact(device: torch.device) -> torch.dtype:
    """float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


class Seen:
    """Recognises a tensor: the very same one, and nobody has written into it since.

    >>> import torch
    >>> rows = torch.arange(3)
    >>> seen = Seen(rows)
    >>> seen.again(rows), seen.again(rows.clone()), seen.again(rows.add_(1))
    (True, False, False)
    """

    __slots__ = ("_tensor", "_writes")

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._writes = tensor, _writes(tensor)

    def again(self, tensor: Tensor) -> bool:
        """It is this one; never for tensors of which torch does not count who writes into them (inference mode)."""
        return tensor is self._tensor and self._writes is not None and _writes(tensor) == self._writes


def _writes(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


@dataclass(frozen=True)
class Outputs:
    """Answers of a target for m points.

    Args:
        scores: (m, K) logits or probabilities; for labels, (m, K) one-hot.
        kind: what the scores are.

    The views below are computed once, in float64 where the device has it: near saturation float32 cannot
    tell a confidence of 1 - 1e-8 from 1, and an attack that follows it would stand still.

    >>> import torch
    >>> answer = Outputs(torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
    >>> answer.labels, answer.confidence.numpy().round(3).tolist()
    (tensor([0, 0]), [0.881, 0.5])
    """

    scores: Tensor
    kind: OutputKind = OutputKind.LOGITS
    _known: dict[tuple[Figure, int, int, bool], tuple[Tensor, Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def once(self, figure: Figure, classes: Tensor, ids: Tensor) -> Tensor:
        """figure(self, classes[ids]), (m,); computed once for these very tensors, however often a goal asks."""
        key = (figure, id(classes), id(ids), torch.is_grad_enabled())
        if key not in self._known:  # the tensors are kept, so that no other gets their identity
            self._known[key] = (classes, ids, figure(self, classes.index_select(0, ids)))
        return self._known[key][2]

    def detached(self) -> Outputs:
        """The same answer without its graph. Views and figures that were computed come along."""
        answer = Outputs(self.scores.detach(), self.kind)
        views = {name: view for name, view in vars(self).items() if name in _VIEWS}
        vars(answer).update({name: view.detach() for name, view in views.items()})
        for (figure, classes, ids, _), (kept_classes, kept_ids, value) in self._known.items():
            answer._known[figure, classes, ids, False] = kept_classes, kept_ids, value.detach()
        return answer

    @cached_property
    def logits(self) -> Tensor:
        """(m, K) scores whose softmax is the probabilities: logits, or log-probabilities (same differences)."""
        scores = self.scores if self.scores.device.type == "mps" else self.scores.double()
        if self.kind is OutputKind.LOGITS:
            return scores
        return scores.clamp_min(torch.finfo(torch.float32).tiny).log()

    @cached_property
    def log_probabilities(self) -> Tensor:
        """(m, K) natural logarithms of the probabilities."""
        return self.logits.log_softmax(dim=1)

    @cached_property
    def probabilities(self) -> Tensor:
        """(m, K) probabilities; rows sum to 1."""
        return self.log_probabilities.exp()

    @cached_property
    def labels(self) -> Tensor:
        """(m,) predicted class, the lowest index where several tie."""
        return self.scores.argmax(dim=1)

    @cached_property
    def confidence(self) -> Tensor:
        """(m,) probability of the predicted class, in [1/K, 1]."""
        return self.probabilities.amax(dim=1)


Figure = Callable[[Outputs, Tensor], Tensor]
"""A number (m,) of answers and of a class (m,) for each."""

_VIEWS = {name for name, view in vars(Outputs).items() if isinstance(view, cached_property)}


@dataclass(frozen=True, slots=True)
class AttackResult:
    """What an attack returns.

    Args:
        images: (n, C, H, W) the best verified point of each sample, dtype and device as given.
        table: the result table, one row per sample (columns in `poise.table.SCHEMA`).
        scores_before: (n, K) the target's answer at the clean images.
        scores: (n, K) the target's answer at `images`, as recorded when those very tensors were queried.
        curve: best confidence and prediction after each checkpoint's number of queries (columns in
            `poise.table.CURVE`).
        trace: every point that was asked for, where a trace was wanted (columns in `poise.table.TRACE`).

    >>> import poise
    >>> target, data = poise.models.load("builtin:digits"), poise.data.load("builtin:digits", samples=4)
    >>> result = poise.run_recipe("pgd-uca", target, data.images, data.labels, eps=0.1)
    >>> result.images.shape, result.scores.shape, result.table.height
    (torch.Size([4, 1, 8, 8]), torch.Size([4, 10]), 4)
    """

    images: Tensor
    table: pl.DataFrame
    scores_before: Tensor
    scores: Tensor
    curve: pl.DataFrame
    trace: pl.DataFrame
