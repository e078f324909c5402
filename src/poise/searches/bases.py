"""Orthonormal bases of images that are products of one basis of columns and one of rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Basis:
    """An orthonormal basis of (H, W) images; member (r, c) is the outer product of vertical[r] and horizontal[c].

    Args:
        vertical: (H, H), its rows orthonormal.
        horizontal: (W, W), its rows orthonormal.

    >>> basis = cosines(2, 3, torch.float64, torch.device("cpu"))
    >>> x = torch.rand(1, 1, 2, 3, dtype=torch.float64)
    >>> torch.allclose(basis.image(basis.coefficients(x)), x)
    True
    """

    vertical: Tensor
    horizontal: Tensor

    def coefficients(self, x: Tensor) -> Tensor:
        """(..., H, W) coordinates of images x (..., H, W) in this basis; lengths are kept."""
        return self.vertical @ x @ self.horizontal.T

    def image(self, coefficients: Tensor) -> Tensor:
        """(..., H, W) images with these coordinates (..., H, W); the inverse of `coefficients`."""
        return self.vertical.T @ coefficients @ self.horizontal

    def members(self, row: Tensor, column: Tensor) -> Tensor:
        """(m, H, W) members (row, column), both (m,), each of length 1: one outer product, no transform."""
        return self.vertical[row][:, :, None] * self.horizontal[column][:, None, :]


def cosine_matrix(side: int) -> Tensor:
    """(side, side) float64, the orthonormal DCT-II: row 0 is constant, row k has k half waves."""
    middle = torch.arange(side, dtype=torch.float64) + 0.5
    waves = torch.cos(math.pi / side * torch.arange(side, dtype=torch.float64)[:, None] * middle)
    waves *= math.sqrt(2 / side)
    waves[:1] = 1 / math.sqrt(side)
    return waves


def cosines(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Basis:
    """The two-dimensional DCT of the whole image, norm "ortho"; low frequencies first in both directions."""
    return Basis(cosine_matrix(height).to(device, dtype), cosine_matrix(width).to(device, dtype))


def pixels(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Basis:
    """Every pixel by itself."""
    return Basis(torch.eye(height, dtype=dtype, device=device), torch.eye(width, dtype=dtype, device=device))


BASES: dict[str, Callable[[int, int, torch.dtype, torch.device], Basis]] = {"dct": cosines, "pixel": pixels}
"""Bases by name."""
