"""The smooth calibration error: a kernel instead of bins, with a bandwidth that chooses itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from poise.metrics._columns import FloatArray, Statistic, answers, whole

_BISECTIONS = 10
_NARROWEST = 1e-3
# At the narrowest bandwidth tried, 2/1024, the wave of this number is damped to exp(-27.8) = 8e-13.
_WAVES = 1216
_CELLS = 2048
_ROWS = 4096


def smooth_ece(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Calibration error of kernel-smoothed residuals, at the bandwidth that equals it.

    Blasiok and Nakkiran 2024: smECE_s = integral over [0, 1] of |(1/N) sum_i K_s(t, c_i) (c_i - correct_i)| dt with the
    Gaussian kernel K_s reflected at 0 and 1. It falls with s; the result is smECE at the smallest s with smECE_s <= s.

    Args:
        confidence: (n,) in [0, 1].
        correct: (n,) in {0, 1}.

    Returns:
        The error, in [0, 1]; at least |accuracy - mean confidence|.

    Raises:
        InputError: columns empty, out of range or of different lengths.

    Deviation: s is found by ten bisections, as in the authors' relplot, hence a multiple of 1/1024 and at least 2/1024.
    relplot puts the rows on a grid and divides by the total density; here the reflected kernel is a product in the
    cosine basis, K_s(t, c) = 1 + 2 sum_k exp(-(pi k s)^2 / 2) cos(pi k c) cos(pi k t), which needs neither. The
    integral is right to about 2e-6.

    >>> round(smooth_ece([0.8] * 5, [1, 1, 1, 0, 0]), 6)
    0.2
    """
    return whole(smooth_ece_statistic(confidence, correct), confidence)


def smooth_ece_statistic(confidence: ArrayLike, correct: ArrayLike) -> Statistic:
    """`smooth_ece` as a function of counts (b, n), see `Statistic`."""
    scores, hits = answers(confidence, correct, "smooth_ece")
    position = scores.astype(np.float64)
    residual = position - hits

    def statistic(counts: FloatArray) -> FloatArray:
        waves = _cosine_sums(counts * residual, position) / counts.sum(axis=1, keepdims=True)
        wide, narrow = np.ones(len(counts)), np.zeros(len(counts))
        for _ in range(_BISECTIONS):
            middle = (wide + narrow) / 2
            too_narrow = (middle < _NARROWEST) | (middle < _smoothed(waves, middle))
            narrow, wide = np.where(too_narrow, middle, narrow), np.where(too_narrow, wide, middle)
        return _smoothed(waves, wide)

    return statistic


def _cosine_sums(mass: FloatArray, position: FloatArray) -> FloatArray:
    """sum_i mass_i cos(pi k position_i) for k = 0.._WAVES-1: (b, n) and (n,) -> (b, _WAVES)."""
    sums = np.zeros((len(mass), _WAVES))
    for start in range(0, len(position), _ROWS):
        rows = slice(start, start + _ROWS)
        x = np.cos(np.pi * position[rows])
        table = np.empty((_WAVES, len(x)))
        table[0], table[1] = 1, x
        for k in range(2, _WAVES):  # cos(k a) = 2 cos(a) cos((k - 1) a) - cos((k - 2) a)
            table[k] = 2 * x * table[k - 1] - table[k - 2]
        sums += mass[:, rows] @ table.T
    return sums


def _smoothed(waves: FloatArray, bandwidth: FloatArray) -> FloatArray:
    """integral of |residual smoothed with each bandwidth|: (b, _WAVES) and (b,) -> (b,), by the trapezoid rule."""
    damping = np.exp(-0.5 * (np.pi * np.arange(_WAVES) * bandwidth[:, None]) ** 2)
    curve = np.abs(np.fft.irfft(waves * damping, n=2 * _CELLS, axis=1)[:, : _CELLS + 1] * (2 * _CELLS))
    return np.asarray((curve.sum(axis=1) - (curve[:, 0] + curve[:, -1]) / 2) / _CELLS)
