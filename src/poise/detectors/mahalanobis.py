"""Distance to the nearest of the classes' Gaussians, in every layer: attacked images lie far from all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poise.detectors.base import Batches, Detector, Features, Images, Labelled, stream
from poise.detectors.taps import Read, pooled, tapped, wide
from poise.errors import InputError, NotFittedError

MAGNITUDES = (0.0, 0.01, 0.005, 0.002, 0.0014, 0.001, 0.0005)


@dataclass(frozen=True, eq=False)
class TiedGaussians:
    """One Gaussian per class with a common covariance.

    Args:
        means: (K, F) float64.
        precision: (F, F) float64, the inverse of the covariance; its pseudo-inverse where it is singular.
    """

    means: Tensor
    precision: Tensor

    @classmethod
    def fit(cls, features: NDArray[np.floating], labels: NDArray[np.integer], num_classes: int) -> TiedGaussians:
        """Class means by true label, and the pooled covariance of what is left, divided by the number of rows.

        Lee et al. 2018, eq. 1. scikit-learn's `EmpiricalCovariance` centres the residuals again (by a mean of 0) and
        inverts with a pseudo-inverse, so that dead or doubled features do no harm.

        Args:
            features: (n, F).
            labels: (n,) in 0..num_classes-1; every class at least once.
            num_classes: K.

        Raises:
            InputError: a class without a row.

        >>> cross = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
        >>> both = TiedGaussians.fit(np.concatenate([cross, cross + [5, 0]]), np.repeat([0, 1], 4), 2)
        >>> both.scores(torch.tensor([[1.0, 1.0]], dtype=torch.float64))
        tensor([[ -2., -17.]], dtype=torch.float64)
        """
        from sklearn.covariance import EmpiricalCovariance

        counts = np.bincount(labels, minlength=num_classes)
        if (counts[:num_classes] == 0).any():
            missing = np.flatnonzero(counts[:num_classes] == 0)
            raise InputError(
                f"mahalanobis: the reference must hold each of the {num_classes} classes, "
                f"got none of class {missing[0]} ({len(missing)} missing)"
            )
        rows = features.astype(np.float64)
        means = np.stack([rows[labels == k].mean(axis=0) for k in range(num_classes)])
        precision = EmpiricalCovariance().fit(rows - means[labels]).precision_
        return cls(torch.from_numpy(means), torch.from_numpy(np.ascontiguousarray(precision)))

    def scores(self, features: Tensor) -> Tensor:
        """(n, F) to (n, K): -(f - mu_k)^T P (f - mu_k) / 2."""
        means, precision = self.means.to(features), self.precision.to(features)
        away = (features - mean for mean in means)
        return torch.stack([-((gap @ precision) * gap).sum(dim=1) / 2 for gap in away], dim=1)


class Mahalanobis(Detector):
    """Mahalanobis confidence of every layer, after a small step that raises it.

    Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks", 2018.
    Features are averaged over space; per layer M(x) = max_c -(f - mu_c)^T P (f - mu_c) / 2. Pre-processing: with the
    nearest class at x held fixed, x' = x - m sign(grad_x -M) with sign(0) = 1, each layer for itself, then the maximum
    over all classes at x'. The score of every layer at x' goes into the regression.

    The step is in pixel units: Lee's code divides it by the normalisation's deviation because its images are normalised
    already; here the normalisation is inside the target. As there, x' is not clipped to the bounds.

    Args:
        magnitudes: candidates of m, each at least 0; 0 is no step.
        layers, scale, max_iter, batch_size: as in `Detector`.

    Attributes (after `bind`):
        gaussians: of each layer, from the labelled reference.

    Raises:
        InputError: a negative magnitude; from `fit`: no labels, or a class without an image.

    >>> import poise
    >>> from poise.detectors import gaussian_noise, perturbation_rms
    >>> target, data = poise.models.load("builtin:digits"), poise.data.load("builtin:digits", samples=40)
    >>> attacked = poise.run_recipe("fgsm", target, data.images, data.labels, eps=0.2).images
    >>> noisy = gaussian_noise(data.images, perturbation_rms(data.images, attacked))
    >>> train = poise.data.load("builtin:digits", split="train", samples=200)
    >>> detector = Mahalanobis(magnitudes=(0.0,)).fit(target, data.images, noisy, attacked, reference=train)
    >>> detector.score(attacked).shape
    (40,)
    """

    name: ClassVar[str] = "mahalanobis"
    paper: ClassVar[str] = "Lee et al. 2018"

    def __init__(
        self,
        magnitudes: Sequence[float] = MAGNITUDES,
        *,
        layers: Sequence[str] | None = None,
        scale: bool | None = None,
        max_iter: int = 1000,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(layers=layers, scale=scale, max_iter=max_iter, batch_size=batch_size)
        if not magnitudes or not all(0 <= m < float("inf") for m in magnitudes):
            raise InputError(f"mahalanobis: magnitudes must be at least 0 and finite, got {tuple(magnitudes)}")
        self.needs_reference = True
        self.candidates = tuple(dict.fromkeys(float(m) for m in magnitudes))
        self.gaussians: list[TiedGaussians] = []

    def _bind(self, clean: Images, reference: Labelled | None) -> None:
        source = clean if reference is None else reference
        if isinstance(source, Tensor):
            raise InputError("mahalanobis: class means need labels, give reference=(images, labels), got images alone")
        classes = self._module().num_classes
        images, labels = _labelled(source, classes)
        self.gaussians = [TiedGaussians.fit(part, labels, classes) for part in self._layers_of(images)]

    def features(
        self, images: Images, candidates: Sequence[float] | None = None, *, beside: Images | None = None
    ) -> Features:
        """For each magnitude the score M at every layer (n, L); see `Detector.features`."""
        if not self.gaussians:
            raise NotFittedError("mahalanobis: must know its model first, call bind or fit")
        wanted, target = self.candidates if candidates is None else tuple(candidates), self._module()
        size, tap = self.batch_size or target.batch_size, tapped(target.module, self.read_layers, pooled)
        with target.session(0), torch.inference_mode(False), tap as read:
            batches = (batch.detach().to(target.device).clone() for batch in stream(images, size))
            parts = [self._of_batch(read, batch, wanted) for batch in batches]
        return {m: np.concatenate([part[m] for part in parts]) for m in wanted}

    def _of_batch(self, read: Read, points: Tensor, wanted: Sequence[float]) -> dict[float, NDArray[np.float64]]:
        """One pass and a gradient per layer, then one pass per layer and magnitude."""
        steps = any(wanted)
        columns: dict[float, list[Tensor]] = {m: [] for m in wanted}
        with torch.set_grad_enabled(steps):
            values = read(points.requires_grad_(steps))
            plain = [gaussian.scores(wide(f)) for gaussian, f in zip(self.gaussians, values, strict=True)]
        for at, scores in enumerate(plain):
            sign = _upwards(scores, points) if steps else points
            for m in wanted:
                at_m = scores.detach().amax(dim=1) if m == 0 else self._at(read, points.detach() - m * sign, at)
                columns[m].append(at_m)
        return {m: torch.stack(found, dim=1).cpu().numpy().astype(np.float64) for m, found in columns.items()}

    @torch.no_grad()
    def _at(self, read: Read, points: Tensor, at: int) -> Tensor:
        """(n,) the score of one layer."""
        return self.gaussians[at].scores(wide(read(points, self.read_layers[at])[0])).amax(dim=1)


def _upwards(scores: Tensor, points: Tensor) -> Tensor:
    """sign(grad -M) with sign(0) = 1, like points; a layer that does not depend on them has a gradient of 0."""
    if not scores.requires_grad:
        return torch.ones_like(points)
    (slope,) = torch.autograd.grad(-scores.amax(dim=1).sum(), points, retain_graph=True, allow_unused=True)
    return torch.ones_like(points) if slope is None else torch.where(slope >= 0, 1.0, -1.0).to(points)


def _labelled(source: Labelled, classes: int) -> tuple[Images, NDArray[np.int64]]:
    """The images, and their labels checked."""
    if isinstance(source, tuple):
        images: Images = source[0]
        labels, n = source[1].cpu().numpy(), len(source[0])
    else:
        if not isinstance(source, Batches):
            raise InputError(f"mahalanobis: the reference must have batches(), got {type(source).__name__}")
        images = source
        labels = np.concatenate([part.numpy() for _, part, _ in source.batches()])
        n = len(labels)
    if len(labels) != n or n == 0 or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"mahalanobis: the reference must have a label in 0..{classes - 1} for each of its {n} images")
    return images, labels.astype(np.int64)
