"""Magnitudes of Fourier coefficients, of images or of feature maps: attacks leave traces in high frequencies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poise.detectors.base import Detector, Features, Images, stream
from poise.detectors.splits import harder_split
from poise.detectors.taps import Reduce, maps
from poise.errors import NotFittedError


def magnitude_spectrum(images: Tensor) -> Tensor:
    """|FFT2| of every channel, flattened: no shift, no logarithm; Harder et al. 2021, section III.

    Args:
        images: (n, C, H, W); InputMFS takes pixels in [0, 1].

    Returns:
        (n, C H W), of the type that was given.

    >>> magnitude_spectrum(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    tensor([[10.,  2.,  4.,  0.]])
    """
    found: Tensor = torch.fft.fft2(images).abs().flatten(1)
    return found


class _Spectral(Detector):
    """What both have in common: one logistic regression on all magnitudes, and the split of Harder et al."""

    paper: ClassVar[str] = "Harder et al. 2021"
    uses_noisy: ClassVar[bool] = False
    cross_validated: ClassVar[bool] = False
    scaled: ClassVar[bool] = False

    def split(self, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return harder_split(n)


class InputMFS(_Spectral):
    """SpectralDefense on the image itself: magnitudes of its Fourier coefficients, and a logistic regression.

    Harder et al., "SpectralDefense: Detecting Adversarial Attacks on CNNs in the Fourier Domain", 2021. Any target will
    do: the model is not asked. Noisy images are no part of the published training set and are passed over. Their
    division by the largest magnitude of an image (CIFAR-100 under C&W and DeepFool alone) is left out.

    Args:
        scale: standardise the magnitudes first. The published regression does not; at 224 x 224 pixels it does not
            converge without.
        max_iter, batch_size: as in `Detector`.
    """

    name: ClassVar[str] = "input-mfs"
    needs_module: ClassVar[bool] = False

    def __init__(self, *, scale: bool | None = None, max_iter: int = 1000, batch_size: int | None = None) -> None:
        super().__init__(scale=scale, max_iter=max_iter, batch_size=batch_size)

    def features(
        self, images: Images, candidates: Sequence[float] | None = None, *, beside: Images | None = None
    ) -> Features:
        """(n, C H W) magnitudes of pixels brought to [0, 1]; see `Detector.features`."""
        if self._target is None:
            raise NotFittedError("input-mfs: must know its target first, call bind or fit")
        low, high = self._target.bounds
        size = self.batch_size or self._target.batch_size
        parts = [magnitude_spectrum((part.cpu().double() - low) / (high - low)) for part in stream(images, size)]
        return {0.0: torch.cat(parts).numpy()}


def _map_spectra(values: Tensor) -> Tensor:
    return magnitude_spectrum(maps(values).float())


class LayerMFS(_Spectral):
    """SpectralDefense on feature maps: magnitudes of the Fourier coefficients of every channel of every layer read.

    Harder et al. 2021. They pick layers for each network and attack; here all that are read count, unless `layers`
    names fewer. The regression has as many numbers per image as the layers have activations (61,440 for a ResNet-20):
    name one or two layers of a large network. As with `InputMFS`, noisy images are passed over, and their support
    vector machine with scaling (CIFAR-100 under C&W and DeepFool) is left out.

    Args:
        layers: names as `taps.tapped` takes them, each with feature maps (n, C, H, W); None is `default_layers`.
        scale, max_iter, batch_size: as in `Detector`.

    Raises:
        InputError: from `fit`, a layer without feature maps.

    >>> import poise
    >>> target, data = poise.models.load("builtin:digits"), poise.data.load("builtin:digits", samples=40)
    >>> attacked = poise.run_recipe("fgsm", target, data.images, data.labels, eps=0.2).images
    >>> LayerMFS().fit(target, data.images, data.images, attacked).score(attacked).shape
    (40,)
    """

    name: ClassVar[str] = "layer-mfs"
    reduce: ClassVar[Reduce] = staticmethod(_map_spectra)

    def features(
        self, images: Images, candidates: Sequence[float] | None = None, *, beside: Images | None = None
    ) -> Features:
        """(n, sum of C H W) float32 magnitudes of all layers; see `Detector.features`."""
        return {0.0: np.concatenate(self._layers_of(images), axis=1)}
