"""Local intrinsic dimension: vectors, the closed form for uniform points, minibatches, edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from detector_cases import Identity, as_images, as_target
from poise.detectors import LID, local_dimension
from poise.errors import InputError, NotFittedError
from toys import generator


@pytest.mark.parametrize("radii", [(1, 2, 4), (0.5, 1, 1, 2)])
def test_vectors(radii) -> None:
    assert local_dimension(np.array(radii, dtype=float)) == pytest.approx(1.442695041, abs=1e-9)


def test_only_ratios_of_distances_count() -> None:
    radii = np.sort(np.random.default_rng(0).random((20, 7)), axis=1)
    assert local_dimension(radii * 1e4) == pytest.approx(local_dimension(radii), rel=1e-9)


def check_closed_form(estimate) -> None:
    """Uniform points in a d-ball, seen from its centre: E = d k / (k - 2), var = (d k)^2 / ((k - 2)^2 (k - 3)).

    The logarithms of the k - 1 ratios are independent and exponential with rate d, so their sum is a gamma variable.
    """
    rng, repeats, k = np.random.default_rng(3), 4000, 20
    for d in (1, 2, 5, 20):
        radii = np.sort(rng.random((repeats, 100)) ** (1 / d), axis=1)[:, :k]
        mean = d * k / (k - 2)
        error = mean / math.sqrt(k - 3) / math.sqrt(repeats)
        assert abs(estimate(radii).mean() - mean) < 4 * error


def without_the_zero_term(radii):
    """The broken twin: as other texts write it, k - 1 terms counted as k - 1."""
    return -(radii.shape[1] - 1) / np.log(radii / radii[:, -1:]).sum(axis=1)


def test_uniform_points_give_the_dimension_of_the_closed_form_and_the_check_can_fail() -> None:
    check_closed_form(local_dimension)
    with pytest.raises(AssertionError):
        check_closed_form(without_the_zero_term)


def test_edges_of_the_estimate() -> None:
    assert local_dimension(np.zeros(5)) == 0  # copies of the point
    assert local_dimension(np.full(5, 3.0)) == 1000  # would be infinite
    assert local_dimension(np.array([2.0])) == 1000
    assert 0 < local_dimension(np.array([0.0, 1.0])) < 0.1
    with pytest.raises(InputError, match="at least one distance"):
        local_dimension(np.zeros((3, 0)))


def plane(n: int, d: int, seed: int, width: int = 12) -> torch.Tensor:
    """(n, width) uniform points of intrinsic dimension d in a space of more."""
    basis = torch.linalg.qr(torch.randn(width, d, generator=generator(9), dtype=torch.float64))[0]
    return torch.rand(n, d, generator=generator(seed), dtype=torch.float64) @ basis.T


@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_detector_sees_the_dimension_of_the_data(d: int) -> None:
    target, clean = as_target(Identity(12)), as_images(plane(500, d, 0))
    detector = LID((20,), layers=["features"]).bind(target, clean)
    found = detector.features(clean, beside=clean)[20.0]
    assert found.shape == (500, 1)
    assert np.median(found) == pytest.approx(d * 20 / 18, rel=0.3)  # 100 points of a cube: most lie near its faces


def test_features_by_hand_with_the_smallest_distance_dropped() -> None:
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0], [20.0]], dtype=torch.float64)
    clean = as_images(torch.nn.functional.pad(points, (0, 2)))
    detector = LID((2, 3), layers=["features"]).bind(as_target(Identity(3)), clean)
    found = detector.features(clean, beside=clean)
    assert found[2.0][0] == pytest.approx(-2 / math.log(1 / 3))  # 1 and 3 away
    assert found[3.0][3] == pytest.approx(-3 / (math.log(4 / 7) + math.log(6 / 7)))
    query = as_images(torch.tensor([[0.1, 0, 0]], dtype=torch.float64))
    assert detector.features(query)[2.0][0] == pytest.approx(-2 / math.log(0.9 / 2.9), rel=1e-6)  # its twin is dropped


def test_neighbours_come_from_an_images_own_minibatch() -> None:
    target, clean = as_target(Identity(12)), as_images(plane(250, 2, 1))
    detector = LID((5,), layers=["features"]).bind(target, clean)
    whole = detector.features(clean, beside=clean)[5.0]
    second = detector.features(clean[100:200], beside=clean[100:200])[5.0]
    assert whole[100:200] == pytest.approx(second, rel=1e-12)
    reaching_back = detector.features(clean[150:], beside=clean[150:])[5.0]
    assert whole[200:] == pytest.approx(reaching_back[50:], rel=1e-12)
    assert (detector.usable(250), detector.usable(99)) == (200, 99)


def test_more_neighbours_than_points_are_all_of_them() -> None:
    target, clean = as_target(Identity(12)), as_images(plane(30, 2, 1))
    found = LID((90, 29), layers=["features"]).bind(target, clean).features(clean, beside=clean)
    assert np.array_equal(found[90.0], found[29.0])


def test_a_dimension_that_differs_is_detected() -> None:
    target = as_target(Identity(12))
    clean = as_images(plane(400, 2, 0))
    off = clean + 0.3 * torch.randn(clean.shape, generator=generator(1), dtype=torch.float64)
    near = clean + 1e-4 * torch.randn(clean.shape, generator=generator(2), dtype=torch.float64)
    reference = as_images(plane(100, 2, 7)), torch.zeros(100, dtype=torch.long)
    for detector in (LID(layers=["features"]), LID(layers=["features"], apart=True)):
        detector.fit(target, clean[:200], near[:200], off[:200], reference=reference)
        gap = detector.score(off[200:]) - detector.score(clean[200:])
        assert (gap > 0).mean() > 0.9
        assert detector.chosen in detector.candidates


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LID((1,)), "neighbours must be at least 2 and minibatch at least 3, got (1,), 100"),
        (lambda: LID(()), "neighbours must be at least 2"),
        (lambda: LID().bind(as_target(Identity(3)), torch.zeros(2, 1, 1, 3)), "no convolution"),
        (
            lambda: LID(layers=["features"]).bind(as_target(Identity(3)), torch.zeros(2, 1, 1, 3)),
            "lid: must have at least 3 clean images to compare with, got 2",
        ),
        (
            lambda: LID(layers=["features"], apart=True).bind(as_target(Identity(3)), torch.zeros(9, 1, 1, 3)),
            "lid: needs a reference to compare with where apart, got none",
        ),
        (
            lambda: (
                LID(layers=["features"])
                .bind(as_target(Identity(3)), torch.zeros(9, 1, 1, 3))
                .features(torch.zeros(4, 1, 1, 3), beside=torch.zeros(3, 1, 1, 3))
            ),
            "lid: must have a clean image beside each of 4 images, got 3",
        ),
    ],
)
def test_bad_input_is_one_line(call, message) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert message.replace("no convolution", "without stages and convolutions") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_it_must_know_its_model() -> None:
    with pytest.raises(NotFittedError, match="lid: must know its model first"):
        LID().features(torch.zeros(4, 1, 1, 3))
