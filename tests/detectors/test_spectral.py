"""Fourier magnitudes: the vector, Parseval, shifts, numpy, the split, and where they are taken from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split
from torch import nn

from detector_cases import checkered, network, pictures
from poise.detectors import InputMFS, LayerMFS, harder_split, lee_split, magnitude_spectrum
from poise.errors import InputError, NotFittedError
from poise.targets import FunctionTarget, ModuleTarget
from toys import generator


def some(n: int = 4) -> torch.Tensor:
    return torch.rand(n, 3, 5, 6, generator=generator(0), dtype=torch.float64)


def check_spectrum(spectrum) -> None:
    assert spectrum(torch.tensor([[[[1.0, 2], [3, 4]]]])).tolist() == [[10, 2, 4, 0]]
    images = some()
    found = spectrum(images).numpy()
    assert found == pytest.approx(np.abs(np.fft.fft2(images.numpy())).reshape(4, -1), abs=1e-10)
    assert (found**2).sum(1) == pytest.approx(30 * (images.numpy() ** 2).sum((1, 2, 3)))  # Parseval
    assert spectrum(images.roll((2, 3), (2, 3))).numpy() == pytest.approx(found, abs=1e-10)


def test_spectrum_and_the_check_can_fail() -> None:
    check_spectrum(magnitude_spectrum)
    with pytest.raises(AssertionError):
        check_spectrum(lambda images: torch.fft.fft2(images).real.flatten(1))


def test_pixels_are_brought_to_the_unit_interval() -> None:
    images = some()
    module = nn.Sequential(nn.Flatten(), nn.Linear(90, 3))
    plain, wide = (ModuleTarget(module, num_classes=3, bounds=bounds) for bounds in ((0, 1), (-1, 1)))
    first = InputMFS().bind(plain, images).features(images)[0.0]
    second = InputMFS().bind(wide, images).features(images * 2 - 1)[0.0]
    assert first == pytest.approx(second, abs=1e-10)
    assert first == pytest.approx(magnitude_spectrum(images).numpy())


def test_input_spectra_need_no_module() -> None:
    images, _ = pictures(60)
    target = FunctionTarget(lambda x: np.full((len(x), 4), 0.25), num_classes=4, outputs="probabilities")
    detector = InputMFS().fit(target, images[:40], None, checkered(images[:40]))
    assert (detector.score(checkered(images[40:])) > 0.5).all()
    assert (detector.score(images[40:]) < 0.5).all()
    with pytest.raises(InputError, match="layer-mfs: reads layers, the target must be a module, got a FunctionTarget"):
        LayerMFS().fit(target, images, None, images)


def test_layer_spectra_are_those_of_the_feature_maps() -> None:
    target, (images, _) = network(), pictures(6)
    found = LayerMFS(layers=["0", "2"]).bind(target, images).features(images)[0.0]
    first = target.module[0](images)
    second = target.module[2](first.relu())
    both = np.concatenate([magnitude_spectrum(part.detach()).numpy() for part in (first, second)], axis=1)
    assert found == pytest.approx(both, rel=1e-4, abs=1e-4)
    with pytest.raises(InputError, match="must give feature maps"):
        LayerMFS(layers=["5"]).bind(target, images).features(images)


def test_splits() -> None:
    train, test = lee_split(500)
    assert (len(train), len(test)) == (50, 450)
    assert np.array_equal(np.concatenate([train, test]), np.arange(500))
    train, test = harder_split(500)
    assert (len(train), len(test)) == (320, 100)
    assert set(train).isdisjoint(test)
    assert set(test) == set(train_test_split(np.arange(500), test_size=0.2, random_state=42)[1])
    for split in (lee_split, harder_split):
        with pytest.raises(InputError, match="must have at least 20 images to fit and test on, got 19"):
            split(19)


def test_it_must_know_its_target() -> None:
    with pytest.raises(NotFittedError):
        InputMFS().features(torch.zeros(1, 1, 2, 2))
