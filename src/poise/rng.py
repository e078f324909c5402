"""Random numbers as a pure function of (seed, sample, purpose, step, position).

A draw never depends on batch size, order, sharding or on how often a run was interrupted, and no global
generator is read or written. The bits are those of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), keyed twice:
once by (seed, purpose, step) on the host, once by the sample's id on the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

import torch
from torch import Tensor

from poise.errors import InputError

_GAMMA = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    """The 64-bit pattern of `value` as torch's signed int64 reads it."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def mix_int(value: int) -> int:
    """SplitMix64's finaliser on a host integer in [0, 2^64)."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * _MIX[0]) & _MASK
    value = ((value ^ (value >> 27)) * _MIX[1]) & _MASK
    return value ^ (value >> 31)


def _xor_shift(value: Tensor, bits: int) -> Tensor:
    """value ^ (value >>> bits), in place; int64's own shift copies the sign, so the copies are masked off."""
    return value.bitwise_xor_((value >> bits).bitwise_and_((1 << (64 - bits)) - 1))


def mix(value: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 bit patterns, in place."""
    value = _xor_shift(value, 30).mul_(_signed(_MIX[0]))
    value = _xor_shift(value, 27).mul_(_signed(_MIX[1]))
    return _xor_shift(value, 31)


@lru_cache(maxsize=256)
def _purpose_key(purpose: str) -> int:
    return int.from_bytes(blake2b(purpose.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True, slots=True)
class Rng:
    """Independent random streams for the samples of one attack.

    Args:
        seed: any integer; its lowest 64 bits count.
        sample_ids: (n,) int64, the caller's names of the samples; equal ids get equal draws.

    Every method takes `purpose` (what the draw is for), `step` and `ids` (m,), the rows 0..n-1 of the samples.

    >>> rng = Rng(0, torch.arange(3))
    >>> whole = rng.uniform("demo", 0, torch.arange(3), (2,))
    >>> bool((rng.uniform("demo", 0, torch.tensor([2]), (2,)) == whole[2]).all())
    True
    """

    seed: int
    sample_ids: Tensor

    def __post_init__(self) -> None:
        if self.sample_ids.dtype is not torch.int64 or self.sample_ids.ndim != 1:
            raise InputError(
                f"Rng: sample_ids must be (n,) int64, got {tuple(self.sample_ids.shape)} {self.sample_ids.dtype}"
            )

    def fork(self, branch: int) -> Rng:
        """Streams of the same samples that are independent of these and of every other branch's."""
        base = mix_int(self.seed * _GAMMA + _purpose_key("fork"))
        return Rng(_signed(mix_int(base + (branch + 1) * _GAMMA)), self.sample_ids)

    def bits(self, purpose: str, step: int, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        """(m, *shape) int64, every bit a fair coin."""
        return self.bits_of(purpose, range(step, step + 1), ids, shape)[0]

    def bits_of(self, purpose: str, steps: range, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        """(steps, m, *shape) int64: the bits of several steps, from as many kernels as those of one."""
        base = mix_int(self.seed * _GAMMA + _purpose_key(purpose))
        keys = [_signed(mix_int(base + (step + 1) * _GAMMA)) for step in steps]
        names = self.sample_ids[ids] * _signed(_GAMMA)
        known = names + keys[0] if len(keys) == 1 else names + torch.tensor(keys, device=ids.device)[:, None]
        positions = torch.arange(1, math.prod(shape) + 1, device=ids.device) * _signed(_GAMMA)
        return mix(mix(known)[..., None] + positions).view(len(keys), len(ids), *shape)

    def uniform(self, purpose: str, step: int, ids: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        """(m, *shape) float32, uniform on the 2^24 multiples of 2^-24 in [0, 1)."""
        return (self.bits(purpose, step, ids, shape) & 0xFFFFFF).float().mul_(2.0**-24)

    def integers(self, purpose: str, step: int, ids: Tensor, high: int, shape: tuple[int, ...] = ()) -> Tensor:
        """(m, *shape) int64 in {0, ..., high - 1}; the bias of the modulus is below high / 2^63."""
        if high < 1:
            raise InputError(f"Rng.integers: high must be at least 1, got {high}")
        return (self.bits(purpose, step, ids, shape) & ((1 << 63) - 1)) % high

    def signs(self, purpose: str, step: int, ids: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        """(m, *shape) bool, True with probability 1/2."""
        return self.bits(purpose, step, ids, shape) < 0

    def normal(self, purpose: str, step: int, ids: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        """(m, *shape) float32, standard normal (Box-Muller from one 64-bit word each)."""
        bits = self.bits(purpose, step, ids, shape)
        radius = ((bits & 0xFFFFFF) + 1).float().mul_(2.0**-24).log_().mul_(-2.0).sqrt_()
        angle = ((bits >> 32) & 0xFFFFFF).float().mul_(2.0**-24 * 2.0 * math.pi)
        return radius.mul_(angle.cos_())
