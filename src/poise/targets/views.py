"""What the attacker is allowed to see of a target: labels only, the top k, rounded probabilities, probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from poise.errors import AccessError, InputError
from poise.targets.base import Target
from poise.targets.in_front import InFront
from poise.types import Access, OutputKind, Outputs

_MOST_DIGITS = 15


class _View(InFront):
    """A target that shows less of another: no gradients, and what `_shown` leaves of the answers."""

    _shows = OutputKind.PROBABILITIES
    _most = Access.SCORES

    def __init__(self, target: Target) -> None:
        if self._most >= Access.SCORES and (target.kind is OutputKind.LABELS or target.access < Access.SCORES):
            raise AccessError(f"{type(self).__name__}: needs a target that gives scores, this one gives labels")
        super().__init__(target)
        self.kind, self.access = self._shows, self._most

    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        """What this view shows of the target's answers for x (m, C, H, W)."""
        return Outputs(self._shown(self.target.query(x, ids)), self.kind)

    def _shown(self, answer: Outputs) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define _shown(answer)")


class Probabilities(_View):
    """A target seen through its probabilities: no logits, no gradients.

    Args:
        target: what answers; it must give scores.

    Raises:
        AccessError: the target gives labels only.

    >>> from poise.targets import ModuleTarget
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> answer = Probabilities(ModuleTarget(model, num_classes=3)).query(torch.rand(1, 1, 2, 2), torch.arange(1))
    >>> round(float(answer.scores.sum()), 9)
    1.0
    """

    def _shown(self, answer: Outputs) -> Tensor:
        return answer.probabilities


class Rounded(_View):
    """A target whose probabilities are shown with d digits after the point.

    Args:
        target: what answers; it must give scores.
        digits: d, in 1..15.

    Raises:
        InputError: digits are not as above. AccessError: the target gives labels only.

    The numbers that an endpoint rounds do not sum to 1: with 1000 classes and two digits most of them are 0, and
    dividing by their sum would turn a confidence of 0.6 into 1. The scores are therefore the one probability vector
    nearest to the rounded numbers (Euclidean): all are moved by one common amount, and end no lower than 0. They tell
    no more than the rounded numbers do; each lies within half a unit of the last digit of the number shown; order and
    ties are those of the rounded numbers. Where rounding makes a tie at the top, the label is the lowest of the tied
    classes, which may not be the target's own.

    >>> from poise.targets.function import FunctionTarget
    >>> target = FunctionTarget(lambda x: [[0.64, 0.22, 0.14]], num_classes=3, outputs="probabilities")
    >>> Rounded(target, 1).query(torch.rand(1, 1, 2, 2), torch.arange(1)).scores.round(decimals=4).tolist()
    [[0.6333, 0.2333, 0.1333]]
    """

    def __init__(self, target: Target, digits: int) -> None:
        _check_count("Rounded: digits", digits, _MOST_DIGITS)
        super().__init__(target)
        self.digits = digits

    def _shown(self, answer: Outputs) -> Tensor:
        return _onto_simplex(answer.probabilities.round(decimals=self.digits))


class TopK(_View):
    """A target that shows the k most probable classes and their probabilities.

    Args:
        target: what answers; it must give scores.
        k: in 1..K. Where two classes tie for the last place, the lower one is shown.

    Raises:
        InputError: k is not as above. AccessError: the target gives labels only.

    What is left of the probability is shared out equally among the other classes, just below the k-th value at most:
    the attacker knows no more of them than their sum. The label is the target's.

    >>> from poise.targets.function import FunctionTarget
    >>> target = FunctionTarget(lambda x: [[0.5, 0.3, 0.15, 0.05]], num_classes=4, outputs="probabilities")
    >>> TopK(target, 2).query(torch.rand(1, 1, 2, 2), torch.arange(1)).scores.round(decimals=9).tolist()
    [[0.5, 0.3, 0.1, 0.1]]
    """

    def __init__(self, target: Target, k: int) -> None:
        super().__init__(target)
        _check_count("TopK: k", k, target.num_classes)
        self.k = k

    def _shown(self, answer: Outputs) -> Tensor:
        values, classes = answer.probabilities.sort(dim=1, descending=True, stable=True)
        known, last = values[:, : self.k], values[:, self.k - 1 : self.k]
        share = (1 - known.sum(dim=1, keepdim=True)).clamp_min(0) / max(self.num_classes - self.k, 1)
        below = torch.nextafter(last, torch.zeros_like(last))
        rest = torch.minimum(share, below).expand_as(values)
        return rest.scatter(1, classes[:, : self.k], known)


class LabelsOnly(_View):
    """A target that shows nothing but its label, as one-hot rows.

    Args:
        target: what answers.

    >>> from poise.targets.function import FunctionTarget
    >>> target = FunctionTarget(lambda x: [[0.5, 0.3, 0.2]], num_classes=3, outputs="probabilities")
    >>> LabelsOnly(target).query(torch.rand(1, 1, 2, 2), torch.arange(1)).scores.tolist()
    [[1.0, 0.0, 0.0]]
    """

    _shows = OutputKind.LABELS
    _most = Access.LABELS

    def _shown(self, answer: Outputs) -> Tensor:
        return torch.nn.functional.one_hot(answer.labels, self.num_classes).float()


VIEWS = ("labels", "probabilities", "round:DIGITS", "top:K")
"""What `view` understands."""


def view(target: Target, text: str) -> Target:
    """The target seen through the views that a text names.

    Args:
        target: what answers.
        text: "labels", "probabilities", "round:3" or "top:5"; several are applied from left to right: "top:5,round:2".

    Raises:
        InputError: one line for a text that names no view or a number out of range.
        AccessError: the target gives labels only, the view needs scores.

    >>> from poise.targets.function import FunctionTarget
    >>> target = FunctionTarget(lambda x: [[0.5, 0.3, 0.2]], num_classes=3, outputs="probabilities")
    >>> view(target, "labels").kind
    <OutputKind.LABELS: 'labels'>
    """
    for part in text.split(","):
        target = _one_view(target, part.strip())
    return target


def _one_view(target: Target, text: str) -> Target:
    name, colon, number = text.partition(":")
    if text == "labels":
        return LabelsOnly(target)
    if text == "probabilities":
        return Probabilities(target)
    if name not in ("round", "top"):
        raise InputError(f"view: must be one of {', '.join(VIEWS)}, got '{text}'")
    if not (colon and number.isascii() and number.isdigit() and len(number) < 10):
        raise InputError(f"view: '{name}:' must be followed by a whole number, got '{text}'")
    return Rounded(target, int(number)) if name == "round" else TopK(target, int(number))


def _check_count(what: str, given: int, most: int) -> None:
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= most:
        raise InputError(f"{what} must be an integer in 1..{most}, got {given}")


def _onto_simplex(values: Tensor) -> Tensor:
    """The probability vectors nearest to the rows of values (m, K): max(v - t, 0) with the t that makes the sum 1."""
    descending = values.sort(dim=1, descending=True).values
    counts = torch.arange(1, values.shape[1] + 1, device=values.device, dtype=values.dtype)
    thresholds = (descending.cumsum(dim=1) - 1) / counts
    support = (descending > thresholds).sum(dim=1, keepdim=True)  # the first entries of a row, at least one
    return (values - thresholds.gather(1, support - 1)).clamp_min(0)
