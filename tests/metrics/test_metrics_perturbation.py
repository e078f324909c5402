"""Size of a perturbation and similarity of images."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import wasserstein_distance

from poise.errors import InputError
from poise.metrics import delta_w, map_correlation, map_overlap, ssim


def pair(shape: tuple[int, ...], seed: int = 0, size: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    clean = rng.random(shape)
    return clean, np.clip(clean + rng.uniform(-size, size, shape), 0, 1)


def ssim_by_scipy(x: np.ndarray, y: np.ndarray) -> float:
    """One channel; scipy's `mirror` is reflection without repeating the border, and radius 5 is 11 pixels."""

    def blur(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image, sigma=1.5, mode="mirror", radius=5)

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    local = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    return float(local.mean())


def test_delta_w_hand_worked() -> None:
    delta = np.array([0.03, -0.03, 0, 0.01])
    assert delta_w(np.zeros((1, 4)), delta[None]) == pytest.approx([0.0175], abs=1e-12)


def test_delta_w_is_scipys_wasserstein_distance_to_zero() -> None:
    clean, adversarial = pair((5, 3, 6, 4))
    ours = delta_w(clean, adversarial)
    for i in range(5):
        delta = (adversarial[i] - clean[i]).ravel()
        assert ours[i] == pytest.approx(wasserstein_distance(np.zeros_like(delta), delta), abs=1e-9)
        assert ours[i] <= np.abs(delta).max()


def test_delta_w_takes_small_integers_without_wrapping() -> None:
    assert delta_w(np.array([[200]], dtype=np.uint8), np.array([[10]], dtype=np.uint8)).tolist() == [190.0]


def test_ssim_of_constant_images() -> None:
    for size in (1, 8, 32):
        grey, lighter = np.full((1, 1, size, size), 0.5), np.full((1, 1, size, size), 0.6)
        assert ssim(grey, lighter) == pytest.approx([0.983609244], abs=1e-9)


@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (2, 3, 32, 20), (2, 1, 8, 8), (1, 1, 4, 7)])
def test_ssim_agrees_with_scipy(shape: tuple[int, ...]) -> None:
    clean, adversarial = pair(shape, seed=shape[2])
    expected = [
        np.mean([ssim_by_scipy(*planes) for planes in zip(x, y, strict=True)])
        for x, y in zip(clean, adversarial, strict=True)
    ]
    assert ssim(clean, adversarial) == pytest.approx(expected, abs=1e-9)


def test_ssim_takes_its_range_as_declared() -> None:
    clean, adversarial = pair((2, 1, 12, 12))
    assert ssim(255 * clean, 255 * adversarial, data_range=255) == pytest.approx(ssim(clean, adversarial), abs=1e-9)
    assert ssim(clean / 2, adversarial / 2) != pytest.approx(ssim(clean, adversarial), abs=1e-4)


def test_ssim_of_many_images_is_that_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    clean, adversarial = pair((7, 1, 10, 10))
    whole = ssim(clean, adversarial)
    monkeypatch.setattr("poise.metrics.perturbation._BLOCK", 200)
    assert ssim(clean, adversarial) == pytest.approx(whole, abs=1e-12)


def check_similarity(metric) -> None:
    for seed in range(5):
        clean, adversarial = pair((2, 1, 16, 16), seed, size=0.3)
        assert metric(clean, clean) == pytest.approx([1, 1], abs=1e-9)
        assert metric(clean, adversarial) == pytest.approx(metric(adversarial, clean), abs=1e-9)
        assert (np.abs(metric(clean, 1 - adversarial)) <= 1).all()
        assert (metric(clean, adversarial) < 1).all()


def test_similarity_properties_hold_and_can_fail() -> None:
    check_similarity(ssim)
    with pytest.raises(AssertionError):
        check_similarity(lambda x, y: ssim(x, y, data_range=float(x.max() - x.min()) * (1 + y[0, 0, 0, 0])))
    with pytest.raises(AssertionError):
        check_similarity(lambda x, y: np.ones(len(x)))


def test_float32_and_uint8() -> None:
    clean, adversarial = pair((1, 1, 16, 16))
    assert ssim(clean.astype(np.float32), adversarial.astype(np.float32)) == pytest.approx(
        ssim(clean, adversarial), abs=1e-5
    )
    eight = np.rint(255 * clean).astype(np.uint8)
    assert ssim(eight, eight, data_range=255) == pytest.approx([1])


def test_refuse_nonsense() -> None:
    image = np.zeros((1, 1, 8, 8))
    with pytest.raises(InputError, match="must have the same shape"):
        delta_w(image, image[:, :, :4])
    with pytest.raises(InputError, match=r"must have shape \(n, C, H, W\)"):
        ssim(image[0], image[0])
    with pytest.raises(InputError, match="at least one row"):
        ssim(image[:0], image[:0])
    with pytest.raises(InputError, match="data_range must be finite and above 0, got 0"):
        ssim(image, image, data_range=0)
    with pytest.raises(InputError, match="adversarial must be finite"):
        delta_w(image, np.full_like(image, np.nan))


def test_maps_agree_with_numpy_and_loops() -> None:
    rng = np.random.default_rng(4)
    first, second = rng.random((7, 5, 6)), rng.random((7, 5, 6))
    expected = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(first, second, strict=True)]
    assert map_correlation(first, second) == pytest.approx(expected, abs=1e-12)
    for a, b, found in zip(first, second, map_overlap(first, second), strict=True):
        inside = [(x >= 0.5, y >= 0.5) for x, y in zip(a.ravel(), b.ravel(), strict=True)]
        assert found == pytest.approx(sum(x and y for x, y in inside) / sum(x or y for x, y in inside))


def test_maps_that_are_equal_opposite_or_empty() -> None:
    ramp, flat, dark = [[0.0, 0.5, 1.0]], [[1.0, 1.0, 1.0]], [[0.0, 0.0, 0.0]]
    assert map_correlation(ramp, ramp).item() == pytest.approx(1) == -map_correlation(ramp, [[1.0, 0.5, 0.0]]).item()
    assert map_overlap(ramp, ramp).tolist() == [1]
    assert map_overlap(ramp, flat).tolist() == [pytest.approx(2 / 3)]
    assert map_overlap(ramp, dark).tolist() == [0]
    assert np.isnan(map_overlap(dark, dark)).all()
    assert np.isnan(map_correlation(ramp, flat)).all()
    with pytest.raises(InputError, match="map_overlap: clean and adversarial must have the same shape"):
        map_overlap([[1.0]], [[1.0, 2.0]])
