"""How large a perturbation is and how alike two images are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from poise.errors import InputError
from poise.metrics._columns import FloatArray, numbers, ratio

_RADIUS = 5
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03
_BLOCK = 2**21


def delta_w(clean: ArrayLike, adversarial: ArrayLike) -> FloatArray:
    """Size of each perturbation: Wasserstein distance between it and zero, which is the mean of |adversarial - clean|.

    Underconfidence Adversarial Training, section 5.1: the distance between a zero vector and the perturbation vector as
    one-dimensional samples. It is at most the Linf size.

    Args:
        clean: (n, ...) images.
        adversarial: (n, ...) attacked images, same shape.

    Returns:
        (n,) size per image, in the units of the pixels; the papers print its mean.

    Raises:
        InputError: shapes differ, no image, or values not finite.

    >>> delta_w([[0.5, 0.5, 0.5, 0.5]], [[0.53, 0.47, 0.5, 0.51]]).round(4).tolist()
    [0.0175]
    """
    before, after = _pair(clean, adversarial, "delta_w")
    rows = before.reshape(len(before), -1), after.reshape(len(after), -1)
    each = [np.abs(b.astype(np.float64) - a).mean() for a, b in zip(*rows, strict=True)]
    return np.array(each, dtype=np.float64)


def ssim(clean: ArrayLike, adversarial: ArrayLike, *, data_range: float = 1.0) -> FloatArray:
    """Structural similarity of each pair of images, mean over pixels and channels.

    Wang et al. 2004: Gaussian window of 11 x 11 pixels and sigma 1.5, K1 = 0.01, K2 = 0.03, population covariance.
    Images are continued by reflection at their borders and every pixel counts, as in torchmetrics.

    Args:
        clean: (n, C, H, W) images.
        adversarial: (n, C, H, W) attacked images.
        data_range: highest minus lowest legal pixel value. It is never taken from the images, for then the same
            perturbation would count more in a pale image.

    Returns:
        (n,) similarity, in [-1, 1]; 1 for equal images.

    Raises:
        InputError: shapes differ or are not (n, C, H, W), no image, values not finite, range not positive.

    >>> import numpy as np
    >>> grey, lighter = np.full((1, 1, 16, 16), 0.5), np.full((1, 1, 16, 16), 0.6)
    >>> ssim(grey, lighter).round(6).tolist()
    [0.983609]
    """
    before, after = _pair(clean, adversarial, "ssim")
    if before.ndim != 4 or 0 in before.shape:
        raise InputError(f"ssim: images must have shape (n, C, H, W) with no axis empty, got {before.shape}")
    if not (math.isfinite(data_range) and data_range > 0):
        raise InputError(f"ssim: data_range must be finite and above 0, got {data_range}")
    rows, columns = _blur(before.shape[2]), _blur(before.shape[3]).T
    chunk = max(1, _BLOCK // before[0].size)
    parts = []
    for start in range(0, len(before), chunk):
        x = before[start : start + chunk].astype(np.float64) / data_range
        y = after[start : start + chunk].astype(np.float64) / data_range
        parts.append(_similarity(x, y, rows, columns))
    return np.concatenate(parts)


def map_correlation(first: ArrayLike, second: ArrayLike) -> FloatArray:
    """Pearson correlation of each pair of maps, such as Grad-CAM before and after an attack, over their pixels.

    Args:
        first: (n, ...) maps.
        second: (n, ...) maps, same shape.

    Returns:
        (n,) correlation, in [-1, 1]; NaN where one of the two is constant.

    Raises:
        InputError: shapes differ, no map, or values not finite.

    >>> map_correlation([[0.0, 1.0, 2.0]], [[3.0, 2.0, 1.0]]).tolist()
    [-1.0]
    """
    before, after = (part.reshape(len(part), -1).astype(np.float64) for part in _pair(first, second, "map_correlation"))
    x, y = (part - part.mean(axis=1, keepdims=True) for part in (before, after))
    constant = (np.ptp(before, axis=1) == 0) | (np.ptp(after, axis=1) == 0)
    length = np.where(constant, np.nan, np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1)))
    return np.asarray(np.clip((x * y).sum(axis=1) / length, -1, 1))


def map_overlap(first: ArrayLike, second: ArrayLike, *, level: float = 0.5) -> FloatArray:
    """Overlap of the bright parts of each pair of maps: intersection over union of the pixels at `level` or above.

    Args:
        first: (n, ...) maps.
        second: (n, ...) maps, same shape.
        level: where a map's bright part begins, in the units of the maps.

    Returns:
        (n,) overlap, in [0, 1]; NaN where neither map reaches the level.

    Raises:
        InputError: shapes differ, no map, or values not finite.

    >>> map_overlap([[0.1, 0.5, 0.9]], [[0.6, 0.7, 0.2]]).round(3).tolist()
    [0.333]
    """
    before, after = (part.reshape(len(part), -1) >= level for part in _pair(first, second, "map_overlap"))
    return ratio((before & after).sum(axis=1).astype(np.float64), (before | after).sum(axis=1).astype(np.float64))


def _similarity(x: FloatArray, y: FloatArray, rows: FloatArray, columns: FloatArray) -> FloatArray:
    """Wang et al. 2004, eq. 13: (n, C, H, W) twice, and the blurs of both axes -> (n,)."""
    mx, my = rows @ x @ columns, rows @ y @ columns
    xx = np.maximum(rows @ (x * x) @ columns - mx * mx, 0)
    yy = np.maximum(rows @ (y * y) @ columns - my * my, 0)
    xy = rows @ (x * y) @ columns - mx * my
    c1, c2 = _K1**2, _K2**2
    local = (2 * mx * my + c1) * (2 * xy + c2) / ((mx * mx + my * my + c1) * (xx + yy + c2))
    return np.asarray(local.mean(axis=(1, 2, 3)))


def _blur(size: int) -> FloatArray:
    """(size, size) matrix that blurs an axis with the Gaussian window, the axis continued by reflection."""
    offsets = np.arange(-_RADIUS, _RADIUS + 1)
    window = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    window /= window.sum()
    source = np.pad(np.arange(size), _RADIUS, mode="reflect")
    matrix = np.zeros((size, size))
    for k, weight in enumerate(window):
        matrix[np.arange(size), source[k : k + size]] += weight
    return matrix


def _pair(clean: ArrayLike, adversarial: ArrayLike, caller: str) -> tuple[NDArray[Any], NDArray[Any]]:
    before, after = np.asarray(clean), np.asarray(adversarial)
    if before.shape != after.shape or before.ndim < 2:
        raise InputError(
            f"{caller}: clean and adversarial must have the same shape (n, ...), got {before.shape} and {after.shape}"
        )
    numbers(before, f"{caller}: clean", before.ndim)
    numbers(after, f"{caller}: adversarial", after.ndim)
    return before, after
