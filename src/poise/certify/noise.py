"""Gaussian noise as a function of (seed, sample, number of the draw): few kernels, buffers that are reused."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from poise.rng import Rng, mix

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
"""SplitMix64's step, as torch's signed int64 reads it."""

_WORDS = 1 << 16
"""Words made at a time on a processor: they stay in its cache."""


class Noise:
    """Standard normal vectors that can be drawn in any order, in any batches, again.

    The bits are those of SplitMix64, keyed three times: by (seed, purpose, sample) through `poise.rng`, by the draw's
    number, by the position. Box-Muller makes two normals of each 64-bit word: 40 bits are the radius, 24 the angle.

    Args:
        seed: any integer.
        ids: (g,) int64, the caller's names of the samples.
        size: values per draw.
        rows: most draws at a time.
        purpose: what the draws are for; other purposes give independent ones.
        device: where they are made.

    Deviation: |value| stays below 7.45, which a normal variable exceeds with a probability of 1e-13.

    >>> noise = Noise(0, torch.tensor([7]), size=4, rows=2)
    >>> both, second = torch.empty(2, 4), torch.empty(1, 4)
    >>> noise.fill(both, torch.tensor([0, 0]), torch.tensor([5, 6]), sigma=1.0)
    >>> noise.fill(second, torch.tensor([0]), torch.tensor([6]), sigma=1.0)
    >>> torch.equal(both[1], second[0])
    True
    """

    def __init__(
        self,
        seed: int,
        ids: Tensor,
        *,
        size: int,
        rows: int,
        purpose: str = "smoothing",
        device: str | torch.device = "cpu",
    ) -> None:
        rng = Rng(seed, ids.to(device))
        self._keys = rng.bits(purpose, 0, torch.arange(len(ids), device=device), ())
        self._half = (size + 1) // 2
        at_once = rows if torch.device(device).type != "cpu" else max(1, _WORDS // self._half)
        self._rows = max(1, min(rows, at_once))
        self._positions = torch.arange(1, self._half + 1, device=device) * _GOLDEN
        self._words, self._other = (
            torch.empty(self._rows, self._half, dtype=torch.int64, device=device) for _ in range(2)
        )
        self._radius, self._angle = (torch.empty(self._rows, self._half, device=device) for _ in range(2))

    def fill(self, out: Tensor, rows: Tensor, draws: Tensor, *, sigma: float) -> None:
        """Writes sigma times the draws numbered `draws` (m,) of the samples in `rows` (m,), 0..g-1, into out (m, size).

        `out` is float32 and on the noise's device.
        """
        keys = mix(self._keys[rows] + draws * _GOLDEN)
        for start in range(0, len(out), self._rows):
            part = slice(start, start + self._rows)
            self._fill(out[part], keys[part], sigma)

    def _fill(self, out: Tensor, keys: Tensor, sigma: float) -> None:
        m, half = len(out), self._half
        words, other, radius, angle = (a[:m] for a in (self._words, self._other, self._radius, self._angle))
        torch.add(keys[:, None], self._positions, out=words)
        _mix(words, other)
        angle.copy_(torch.bitwise_and(words, (1 << 24) - 1, out=other)).mul_(2.0**-24 * 2 * math.pi)
        radius.copy_(words.bitwise_right_shift_(24).bitwise_and_((1 << 40) - 1)).add_(1).mul_(2.0**-40)
        radius.log_().mul_(-2 * sigma * sigma).sqrt_()
        first, second = out[:, :half], out[:, half:]
        torch.cos(angle, out=first).mul_(radius)
        torch.mul(angle.sin_()[:, : second.shape[1]], radius[:, : second.shape[1]], out=second)


def _mix(words: Tensor, other: Tensor) -> None:
    """`poise.rng.mix` on `words`, in place, with `other` as its scratch space instead of new memory."""
    for bits, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, None)):
        torch.bitwise_right_shift(words, bits, out=other).bitwise_and_((1 << (64 - bits)) - 1)
        words.bitwise_xor_(other)
        if factor is not None:
            words.mul_(factor)
