"""Does a target keep its contract? Run on ours in the tests, and usable on your own.

from poise.checks.targets import check_target
check_target(my_target, images)
"""

from __future__ import annotations

import torch
from torch import Tensor

from poise.checks.base import CheckError, global_generators_untouched, require, same
from poise.errors import InputError
from poise.targets.base import DifferentiableTarget, Target
from poise.types import Access, OutputKind, Outputs

_SLOPE_TOLERANCE = 0.05


def check_target(target: Target, images: Tensor, *, tolerance: float = 1e-4, stochastic: bool = False) -> None:
    """Runs every check of the target's contract (`poise.targets.base.Target`) on real images.

    Checked: the declaration; shape, kind and values of the answers; answers do not depend on the other rows, on their
    order or on earlier questions; nothing is written into; no global random state; `session` nests; and, where the
    target gives gradients, that they are those of each row's own loss.

    Args:
        target: under test; it is asked about ten times for `images`.
        images: (n, C, H, W) in the target's bounds, n at least 2; 4 are enough.
        tolerance: by how much a score may change with the batch, relative and absolute.
        stochastic: answers may differ from call to call; only what holds for any answer is checked.

    Raises:
        InputError: images that no target could be checked with.
        CheckError: an AssertionError with one line; the first promise that does not hold.

    >>> from poise import ModuleTarget
    >>> module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> check_target(ModuleTarget(module, num_classes=3), torch.rand(4, 1, 2, 2))
    """
    if images.ndim != 4 or len(images) < 2:
        raise InputError(f"check_target: images must be (n, C, H, W) with n at least 2, got {tuple(images.shape)}")
    subject = _Subject(target, images.detach().to(target.device), tolerance)
    _declaration(subject)
    for check in (_answers, _untouched) if stochastic else (_answers, _untouched, _rows, _again):
        check(subject)
    if target.access >= Access.GRADIENTS:
        _gradients(subject)
        if not stochastic:
            _slopes(subject)


class _Subject:
    """A target with images and names for them."""

    def __init__(self, target: Target, images: Tensor, tolerance: float) -> None:
        self.target = target
        self.name = type(target).__name__
        self.tolerance = tolerance
        low, high = target.bounds
        middle = (low + high) / 2
        self.images = middle + 0.9 * (images - middle)  # leaves room for finite differences
        self.ids = torch.arange(len(images), device=target.device) * 5 + 2

    def ask(self, rows: Tensor | None = None) -> Outputs:
        rows = torch.arange(len(self.ids), device=self.ids.device) if rows is None else rows
        return self.target.query(self.images[rows].clone(), self.ids[rows])


def _declaration(subject: _Subject) -> None:
    target, name = subject.target, subject.name
    require(isinstance(target, Target), f"{name}: must have the attributes and methods of poise.targets.Target")
    require(isinstance(target.kind, OutputKind), f"{name}: kind must be an OutputKind, got {target.kind!r}")
    require(isinstance(target.access, Access), f"{name}: access must be an Access, got {target.access!r}")
    require(target.bounds[0] < target.bounds[1], f"{name}: bounds must be (low, high), got {target.bounds}")
    require(target.num_classes >= 2, f"{name}: num_classes must be at least 2, got {target.num_classes}")
    require(target.batch_size >= 1, f"{name}: batch_size must be at least 1, got {target.batch_size}")
    require(
        target.access < Access.GRADIENTS or isinstance(target, DifferentiableTarget),
        f"{name}: access 'gradients' is declared, so gradient(x, ids, loss) must exist",
    )


def _answers(subject: _Subject) -> None:
    target, name = subject.target, subject.name
    answer = subject.ask()
    scores, shape = answer.scores, (len(subject.ids), target.num_classes)
    require(
        answer.kind is target.kind, f"{name}: answers must be {target.kind.value} as declared, got {answer.kind.value}"
    )
    require(tuple(scores.shape) == shape, f"{name}: scores must be {shape}, got {tuple(scores.shape)}")
    require(scores.is_floating_point(), f"{name}: scores must be floats, got {scores.dtype}")
    require(not scores.requires_grad, f"{name}: scores must carry no autograd graph")
    require(bool(torch.isfinite(scores).all()), f"{name}: scores must be finite")
    if target.kind is not OutputKind.LOGITS:
        distributed = bool((scores >= 0).all()) and same(scores.sum(dim=1), torch.ones(len(scores)), 1e-3)
        require(distributed, f"{name}: {target.kind.value} must be non-negative rows of sum 1")
    if target.kind is OutputKind.LABELS:
        require(bool(((scores == 0) | (scores == 1)).all()), f"{name}: labels must be answered as one-hot rows")


def _untouched(subject: _Subject) -> None:
    points, ids = subject.images.clone(), subject.ids.clone()
    with global_generators_untouched(subject.name):
        subject.target.query(points, ids)
        with subject.target.session(), subject.target.session():
            subject.target.query(points, ids)
    require(torch.equal(points, subject.images), f"{subject.name}: query must not write into the points")
    require(torch.equal(ids, subject.ids), f"{subject.name}: query must not write into the ids")


def _rows(subject: _Subject) -> None:
    whole = subject.ask().scores
    backwards = torch.arange(len(whole) - 1, -1, -1, device=whole.device)
    for what, rows in (("order", backwards), ("number", backwards[:1]), ("number", backwards[1:])):
        part = subject.ask(rows).scores
        require(
            same(part, whole[rows], subject.tolerance),
            f"{subject.name}: a row's scores must not depend on the {what} of the rows asked, "
            f"differ by {float((part - whole[rows]).abs().max()):.2g}",
        )


def _again(subject: _Subject) -> None:
    first = subject.ask().scores
    with subject.target.session():
        second, third = subject.ask().scores, subject.ask().scores
    agree = same(first, second, subject.tolerance) and same(second, third, subject.tolerance)
    require(agree, f"{subject.name}: the same question must get the same answer (a random model: stochastic=True)")


def _pull(subject: _Subject, images: Tensor, ids: Tensor) -> tuple[Outputs, Tensor]:
    assert isinstance(subject.target, DifferentiableTarget)
    return subject.target.gradient(images.clone(), ids, lambda answer: _loss(answer))


def _loss(answer: Outputs) -> Tensor:
    """Cross-entropy to class 0."""
    return -answer.log_probabilities[:, 0]


def _gradients(subject: _Subject) -> None:
    name, images = subject.name, subject.images
    with global_generators_untouched(name):
        answer, gradient = _pull(subject, images, subject.ids)
    require(
        gradient.shape == images.shape and gradient.dtype == images.dtype,
        f"{name}: gradients must be {tuple(images.shape)} {images.dtype}, got {tuple(gradient.shape)} {gradient.dtype}",
    )
    require(bool(torch.isfinite(gradient).all()), f"{name}: gradients must be finite")
    clear = not gradient.requires_grad and not answer.scores.requires_grad
    require(clear, f"{name}: gradients and their answers must carry no autograd graph")


def _slopes(subject: _Subject) -> None:
    """Along its gradient a row's loss must change by the gradient's length; other rows must not matter."""
    name, images, ids = subject.name, subject.images, subject.ids
    answer, gradient = _pull(subject, images, ids)
    require(same(answer.scores, subject.ask().scores, subject.tolerance), f"{name}: gradient must answer as query does")
    _, alone = _pull(subject, images[1:2], ids[1:2])
    scale = float(gradient[1].abs().max()) or 1.0
    require(
        same(alone[0] / scale, gradient[1] / scale, 10 * subject.tolerance),
        f"{name}: a row's gradient must be that of its own loss, whatever other rows are asked",
    )
    length = gradient.flatten(1).norm(dim=1)
    moving = length > 1e-6
    if not bool(moving.any()):
        return
    low, high = subject.target.bounds
    direction = gradient / length.clamp_min(1e-30).view(-1, 1, 1, 1)
    reach = 0.01 * (high - low)
    up, down = (_loss(subject.target.query(images + sign * reach * direction, ids)) for sign in (1, -1))
    slope = ((up - down) / (2 * reach)).to(length.dtype)
    ratio = float((slope[moving] / length[moving]).median())
    require(
        abs(ratio - 1) <= _SLOPE_TOLERANCE,
        f"{name}: the loss must rise along its gradient by the gradient's length (within 5 %), got {ratio:.3g} of it",
    )


__all__ = ["CheckError", "check_target"]
