"""Training against wrong labels: adversarial training, TRADES, RobustAugMix, CCAT."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from poise.errors import InputError
from poise.objectives import CrossEntropy, KLDivergence, MaxConfidence
from poise.searches import PGD, MomentumPGD
from poise.targets import ModuleTarget
from poise.training.base import Batch, Forward, Terms, Views
from poise.training.inner import Inner, check_weight, inner_ball
from poise.training.losses import (
    jensen_shannon,
    kl_divergence,
    smoothed_cross_entropy,
    soft_cross_entropy,
)
from poise.training.noise import augmix


@dataclass(frozen=True)
class AT:
    """Adversarial training: cross-entropy at the point where it is highest (Madry et al., ICLR 2018).

    Args:
        eps, norm: the ball, in pixel units.
        step, steps: of the PGD inside, in the units of eps.
        random_start: begin at a random point of the ball.
        clean_weight: share of the clean images' cross-entropy in the loss, in [0, 1]; 0 trains on attacked images
            alone, 1/2 is PNI's.
        after: number of epochs without attacked images at the beginning; 5 with PNI.
        temperature: T, divides the logits in the loss, as in `Standard`.

    Of the points that PGD visits the driver keeps the one with the lowest margin, where the papers take the last.

    >>> import poise
    >>> from poise.training import Batch
    >>> target, data = poise.models.blank("builtin:digits"), poise.data.load("builtin:digits", samples=8)
    >>> method, batch = AT(eps=0.1, step=0.05, steps=2), Batch(data.images, data.labels, data.ids)
    >>> sorted(method.loss(target.module, batch, method.views(target, batch)))
    ['attacked']
    """

    eps: float = 8 / 255
    step: float = 2 / 255
    steps: int = 10
    norm: str = "linf"
    random_start: bool = True
    clean_weight: float = 0.0
    after: int = 0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        inner_ball("AT", self.norm, self.eps, self.steps, self.step)
        if not 0 <= self.clean_weight <= 1:
            raise InputError(f"AT: clean_weight must be in [0, 1], got {self.clean_weight}")
        if self.after < 0:
            raise InputError(f"AT: after must be a number of epochs of at least 0, got {self.after}")

    @property
    def inner(self) -> Inner:
        """The attack inside."""
        search = PGD(self.steps, self.step, random_start=self.random_start, undo=False)
        return Inner(CrossEntropy(), search, inner_ball("AT", self.norm, self.eps, self.steps, self.step))

    def views(self, target: ModuleTarget, batch: Batch) -> Views:
        return (self.inner.points(target, batch),) if batch.epoch >= self.after else ()

    def loss(self, forward: Forward, batch: Batch, views: Views) -> Terms:
        share = self.clean_weight if views else 1.0
        terms = {}
        if share:
            clean = smoothed_cross_entropy(forward(batch.images) / self.temperature, batch.labels)
            terms["cross_entropy"] = share * clean
        if share < 1:
            attacked = smoothed_cross_entropy(forward(views[0]) / self.temperature, batch.labels)
            terms["attacked"] = (1 - share) * attacked
        return terms


@dataclass(frozen=True)
class TRADES:
    """CE(f(x), y) + beta * KL(p(x) || p(x')), x' where that divergence is highest (Zhang et al., ICML 2019).

    Args:
        eps, norm, step, steps: of the PGD inside; .031, .007 and 10 in its CIFAR-10 script.
        beta: weight; 6 in that script. With 0 this is `Standard`, pass for pass.
        jitter: standard deviation of the Gaussian noise that the search starts from; at x itself the slope is 0.

    Gradients flow through both answers.

    >>> import poise
    >>> from poise.training import Batch
    >>> target, data = poise.models.blank("builtin:digits"), poise.data.load("builtin:digits", samples=8)
    >>> method, batch = TRADES(eps=0.1, step=0.05, steps=2), Batch(data.images, data.labels, data.ids)
    >>> sorted(method.loss(target.module, batch, method.views(target, batch)))
    ['cross_entropy', 'divergence']
    """

    eps: float = 8 / 255
    step: float = 2 / 255
    steps: int = 10
    norm: str = "linf"
    beta: float = 6.0
    jitter: float = 1e-3

    def __post_init__(self) -> None:
        inner_ball("TRADES", self.norm, self.eps, self.steps, self.step)
        check_weight("TRADES", beta=self.beta, jitter=self.jitter)
        if self.beta and not self.jitter:
            raise InputError("TRADES: jitter must be above 0, since the slope is 0 at the image itself, got 0")

    @property
    def inner(self) -> Inner:
        """The attack inside."""
        search = PGD(self.steps, self.step, jitter=self.jitter, undo=False)
        return Inner(KLDivergence(), search, inner_ball("TRADES", self.norm, self.eps, self.steps, self.step))

    def views(self, target: ModuleTarget, batch: Batch) -> Views:
        return (self.inner.points(target, batch),) if self.beta else ()

    def loss(self, forward: Forward, batch: Batch, views: Views) -> Terms:
        natural = forward(batch.images)
        terms = {"cross_entropy": smoothed_cross_entropy(natural, batch.labels)}
        if views:
            terms["divergence"] = self.beta * kl_divergence(natural, forward(views[0]))
        return terms


@dataclass(frozen=True)
class RobustAugMix:
    """CE(f(x), y) + weight * Jensen-Shannon divergence of the answers to clean, attacked (and mixed) images.

    Args:
        eps, norm, step, steps: of the PGD on the cross-entropy inside. The original takes l2 with eps 1, 7 steps of
            2.5/7; the UAT paper compares with linf.
        weight: lambda, 12.
        mixed: also show an AugMix version (Hendrycks et al., ICLR 2020), as the original does; the UAT paper leaves
            it out. Needs the extra `vision`.

    >>> import poise
    >>> from poise.training import Batch
    >>> target, data = poise.models.blank("builtin:digits"), poise.data.load("builtin:digits", samples=8)
    >>> method, batch = RobustAugMix(eps=0.1, step=0.05, steps=2), Batch(data.images, data.labels, data.ids)
    >>> sorted(method.loss(target.module, batch, method.views(target, batch)))
    ['cross_entropy', 'divergence']
    """

    eps: float = 8 / 255
    step: float = 2 / 255
    steps: int = 10
    norm: str = "linf"
    weight: float = 12.0
    mixed: bool = False

    def __post_init__(self) -> None:
        inner_ball("RobustAugMix", self.norm, self.eps, self.steps, self.step)
        check_weight("RobustAugMix", weight=self.weight)

    @property
    def inner(self) -> Inner:
        """The attack inside."""
        search = PGD(self.steps, self.step, random_start=True, undo=False)
        return Inner(CrossEntropy(), search, inner_ball("RobustAugMix", self.norm, self.eps, self.steps, self.step))

    def views(self, target: ModuleTarget, batch: Batch) -> Views:
        attacked = self.inner.points(target, batch)
        return (attacked, augmix(batch)) if self.mixed else (attacked,)

    def loss(self, forward: Forward, batch: Batch, views: Views) -> Terms:
        answers = [forward(images) for images in (batch.images, *views)]
        divergence = self.weight * jensen_shannon(answers)
        return {"cross_entropy": smoothed_cross_entropy(answers[0], batch.labels), "divergence": divergence}


@dataclass(frozen=True)
class CCAT:
    """Confidence-calibrated adversarial training (Stutz, Hein & Schiele, ICML 2020).

    One half of a batch stays clean, the other is moved to where a wrong class is surest, with labels that fade to
    uniform as the change grows: (1 - g) one-hot + g / K, g = 1 - (1 - min(1, ||x' - x|| / eps))^rho.

    Args:
        eps, norm: the ball. step, steps: of the attack, PGD with momentum that goes back where it has not gained and
            divides its step by 1.5.
        rho: how fast labels fade; 10.
        clean_share: share of the batch that stays clean, in [0, 1].

    >>> import poise
    >>> from poise.training import Batch
    >>> target, data = poise.models.blank("builtin:digits"), poise.data.load("builtin:digits", samples=8)
    >>> method, batch = CCAT(eps=0.1, step=0.05, steps=2), Batch(data.images, data.labels, data.ids)
    >>> sorted(method.loss(target.module, batch, method.views(target, batch)))
    ['attacked', 'cross_entropy']
    """

    eps: float = 8 / 255
    step: float = 2 / 255
    steps: int = 10
    norm: str = "linf"
    rho: float = 10.0
    clean_share: float = 0.5

    def __post_init__(self) -> None:
        inner_ball("CCAT", self.norm, self.eps, self.steps, self.step)
        check_weight("CCAT", rho=self.rho)
        if not 0 <= self.clean_share <= 1:
            raise InputError(f"CCAT: clean_share must be in [0, 1], got {self.clean_share}")

    @property
    def inner(self) -> Inner:
        """The attack inside."""
        search = MomentumPGD(self.steps, self.step, decay=0.9, random_start=True, backtrack=1.5)
        ball = inner_ball("CCAT", self.norm, self.eps, self.steps, self.step)
        return Inner(MaxConfidence(tol=0), search, ball)

    def _clean(self, batch: Batch) -> int:
        return round(self.clean_share * len(batch.labels))

    def views(self, target: ModuleTarget, batch: Batch) -> Views:
        rest = batch.part(slice(self._clean(batch), None))
        return (self.inner.points(target, rest) if len(rest.labels) else rest.images,)

    def loss(self, forward: Forward, batch: Batch, views: Views) -> Terms:
        clean = self._clean(batch)
        logits = forward(torch.cat([batch.images[:clean], views[0]]))
        share, terms = clean / len(batch.labels), {}
        if clean:
            terms["cross_entropy"] = share * smoothed_cross_entropy(logits[:clean], batch.labels[:clean])
        if share < 1:
            targets = self.targets(batch.images[clean:], views[0], batch.labels[clean:], logits.shape[1])
            terms["attacked"] = (1 - share) * soft_cross_entropy(logits[clean:], targets)
        return terms

    def targets(self, clean: Tensor, moved: Tensor, labels: Tensor, classes: int) -> Tensor:
        """(b, K) the faded labels of moved images."""
        ball = inner_ball("CCAT", self.norm, self.eps, self.steps, self.step)
        far = (ball.distance(moved, clean) / self.eps).clamp_max(1) if self.eps else torch.zeros_like(labels).float()
        g = 1 - (1 - far) ** self.rho
        return (1 - g)[:, None] * F.one_hot(labels, classes) + g[:, None] / classes
