"""Training on noisy and on mixed images: the regularisers of confidence thresholding, mixup."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from poise.errors import InputError
from poise.rng import mix_int
from poise.targets import ModuleTarget
from poise.training.base import Batch, Forward, Terms, Views
from poise.training.inner import check_weight
from poise.training.losses import Convention, smoothed_cross_entropy
from poise.training.methods.plain import check_smoothing
from poise.training.noise import gaussian


@dataclass(frozen=True)
class NoisyPairing:
    """CE(z(x), smooth(y, d)) + CE(z(x + n), smooth(y, d')) + weight * MSE(z(x), z(x + n)).

    Goodfellow et al., An Evaluation of Confidence Thresholding for Rejecting Adversarial Examples, Appendix B:
    extreme and variable label smoothing, and noisy logit pairing. MSE is the mean over all entries.

    Args:
        clean, noisy: d and d', what is taken from the true class; .3 and .4 on MNIST, 1/4 and 3/4 on CIFAR-10.
        weight: of the pairing; 1 on MNIST, 1.2 on CIFAR-10, 0 leaves label smoothing alone.
        std: of the Gaussian noise in pixel units. The paper's MNIST lies in [-1, 1] with noise of 1: .5 here; its
            CIFAR-10 in [0, 255] with 8: 8/255.
        clip: move noisy images into [0, 1]; the paper does on CIFAR-10 and not on MNIST.
        convention: of the smoothing; the paper's is "others".

    >>> import poise
    >>> from poise.training import Batch
    >>> target, data = poise.models.blank("builtin:digits"), poise.data.load("builtin:digits", samples=8)
    >>> method, batch = NoisyPairing(std=8 / 255, clip=True), Batch(data.images, data.labels, data.ids)
    >>> sorted(method.loss(target.module, batch, method.views(target, batch)))
    ['cross_entropy', 'noisy', 'pairing']
    """

    clean: float = 0.3
    noisy: float = 0.4
    weight: float = 1.0
    std: float = 0.5
    clip: bool = False
    convention: Convention = "others"

    def __post_init__(self) -> None:
        check_smoothing("NoisyPairing", self.convention, clean=self.clean, noisy=self.noisy)
        check_weight("NoisyPairing", weight=self.weight, std=self.std)

    def views(self, target: ModuleTarget, batch: Batch) -> Views:
        return (gaussian(batch, self.std, clip=self.clip),)

    def loss(self, forward: Forward, batch: Batch, views: Views) -> Terms:
        clean, noisy = forward(batch.images), forward(views[0])
        return {
            "cross_entropy": smoothed_cross_entropy(clean, batch.labels, self.clean, self.convention),
            "noisy": smoothed_cross_entropy(noisy, batch.labels, self.noisy, self.convention),
            "pairing": self.weight * F.mse_loss(clean, noisy),
        }


@dataclass(frozen=True)
class Mixup:
    """lam CE(f(x~), y_i) + (1 - lam) CE(f(x~), y_j) at x~ = lam x_i + (1 - lam) x_j (Zhang et al., ICLR 2018).

    Args:
        alpha: lam ~ Beta(alpha, alpha); .2 to .4 where calibration counts (Thulasidasan et al., NeurIPS 2019). 0 is
            lam = 1, plain training.
        per_sample: draw lam for every sample instead of once per batch.

    >>> import poise
    >>> from poise.training import Batch
    >>> target, data = poise.models.blank("builtin:digits"), poise.data.load("builtin:digits", samples=8)
    >>> method, batch = Mixup(alpha=0.2), Batch(data.images, data.labels, data.ids)
    >>> sorted(method.loss(target.module, batch, method.views(target, batch)))
    ['mixed']
    """

    alpha: float = 0.2
    per_sample: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < float("inf"):
            raise InputError(f"Mixup: alpha must be a number of at least 0, got {self.alpha}")

    def partners(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """lam (b,) and the row j (b,) that each image is mixed with: functions of seed, step and sample names."""
        order = batch.rng.bits("mixup-order", batch.step, batch.rows, ()).argsort()
        partner = torch.empty_like(order)
        partner[order] = order.roll(1)
        count = len(batch.labels)
        if self.alpha == 0:
            return torch.ones(count, device=batch.labels.device), partner
        draws = np.random.default_rng([mix_int(batch.seed), batch.step])
        drawn = torch.as_tensor(
            draws.beta(self.alpha, self.alpha, count if self.per_sample else 1), dtype=torch.float32
        )
        lam = torch.empty(count, device=batch.labels.device)
        lam[order] = drawn.to(lam.device).expand(count)  # in the order of the names, not of the rows
        return lam, partner

    def views(self, target: ModuleTarget, batch: Batch) -> Views:
        lam, partner = self.partners(batch)
        share = lam.view(-1, 1, 1, 1).to(batch.images.dtype)
        return (share * batch.images + (1 - share) * batch.images[partner],)

    def loss(self, forward: Forward, batch: Batch, views: Views) -> Terms:
        lam, partner = self.partners(batch)
        log_p = forward(views[0]).log_softmax(dim=1)
        own, other = (log_p.gather(1, labels[:, None])[:, 0] for labels in (batch.labels, batch.labels[partner]))
        return {"mixed": -(lam * own + (1 - lam) * other).mean()}
