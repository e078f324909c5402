"""Training on the images themselves: cross-entropy, its softened and tempered forms, calibration penalties."""

from __future__ import annotations

from dataclasses import dataclass

from poise.errors import InputError
from poise.targets import ModuleTarget
from poise.training.base import Batch, Forward, Terms, Views
from poise.training.inner import check_weight
from poise.training.losses import Convention, calibration_gap, mmce, smoothed_cross_entropy


class OnImages:
    """A method that needs no other versions of the images."""

    def views(self, target: ModuleTarget, batch: Batch) -> Views:
        return ()


@dataclass(frozen=True)
class Standard(OnImages):
    """Cross-entropy of softmax(z / temperature).

    Args:
        temperature: T, divides the logits in training alone; 1 is plain training. High-temperature training (Raina et
            al., ACL 2024) takes 20 to 200 and serves the network at 1. The logits grow by about T, so the network is
            overconfident when it is served, and is calibrated before it is attacked (`poise.illusion`).

    >>> import poise
    >>> from poise.training import Batch
    >>> target, data = poise.models.blank("builtin:digits"), poise.data.load("builtin:digits", samples=8)
    >>> method, batch = Standard(), Batch(data.images, data.labels, data.ids)
    >>> sorted(method.loss(target.module, batch, method.views(target, batch)))
    ['cross_entropy']
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"Standard: temperature must be a positive number, got {self.temperature}")

    def loss(self, forward: Forward, batch: Batch, views: Views) -> Terms:
        return {"cross_entropy": smoothed_cross_entropy(forward(batch.images) / self.temperature, batch.labels)}


def check_smoothing(name: str, convention: str, **given: float) -> None:
    """Refuses smoothings outside [0, 1] and unknown conventions."""
    for field, value in given.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name}: {field} must be in [0, 1], got {value}")
    if convention not in ("uniform", "others"):
        raise InputError(f"{name}: convention must be 'uniform' or 'others', got '{convention}'")


@dataclass(frozen=True)
class LabelSmoothing(OnImages):
    """Cross-entropy to softened labels (Szegedy et al., CVPR 2016).

    Args:
        smoothing: what is taken from the true class, in [0, 1].
        convention: "uniform" gives e/K to every class, the true one included (PyTorch's); "others" gives d/(K - 1) to
            the others alone (confidence thresholding, B.1.1).

    >>> import poise
    >>> from poise.training import Batch
    >>> target, data = poise.models.blank("builtin:digits"), poise.data.load("builtin:digits", samples=8)
    >>> method, batch = LabelSmoothing(0.1), Batch(data.images, data.labels, data.ids)
    >>> sorted(method.loss(target.module, batch, method.views(target, batch)))
    ['cross_entropy']
    """

    smoothing: float = 0.1
    convention: Convention = "uniform"

    def __post_init__(self) -> None:
        check_smoothing("LabelSmoothing", self.convention, smoothing=self.smoothing)

    def loss(self, forward: Forward, batch: Batch, views: Views) -> Terms:
        logits = forward(batch.images)
        return {"cross_entropy": smoothed_cross_entropy(logits, batch.labels, self.smoothing, self.convention)}


@dataclass(frozen=True)
class DCA(OnImages):
    """Cross-entropy plus weight * |accuracy - mean confidence| of the batch (Liang et al., 2020).

    Args:
        weight: lambda; 10 in the calibration-attack paper. The class that the paper used never multiplies by it, so
            its published rows are those of weight 1.
        patience: begin the penalty only after that share of the run, in [0, 1]; 0 as in the calibration-attack paper.

    The penalty is that of the images of one process: with several devices it is averaged over them.

    >>> import poise
    >>> from poise.training import Batch
    >>> target, data = poise.models.blank("builtin:digits"), poise.data.load("builtin:digits", samples=8)
    >>> method, batch = DCA(weight=10.0), Batch(data.images, data.labels, data.ids)
    >>> sorted(method.loss(target.module, batch, method.views(target, batch)))
    ['calibration_gap', 'cross_entropy']
    """

    weight: float = 10.0
    patience: float = 0.0

    def __post_init__(self) -> None:
        check_weight("DCA", weight=self.weight)
        if not 0 <= self.patience <= 1:
            raise InputError(f"DCA: patience must be in [0, 1], got {self.patience}")

    def loss(self, forward: Forward, batch: Batch, views: Views) -> Terms:
        logits = forward(batch.images)
        terms = {"cross_entropy": smoothed_cross_entropy(logits, batch.labels)}
        if batch.progress >= self.patience:
            terms["calibration_gap"] = self.weight * calibration_gap(logits, batch.labels)
        return terms


@dataclass(frozen=True)
class MMCE(OnImages):
    """Cross-entropy plus weight * MMCE of the batch (Kumar et al., ICML 2018).

    Args:
        weight: lambda, 1 to 4.
        weighted: MMCE_w, which balances right and wrong answers; False is MMCE_m.

    As `DCA` with several devices.

    >>> import poise
    >>> from poise.training import Batch
    >>> target, data = poise.models.blank("builtin:digits"), poise.data.load("builtin:digits", samples=8)
    >>> method, batch = MMCE(weight=2.0), Batch(data.images, data.labels, data.ids)
    >>> sorted(method.loss(target.module, batch, method.views(target, batch)))
    ['cross_entropy', 'mmce']
    """

    weight: float = 2.0
    weighted: bool = True

    def __post_init__(self) -> None:
        check_weight("MMCE", weight=self.weight)

    def loss(self, forward: Forward, batch: Batch, views: Views) -> Terms:
        logits = forward(batch.images)
        penalty = self.weight * mmce(logits, batch.labels, weighted=self.weighted)
        return {"cross_entropy": smoothed_cross_entropy(logits, batch.labels), "mmce": penalty}
