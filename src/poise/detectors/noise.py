"""Images with noise about as large as an attack, which a detector must not take for attacked ones."""

from __future__ import annotations

import torch
from torch import Tensor

from poise.errors import InputError
from poise.rng import Rng


def perturbation_rms(clean: Tensor, attacked: Tensor) -> float:
    """Root mean square of attacked - clean over all pixels of all images.

    >>> perturbation_rms(torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.3, 0.1]]]]))
    0.2236...
    """
    if clean.shape != attacked.shape or clean.numel() == 0:
        given = f"{tuple(attacked.shape)} for {tuple(clean.shape)}"
        raise InputError(f"noise: attacked images must have the shape of the clean ones, got {given}")
    return float((attacked.double() - clean.double()).square().mean().sqrt())


def gaussian_noise(
    images: Tensor,
    std: float,
    *,
    ids: Tensor | None = None,
    seed: int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Images with independent Gaussian noise, clipped to the bounds.

    Lee et al. 2018 take a standard deviation per attack from a table, about the attack's size; the calibration-attack
    paper does not say which. Ours is the caller's: `perturbation_rms` is what the experiments take.

    Args:
        images: (n, C, H, W).
        std: in pixel units, at least 0.
        ids: (n,) int64, what a draw depends on beside the seed; 0..n-1 unless given.
        seed: of the draws.
        bounds: lowest and highest pixel.

    Raises:
        InputError: std is negative or not finite.

    >>> float(gaussian_noise(torch.full((1, 1, 100, 100), 0.5), 0.1).std())
    0.1...
    """
    if not 0 <= std < float("inf"):
        raise InputError(f"noise: std must be at least 0 and finite, got {std}")
    rows = torch.arange(len(images))
    rng = Rng(seed, rows if ids is None else ids.cpu())
    draws = rng.normal("detector-noise", 0, rows, tuple(images.shape[1:])).to(images)
    return (images + std * draws).clamp(*bounds)
