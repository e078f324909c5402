"""Mahalanobis: the vector, known densities, affine maps, the step, singular covariance, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import nn

from detector_cases import Identity, as_images, as_target
from poise import data
from poise.detectors import Mahalanobis, TiedGaussians
from poise.errors import InputError, NotFittedError
from toys import generator

CROSS = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
MEANS = np.array([[0.0, 0, 0], [4, 0, 1], [0, 3, -2]])
COVARIANCE = np.array([[2.0, 0.5, 0], [0.5, 1, -0.3], [0, -0.3, 0.5]])


def check_vector(fit) -> None:
    both = fit(np.concatenate([CROSS, CROSS + np.array([5, 0])]), np.repeat([0, 1], 4), 2)
    assert both.precision.numpy() == pytest.approx(2 * np.eye(2), abs=1e-12)
    assert both.scores(torch.tensor([[1.0, 1.0]]).double()).numpy() == pytest.approx(np.array([[-2, -17]]), abs=1e-12)


def one_degree_of_freedom_less(features, labels, classes):
    """The broken twin: divides by n - 1."""
    right = TiedGaussians.fit(features, labels, classes)
    return TiedGaussians(right.means, right.precision * (len(features) - 1) / len(features))


def test_vector_and_the_check_can_fail() -> None:
    check_vector(TiedGaussians.fit)
    with pytest.raises(AssertionError):
        check_vector(one_degree_of_freedom_less)


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """n points of three classes with known means and a common covariance."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 3)
    return MEANS[labels] + rng.multivariate_normal(np.zeros(3), COVARIANCE, n), labels


def test_scores_of_known_gaussians_are_their_log_densities() -> None:
    points, _ = drawn(50)
    known = TiedGaussians(torch.from_numpy(MEANS), torch.from_numpy(np.linalg.inv(COVARIANCE)))
    found = known.scores(torch.from_numpy(points)).numpy()
    for k, mean in enumerate(MEANS):
        density = multivariate_normal(mean, COVARIANCE)
        assert found[:, k] == pytest.approx(density.logpdf(points) - density.logpdf(mean), abs=1e-10)


def test_a_fit_lands_on_the_known_densities() -> None:
    """30,000 points: means within 4 standard errors, densities within 2 %, and the expected score of -F/2."""
    points, labels = drawn(30_000)
    fitted = TiedGaussians.fit(points, labels, 3)
    assert np.abs(fitted.means.numpy() - MEANS).max() < 4 * np.sqrt(2 / 10_000)
    assert fitted.precision.numpy() == pytest.approx(np.linalg.inv(COVARIANCE), rel=0.05, abs=0.03)
    fresh, truth = drawn(20_000, seed=1)
    own = fitted.scores(torch.from_numpy(fresh)).numpy()[np.arange(20_000), truth]
    assert own.mean() == pytest.approx(-1.5, abs=4 * np.sqrt(1.5 / 20_000) + 0.01)


def test_the_covariance_is_that_of_discriminant_analysis() -> None:
    points, labels = drawn(300)
    other = LinearDiscriminantAnalysis(solver="lsqr", store_covariance=True).fit(points, labels)
    fitted = TiedGaussians.fit(points, labels, 3)
    assert np.linalg.inv(fitted.precision.numpy()) == pytest.approx(other.covariance_, rel=1e-9, abs=1e-9)


def test_invertible_linear_maps_of_the_features_change_nothing() -> None:
    points, labels = drawn(200)
    turned = np.random.default_rng(2).normal(size=(3, 3))
    plain = TiedGaussians.fit(points, labels, 3).scores(torch.from_numpy(points))
    moved = TiedGaussians.fit(points @ turned + 7, labels, 3).scores(torch.from_numpy(points @ turned + 7))
    assert torch.allclose(plain, moved, atol=1e-8)


@pytest.mark.parametrize("spoil", [lambda p: np.c_[p, p[:, 0]], lambda p: np.c_[p, np.full(len(p), 3.0)]])
def test_a_singular_covariance_is_inverted_where_it_can_be(spoil) -> None:
    """A feature twice, or one that never changes, adds nothing."""
    points, labels = drawn(200)
    plain = TiedGaussians.fit(points, labels, 3).scores(torch.from_numpy(points))
    spoilt = spoil(points)
    assert torch.allclose(TiedGaussians.fit(spoilt, labels, 3).scores(torch.from_numpy(spoilt)), plain, atol=1e-8)


class Mixed(nn.Module):
    """Features W x of three pixels, and a layer that sees nothing of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, generator=generator(4), dtype=torch.float64))
        self.features, self.constant = nn.Identity(), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.features(x.flatten(1) @ self.weight.T)
        self.constant(torch.zeros_like(found) + torch.arange(len(found), dtype=found.dtype)[:, None] * 0)
        return found[:, :3] * 3 - 1


def bound(magnitudes, layers=("features",)) -> tuple[Mahalanobis, Mixed, torch.Tensor]:
    points, labels = drawn(90)
    module, images = Mixed(), as_images(torch.from_numpy(points))
    detector = Mahalanobis(magnitudes, layers=layers)
    return detector.bind(as_target(module), images, (images, torch.from_numpy(labels))), module, images


def test_the_step_is_the_sign_of_the_gradient_by_hand() -> None:
    detector, module, images = bound((0.0, 0.05))
    found = detector.features(images)
    gaussians, weight = detector.gaussians[0], module.weight.detach()
    x = images.flatten(1)
    scores = gaussians.scores(x @ weight.T)
    nearest = scores.argmax(1)
    slope = ((x @ weight.T - gaussians.means[nearest]) @ gaussians.precision) @ weight  # of -M
    moved = x - 0.05 * torch.where(slope >= 0, 1.0, -1.0).double()
    assert found[0.0][:, 0] == pytest.approx(scores.amax(1).numpy(), abs=1e-10)
    assert found[0.05][:, 0] == pytest.approx(gaussians.scores(moved @ weight.T).amax(1).numpy(), abs=1e-10)


def check_raises_the_score(features) -> None:
    """A small step makes nearly every image look more like its nearest class."""
    detector, _, images = bound((0.0, 1e-4))
    found = features(detector, images)
    assert (found[1e-4] > found[0.0]).mean() > 0.95


def downhill(detector, images):
    """The broken twin: the step goes the other way."""
    found = detector.features(images)
    return {0.0: found[0.0], 1e-4: 2 * found[0.0] - found[1e-4]}


def test_the_step_raises_the_score_and_the_check_can_fail() -> None:
    check_raises_the_score(lambda detector, images: detector.features(images))
    with pytest.raises(AssertionError):
        check_raises_the_score(downhill)


def test_a_layer_without_gradient_is_stepped_upwards_and_harms_nothing() -> None:
    detector, _, images = bound((0.0, 0.1), ("features", "constant"))
    found = detector.features(images)
    assert found[0.1].shape == (90, 2)
    assert np.array_equal(found[0.1][:, 1], found[0.0][:, 1])
    assert np.isfinite(found[0.1]).all()


def test_rows_do_not_depend_on_the_batch() -> None:
    detector, _, images = bound((0.0, 0.05))
    whole = detector.features(images)
    detector.batch_size = 7
    parts = detector.features(images)
    for m, rows in whole.items():
        assert rows == pytest.approx(parts[m], rel=1e-9)


def test_the_model_is_left_as_it_was() -> None:
    detector, module, images = bound((0.05,))
    module.train()
    detector.features(images)
    assert module.training
    assert module.weight.grad is None
    assert not images.requires_grad


def test_a_streamed_reference_is_the_same() -> None:
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (60, 1, 3), dtype=np.uint8), np.arange(60) % 3
    streamed = data.from_arrays(pixels, labels)
    target = as_target(Identity(3))
    first = Mahalanobis(layers=["features"], batch_size=7).bind(target, streamed)
    second = Mahalanobis(layers=["features"]).bind(target, streamed.images, (streamed.images, streamed.labels))
    assert torch.allclose(first.gaussians[0].precision, second.gaussians[0].precision)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Mahalanobis((-0.1,)), "magnitudes must be at least 0 and finite, got (-0.1,)"),
        (
            lambda: TiedGaussians.fit(np.eye(3), np.array([0, 1, 1]), 4),
            "the reference must hold each of the 4 classes, got none of class 2 (2 missing)",
        ),
        (
            lambda: Mahalanobis(layers=["features"]).bind(as_target(Identity(3)), torch.zeros(9, 1, 1, 3)),
            "class means need labels, give reference=(images, labels), got images alone",
        ),
        (
            lambda: Mahalanobis(layers=["features"]).bind(
                as_target(Identity(3)), torch.zeros(9, 1, 1, 3), (torch.zeros(9, 1, 1, 3), torch.full((9,), 5))
            ),
            "must have a label in 0..2 for each of its 9 images",
        ),
    ],
)
def test_bad_input_is_one_line(call, message) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_it_must_know_its_model() -> None:
    with pytest.raises(NotFittedError, match="mahalanobis: must know its model first"):
        Mahalanobis().features(torch.zeros(4, 1, 1, 3))
