"""Local intrinsic dimension of activations: attacked images lie where the neighbourhood grows faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from poise.detectors.base import Detector, Features, FloatArray, Images, Labelled, first
from poise.errors import InputError, NotFittedError

NEIGHBOURS = (10, 20, 30, 40, 50, 60, 70, 80, 90)
MINIBATCH = 100
FLOOR = 1e-12
"""Distances are at least this large before their logarithm: copies of a point would give ln 0."""

HIGHEST = 1000.0
"""The estimate where all distances are equal, which would be infinite, and the highest one."""


def local_dimension(distances: FloatArray) -> FloatArray:
    """Maximum-likelihood estimate of the local intrinsic dimension, Ma et al. 2018, eq. 4.

    LID = -k / sum_i ln(r_i / r_k), with the zero term i = k included.

    Args:
        distances: (..., k) to the k nearest neighbours, ascending, k >= 1.

    Returns:
        (...,) in [0, 1000]: 0 where all k neighbours are copies of the point, 1000 where all distances are equal.

    >>> local_dimension(np.array([[1.0, 2.0, 4.0], [3.0, 3.0, 3.0]]))
    array([   1.44269504, 1000.        ])
    """
    if distances.ndim == 0 or distances.shape[-1] == 0:
        raise InputError(f"local_dimension: must have at least one distance, got shape {distances.shape}")
    radii = np.maximum(distances, FLOOR)
    logs = np.log(radii / radii[..., -1:]).sum(axis=-1)
    found = np.full(logs.shape, HIGHEST)
    np.divide(-distances.shape[-1], logs, out=found, where=logs < 0)
    result: FloatArray = np.where(distances[..., -1] <= FLOOR, 0.0, np.minimum(found, HIGHEST))
    return result


class LID(Detector):
    """Local intrinsic dimension of every layer's activations among those of a minibatch of clean images.

    Ma et al., "Characterizing Adversarial Subspaces Using Local Intrinsic Dimensionality", 2018, as in Lee et al.'s
    code: activations are averaged over space; Euclidean distances to 100 clean points; the smallest one is dropped;
    the next k give `local_dimension`; one number per layer goes into the regression.

    In the published evaluation the clean minibatch of an image holds its own clean version, whose distance is usually
    the one that is dropped: the detector is told what the image was before. `fit` does so too, as its arguments belong
    together row by row. `score(images)` has no such knowledge: it compares with the first clean minibatch of `fit`.
    For the published figures use `features(images, beside=clean)` and `judge`. With `apart` nothing is told at any
    time: neighbours come from the reference, which no other image was made of, in `fit` as well.

    Args:
        neighbours: candidates of k, each at least 2; k above the number of points but one becomes that.
        minibatch: clean points that an image is compared with; `fit` leaves out the last, incomplete minibatch. With
            fewer clean images than this, all of them are one minibatch.
        apart: neighbours come from the first images of the reference alone, which must be given.
        layers, scale, max_iter, batch_size: as in `Detector`.

    Raises:
        InputError: hyper-parameters that make no sense; from `fit`: fewer than 3 clean images to compare with.

    >>> import poise
    >>> from poise.detectors import gaussian_noise, perturbation_rms
    >>> target, data = poise.models.load("builtin:digits"), poise.data.load("builtin:digits", samples=40)
    >>> attacked = poise.run_recipe("fgsm", target, data.images, data.labels, eps=0.2).images
    >>> noisy = gaussian_noise(data.images, perturbation_rms(data.images, attacked))
    >>> LID(neighbours=(5,), minibatch=20).fit(target, data.images, noisy, attacked).score(attacked).shape
    (40,)
    """

    name: ClassVar[str] = "lid"
    paper: ClassVar[str] = "Ma et al. 2018, as in Lee et al. 2018"

    def __init__(
        self,
        neighbours: Sequence[int] = NEIGHBOURS,
        minibatch: int = MINIBATCH,
        *,
        apart: bool = False,
        layers: Sequence[str] | None = None,
        scale: bool | None = None,
        max_iter: int = 1000,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(layers=layers, scale=scale, max_iter=max_iter, batch_size=batch_size)
        if not neighbours or min(neighbours) < 2 or minibatch < 3:
            given = f"{tuple(neighbours)}, {minibatch}"
            raise InputError(f"lid: neighbours must be at least 2 and minibatch at least 3, got {given}")
        self.minibatch, self.apart = minibatch, apart
        self.needs_reference = apart
        self.candidates = tuple(float(k) for k in dict.fromkeys(neighbours))
        self._reference: list[FloatArray] = []

    def usable(self, n: int) -> int:
        """Whole minibatches alone, where there is one."""
        return n if self.apart or n < self.minibatch else n - n % self.minibatch

    def _bind(self, clean: Images, reference: Labelled | None) -> None:
        if self.apart and reference is None:
            raise InputError("lid: needs a reference to compare with where apart, got none")
        source: Images = clean
        if self.apart and reference is not None:
            source = reference[0] if isinstance(reference, tuple) else reference
        size = self.batch_size or self._module().batch_size
        held = [part.astype(np.float64) for part in self._layers_of(first(source, self.minibatch, size))]
        if len(held[0]) < 3:
            raise InputError(f"lid: must have at least 3 clean images to compare with, got {len(held[0])}")
        self._reference = held

    def features(
        self, images: Images, candidates: Sequence[float] | None = None, *, beside: Images | None = None
    ) -> Features:
        """For each k the estimate at every layer (n, L); see `Detector.features`."""
        if not self._reference:
            raise NotFittedError("lid: must know its model first, call bind or fit")
        wanted = self.candidates if candidates is None else tuple(candidates)
        queries = [part.astype(np.float64) for part in self._layers_of(images)]
        n = len(queries[0])
        if beside is None or self.apart:
            return self._among(queries, self._reference, wanted)
        clean = queries if beside is images else [part.astype(np.float64) for part in self._layers_of(beside)]
        if len(clean[0]) < n:
            raise InputError(f"lid: must have a clean image beside each of {n} images, got {len(clean[0])}")
        parts = []
        for start in range(0, n, self.minibatch):
            low = max(0, min(start, len(clean[0]) - self.minibatch))  # the last one reaches back where it is too short
            points = [part[low : low + self.minibatch] for part in clean]
            parts.append(self._among([part[start : start + self.minibatch] for part in queries], points, wanted))
        return {k: np.concatenate([part[k] for part in parts]) for k in wanted}

    @staticmethod
    def _among(queries: list[FloatArray], points: list[FloatArray], wanted: Sequence[float]) -> Features:
        """For each k (n, L): queries (n, F) among points (m, F), layer by layer."""
        from scipy.spatial.distance import cdist

        ordered = [np.sort(cdist(q, p), axis=1)[:, 1:] for q, p in zip(queries, points, strict=True)]
        found: dict[float, NDArray[np.floating]] = {}
        for k in wanted:
            found[k] = np.stack([local_dimension(rows[:, : int(k)]) for rows in ordered], axis=1)
        return found
