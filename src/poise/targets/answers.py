"""What a model that is not ours answers, checked against what its target declares."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from poise.errors import InputError, TargetError, brief
from poise.types import Access, OutputKind, Outputs

_SUM_SLACK = 1e-3  # by how much a row of probabilities may miss the sum 1: a model may answer a few digits only,
_COARSE_SLACK = 1e-2  # or in half precision;
_EXACT_SLACK = 1e-5  # "logits" that hit it as closely as this are probabilities


class Answers:
    """Checks every answer of one target and turns it into `Outputs`.

    Args:
        owner: the target's name, for messages.
        outputs: "logits", "probabilities" or "labels": what the model answers.
        num_classes: K, at least 2.

    Raises:
        InputError: for arguments that make no sense.

    >>> Answers("Demo", "labels", 3).scores(torch.tensor([2]), rows=1)
    tensor([[0., 0., 1.]])
    """

    def __init__(self, owner: str, outputs: str, num_classes: int) -> None:
        kinds = {kind.value: kind for kind in OutputKind}
        if outputs not in kinds:
            raise InputError(f"{owner}: outputs must be 'logits', 'probabilities' or 'labels', got '{outputs}'")
        if num_classes < 2:
            raise InputError(f"{owner}: num_classes must be at least 2, got {num_classes}")
        self.owner, self.kind, self.num_classes = owner, kinds[outputs], num_classes
        self._checked_kind = False

    @property
    def access(self) -> Access:
        """The most that answers of this kind can give."""
        return Access.LABELS if self.kind is OutputKind.LABELS else Access.SCORES

    def none(self, device: torch.device) -> Outputs:
        """The answer to no question."""
        return Outputs(torch.zeros(0, self.num_classes, device=device), self.kind)

    def scores(self, found: Tensor, rows: int) -> Tensor:
        """(rows, K) scores that keep the declaration; labels become one-hot.

        Raises:
            TargetError: the shape, the number of classes, the kind or a value contradicts the declaration.
        """
        if self.kind is OutputKind.LABELS:
            return self._one_hot(found, rows)
        if found.shape != (rows, self.num_classes):
            raise TargetError(
                f"{self.owner}: answers must be ({rows}, {self.num_classes}) scores for {rows} images, "
                f"got {tuple(found.shape)}"
            )
        scores = found if found.is_floating_point() else found.double()
        self._check_values(scores)
        return scores

    def _one_hot(self, labels: Tensor, rows: int) -> Tensor:
        whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool)
        if labels.shape != (rows,) or not whole:
            raise TargetError(
                f"{self.owner}: answers must be ({rows},) integer labels for {rows} images, "
                f"got {tuple(labels.shape)} {labels.dtype}"
            )
        labels = labels.long()
        low, high = (int(end) for end in labels.aminmax())
        if low < 0 or high >= self.num_classes:
            raise TargetError(f"{self.owner}: labels must be in 0..{self.num_classes - 1}, got values in {low}..{high}")
        return one_hot(labels, self.num_classes).float()

    def _check_values(self, scores: Tensor) -> None:
        finite = torch.isfinite(scores)
        if not finite.all():
            raise TargetError(f"{self.owner}: scores must be finite, got {int((~finite).sum())} NaN or infinite values")
        if self._checked_kind and self.kind is OutputKind.LOGITS:
            return
        coarse = scores.dtype.itemsize < 4
        misses = float((scores.double().sum(dim=1) - 1).abs().max())
        lowest = float(scores.min())
        if self.kind is OutputKind.LOGITS and lowest >= 0 and misses < (_COARSE_SLACK if coarse else _EXACT_SLACK):
            raise TargetError(
                f"{self.owner}: the model is declared to answer logits, but its rows are probabilities "
                "(non-negative, sum 1); declare outputs='probabilities'"
            )
        slack = _COARSE_SLACK if coarse else _SUM_SLACK
        if self.kind is OutputKind.PROBABILITIES and not (lowest >= 0 and misses < slack):
            raise TargetError(
                f"{self.owner}: the model is declared to answer probabilities, non-negative rows of sum 1 within "
                f"{slack:g}, but its lowest value is {lowest:.3g} and a sum is off by {misses:.3g}; "
                "declare outputs='logits'"
            )
        self._checked_kind = True


def one_line(error: BaseException, limit: int = 200) -> str:
    """The type and the text of an exception of other people's code, as one short line.

    >>> one_line(ValueError("first\\nsecond")), one_line(KeyError())
    ('ValueError: first second', 'KeyError')
    """
    return brief(f"{type(error).__name__}: {error}", limit).removesuffix(":")


def check_sizes(owner: str, bounds: tuple[float, float], batch_size: int) -> None:
    """Refuses bounds and batch sizes that make no sense.

    Raises:
        InputError: bounds are not (low, high) with low < high, or the batch size is below 1.
    """
    if batch_size < 1:
        raise InputError(f"{owner}: batch_size must be at least 1, got {batch_size}")
    if len(bounds) != 2 or not bounds[0] < bounds[1]:
        raise InputError(f"{owner}: bounds must be (low, high) with low < high, got {bounds}")
