"""Does an objective keep its contract? Run on ours in the tests, and usable on your own.

from poise.checks.objectives import check_objective
check_objective(MyObjective())
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from poise.checks.base import CheckError, global_generators_untouched, require, same
from poise.objectives.base import Bound, Objective
from poise.rng import Rng
from poise.types import Access, OutputKind, Outputs

_ROWS = 8
_READINGS = ("loss", "merit", "accept", "done")


@dataclass(frozen=True)
class _Subject:
    """An objective bound to drawn answers of one number of classes, and later answers to judge.

    Args:
        name: for messages.
        objective: under test.
        classes: K.
        clean, later: (n, K) answers.
        labels: (n,).
    """

    name: str
    objective: Objective
    classes: int
    clean: Outputs
    later: Outputs
    labels: Tensor

    @property
    def ids(self) -> Tensor:
        return torch.arange(_ROWS)

    def bind(self, clean: Outputs | None = None, seed: int = 0) -> Bound:
        return self.objective.bind(clean or self.clean, self.labels, self.ids, Rng(seed, self.ids * 3 + 1))


def check_objective(objective: Objective, *, classes: tuple[int, ...] = (2, 3, 10)) -> None:
    """Runs every check of the objective's contract (`poise.objectives.base.Objective` and `Bound`) on drawn answers.

    Checked: shapes and types; k is the clean prediction; a row's values depend on that row and its sample alone;
    nothing is written into; the same call gives the same; no global random state; finite values and gradients on
    saturated answers; the gradient of `loss` against finite differences; logits and probabilities give the same.

    Args:
        objective: under test.
        classes: numbers of classes K to try.

    Raises:
        CheckError: an AssertionError with one line; the first promise that does not hold.

    >>> from poise.objectives import UCA, KeepLabel
    >>> check_objective(KeepLabel(UCA()))
    """
    name = type(objective).__name__
    require(isinstance(objective.access, Access), f"{name}: access must be an Access, got {objective.access!r}")
    for count in classes:
        generator = torch.Generator().manual_seed(count)
        clean, later = (
            Outputs(3 * torch.randn(_ROWS, count, generator=generator, dtype=torch.float64)) for _ in range(2)
        )
        labels = torch.randint(count, (_ROWS,), generator=generator)
        subject = _Subject(name, objective, count, clean, later, labels)
        with global_generators_untouched(name):
            for check in CHECKS.values():
                check(subject)


def _read(bound: Bound, reading: str, outputs: Outputs, ids: Tensor) -> Tensor:
    value = getattr(bound, reading)(outputs, ids)
    assert isinstance(value, Tensor)
    return value


def _shapes(subject: _Subject) -> None:
    bound, name = subject.bind(), subject.name
    require(torch.equal(bound.k, subject.clean.labels), f"{name}: k must be the clean prediction, lowest index on ties")
    require(
        bound.over.shape == (_ROWS,) and bound.over.dtype == torch.bool,
        f"{name}: over must be ({_ROWS},) bool, got {tuple(bound.over.shape)} {bound.over.dtype}",
    )
    for reading in _READINGS:
        value = _read(bound, reading, subject.later, subject.ids)
        fits = value.dtype == torch.bool if reading in ("accept", "done") else value.is_floating_point()
        require(
            value.shape == (_ROWS,) and fits,
            f"{name}: {reading} must be ({_ROWS},) {'bool' if reading in ('accept', 'done') else 'floats'}, "
            f"got {tuple(value.shape)} {value.dtype}",
        )


def _rows(subject: _Subject) -> None:
    """Some rows, in another order, one sample several times: every row as in the whole."""
    bound = subject.bind()
    some = torch.tensor([5, 0, 3])
    for reading in _READINGS:
        whole = _read(bound, reading, subject.later, subject.ids)
        part = _read(bound, reading, Outputs(subject.later.scores[some]), some)
        message = (
            f"{subject.name}: {reading} of a row must not depend on the other rows of the call (K={subject.classes})"
        )
        require(same(part, whole[some], 1e-12), message)
        repeated = Outputs(subject.later.scores[torch.tensor([2, 2])])
        twice = _read(bound, reading, repeated, torch.tensor([2, 2]))
        require(same(twice, whole[[2, 2]], 1e-12), message)


def _binding(subject: _Subject) -> None:
    """Bound with fewer samples, a sample keeps its goal: draws go by the sample's name, not by its row."""
    order = torch.arange(_ROWS - 1, -1, -1)
    names = subject.ids * 3 + 1
    first = subject.bind()
    moved = subject.objective.bind(
        Outputs(subject.clean.scores[order]), subject.labels[order], subject.ids, Rng(0, names[order])
    )
    for reading in _READINGS:
        here = _read(first, reading, subject.later, subject.ids)[order]
        there = _read(moved, reading, Outputs(subject.later.scores[order]), subject.ids)
        require(
            same(there, here, 1e-12), f"{subject.name}: {reading} must not depend on the order of the samples in bind"
        )


def _pure(subject: _Subject) -> None:
    kept = subject.clean.scores.clone(), subject.later.scores.clone(), subject.labels.clone()
    bound = subject.bind()
    for reading in _READINGS:
        first = _read(bound, reading, subject.later, subject.ids)
        second = _read(subject.bind(), reading, subject.later, subject.ids)
        require(same(first, second), f"{subject.name}: {reading} must be the same when asked again")
    untouched = zip(kept, (subject.clean.scores, subject.later.scores, subject.labels), strict=True)
    require(all(torch.equal(a, b) for a, b in untouched), f"{subject.name}: must not write into what it is given")


def _saturated(subject: _Subject) -> None:
    """Logits of +-1e4 and ties, in which k wins or loses; float32 and float64, as logits and as probabilities."""
    base = subject.later.scores * 1e4
    base[0] = 0
    for kind in (OutputKind.LOGITS, OutputKind.PROBABILITIES):
        for dtype in (torch.float32, torch.float64):
            scores = (base if kind is OutputKind.LOGITS else base.softmax(dim=1)).to(dtype)
            for clean in (scores, scores.flip(1)):
                _finite(subject, Outputs(clean, kind), scores)


def _finite(subject: _Subject, clean: Outputs, scores: Tensor) -> None:
    what = f"on saturated {clean.kind.value} ({scores.dtype})"
    bound, leaf = subject.bind(clean), scores.clone().requires_grad_()
    loss = _read(bound, "loss", Outputs(leaf, clean.kind), subject.ids)
    merit = _read(bound, "merit", Outputs(scores, clean.kind), subject.ids)
    finite = bool(torch.isfinite(loss).all() and torch.isfinite(merit).all())
    require(finite, f"{subject.name}: loss and merit must be finite {what}")
    if loss.requires_grad:
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        require(bool(torch.isfinite(gradient).all()), f"{subject.name}: the loss's gradient must be finite {what}")


def _gradient(subject: _Subject) -> None:
    bound = subject.bind()
    leaf = subject.later.scores.clone().requires_grad_()
    loss = _read(bound, "loss", Outputs(leaf), subject.ids)
    if not loss.requires_grad:
        require(
            subject.objective.access is Access.LABELS,
            f"{subject.name}: loss must be differentiable in the scores unless access is LABELS",
        )
        return
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    step = 1e-6
    for column in range(subject.classes):
        shift = torch.zeros_like(subject.later.scores)
        shift[:, column] = step
        up, down = (_read(bound, "loss", Outputs(subject.later.scores + sign * shift), subject.ids) for sign in (1, -1))
        slope = (up - down) / (2 * step)
        require(
            same(slope, gradient[:, column], 1e-4),
            f"{subject.name}: the gradient of loss must equal finite differences within 1e-4, "
            f"differs by {float((slope - gradient[:, column]).abs().max()):.2g} (K={subject.classes})",
        )


def _kinds(subject: _Subject) -> None:
    def probable(outputs: Outputs) -> Outputs:
        return Outputs(outputs.scores.softmax(dim=1), OutputKind.PROBABILITIES)

    first, second = subject.bind(), subject.bind(probable(subject.clean))
    for reading in _READINGS:
        by_logits = _read(first, reading, subject.later, subject.ids)
        by_probabilities = _read(second, reading, probable(subject.later), subject.ids)
        require(
            same(by_logits, by_probabilities, 1e-9),
            f"{subject.name}: {reading} must be the same for logits and for their probabilities",
        )


CHECKS: dict[str, Callable[[_Subject], None]] = {
    "shapes": _shapes,
    "rows": _rows,
    "binding": _binding,
    "pure": _pure,
    "saturated": _saturated,
    "gradient": _gradient,
    "kinds": _kinds,
}
"""Every check by name."""

__all__ = ["CHECKS", "CheckError", "check_objective"]
