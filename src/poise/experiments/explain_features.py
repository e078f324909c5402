"""Penultimate features before and after attacks, in two dimensions: t-SNE and principal components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from poise.defenses import last_linear
from poise.defenses.features import features_and_logits
from poise.errors import InputError
from poise.experiments.explain_cams import untouched

PERPLEXITY = 30.0
"""The default of t-SNE; the paper does not state its own."""

KEPT = 50
"""Principal components that t-SNE starts from, as is usual."""

FEWEST = 8
"""Points, over all versions of the images, below which there is nothing to see."""

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Embedding:
    """Features of several versions of the same images in two dimensions, all versions in one frame.

    Args:
        tsne, pca: by version, (n, 2).
        variance: share of the variance in the first and second principal component.
        perplexity: of t-SNE.
        separation: by version, the mean silhouette of the predicted classes in all dimensions, in [-1, 1]; None where
            one class alone is predicted.

    >>> import numpy as np
    >>> from poise.experiments.explain_features import embed
    >>> features, classes = np.random.default_rng(0).normal(size=(30, 5)), np.arange(30) % 3
    >>> found = embed({"clean": features}, {"clean": classes}, seed=0)
    >>> isinstance(found, Embedding), found.tsne["clean"].shape
    (True, (30, 2))
    """

    tsne: dict[str, Matrix]
    pca: dict[str, Matrix]
    variance: tuple[float, float]
    perplexity: float
    separation: dict[str, float | None]


def features(model: nn.Module, images: Tensor, *, batch_size: int) -> tuple[str, Matrix, Tensor]:
    """What the last linear layer is given: its name, the features (n, F) and the logits (n, K).

    Raises:
        InputError: the model has no linear layer, or one that runs more than once in a pass.
    """
    with untouched(model), torch.no_grad():
        layer = last_linear(model, images[:1])
        if layer is None:
            raise InputError("features: the model must have a linear layer, got none")
        parts = [features_and_logits(model, layer, part, side="input") for part in torch.split(images, batch_size)]
    found, logits = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    return layer, found.double().numpy(), logits


def embed(found: Mapping[str, Matrix], predicted: Mapping[str, NDArray[np.int64]], *, seed: int) -> Embedding:
    """Features of all versions in the same two dimensions, so that panels can be compared.

    Obadinma et al., Calibration Attacks, Fig. 5 shows t-SNE of each version; here one embedding holds all of them.
    Exactly repeatable: one thread, a fixed seed, started from the principal components.

    Args:
        found: features (n, F) by version, F >= 2.
        predicted: predicted classes (n,) by version.
        seed: of t-SNE.

    Raises:
        InputError: fewer than 8 points or 2 features, or features that do not differ.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> features, classes = rng.normal(size=(30, 5)), np.arange(30) % 3
    >>> predicted = {"clean": classes, "attacked": classes}
    >>> found = embed({"clean": features, "attacked": features + 1}, predicted, seed=0)
    >>> found.pca["attacked"].shape
    (30, 2)
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    points = np.concatenate(list(found.values()))
    if len(points) < FEWEST or points.shape[1] < 2 or not np.ptp(points, axis=0).any():
        raise InputError(f"features: must be at least {FEWEST} different points of 2 features, got {points.shape}")
    components = PCA(min(KEPT, *points.shape), svd_solver="full").fit(points)
    reduced = components.transform(points)
    perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
    method = TSNE(2, init="pca", perplexity=perplexity, random_state=seed % 2**32, n_jobs=1)
    flat, edges = method.fit_transform(reduced), np.cumsum([len(part) for part in found.values()])[:-1]
    share = components.explained_variance_ratio_
    return Embedding(
        tsne=dict(zip(found, np.split(np.asarray(flat, dtype=np.float64), edges), strict=True)),
        pca=dict(zip(found, np.split(reduced[:, :2], edges), strict=True)),
        variance=(float(share[0]), float(share[1])),
        perplexity=perplexity,
        separation={name: separation(part, predicted[name]) for name, part in found.items()},
    )


def separation(points: Matrix, predicted: NDArray[np.int64]) -> float | None:
    """Mean silhouette of the predicted classes: near 1 where they lie apart, near 0 where they touch.

    Rousseeuw 1987, Euclidean, as scikit-learn computes it. None where it is undefined: one class, or one point each.

    >>> apart = np.array([[0.0, 0.0], [0.0, 1.0], [99.0, 0.0], [99.0, 1.0]])
    >>> round(separation(apart, np.array([3, 3, 7, 7])), 2)
    0.99
    """
    from sklearn.metrics import silhouette_score

    if not 2 <= len(np.unique(predicted)) < len(points):
        return None
    value: Any = silhouette_score(points, predicted)
    return float(value)
