"""Detectors of attacked images: `fit(target, clean, noisy, attacked)`, then `score(images)`, higher is more suspicious.

Thresholds are not chosen here; `poise.metrics` tells how well scores separate (`auroc`, `detection_accuracy`, …).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from poise.detectors.base import Batches, Detector, Features, Images, Labelled
from poise.detectors.lid import LID, local_dimension
from poise.detectors.mahalanobis import Mahalanobis, TiedGaussians
from poise.detectors.noise import gaussian_noise, perturbation_rms
from poise.detectors.spectral import InputMFS, LayerMFS, magnitude_spectrum
from poise.detectors.splits import harder_split, lee_split
from poise.detectors.taps import default_layers, tapped
from poise.errors import one_of

DETECTORS: dict[str, tuple[Callable[[], Detector], str]] = {
    "lid": (LID, f"local intrinsic dimension beside the clean images of a minibatch ({LID.paper})"),
    "lid-apart": (partial(LID, apart=True), "the same beside images that nothing was made of: no clean version known"),
    "mahalanobis": (Mahalanobis, f"distance to the nearest class in every layer ({Mahalanobis.paper})"),
    "input-mfs": (InputMFS, f"Fourier magnitudes of the image ({InputMFS.paper})"),
    "layer-mfs": (LayerMFS, f"Fourier magnitudes of feature maps ({LayerMFS.paper})"),
}
"""Detectors by name: how each is made with the published settings, and one line."""


def make(name: str) -> Detector:
    """The detector of that name with the published settings; another raises InputError with the nearest names.

    >>> make("lid").candidates[:2]
    (10.0, 20.0)
    """
    if name not in DETECTORS:
        raise one_of("detectors", name, list(DETECTORS))
    return DETECTORS[name][0]()


def summaries() -> dict[str, str]:
    """Every detector with one line."""
    return {name: line for name, (_, line) in DETECTORS.items()}


__all__ = [
    "DETECTORS",
    "LID",
    "Batches",
    "Detector",
    "Features",
    "Images",
    "InputMFS",
    "Labelled",
    "LayerMFS",
    "Mahalanobis",
    "TiedGaussians",
    "default_layers",
    "gaussian_noise",
    "harder_split",
    "lee_split",
    "local_dimension",
    "magnitude_spectrum",
    "make",
    "perturbation_rms",
    "summaries",
    "tapped",
]
