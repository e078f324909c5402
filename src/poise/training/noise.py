"""Other versions of a batch that no attack makes: noise, and AugMix."""

from __future__ import annotations

import torch
from torch import Tensor

from poise.data.vision import import_torchvision
from poise.rng import mix_int
from poise.targets.base import private_random
from poise.training.base import Batch


def gaussian(batch: Batch, std: float, *, clip: bool) -> Tensor:
    """(b, C, H, W) images plus N(0, std^2), drawn anew for every sample and step.

    Args:
        batch: images, ids and step.
        std: in pixel units.
        clip: move the result into [0, 1].
    """
    noise = batch.rng.normal("training-noise", batch.step, batch.rows, tuple(batch.images.shape[1:]))
    moved = batch.images + std * noise.to(batch.images.dtype)
    return moved.clamp(0, 1) if clip else moved


def augmix(batch: Batch) -> Tensor:
    """(b, C, H, W) AugMix versions (Hendrycks et al., ICLR 2020), as torchvision makes them from 8-bit images.

    One chain of operations per batch and step; the weights of the mixture are each sample's own.

    Raises:
        MissingExtraError: torchvision is not installed.
    """
    transforms = import_torchvision("transforms", feature="training: AugMix")
    levels = (batch.images * 255).round().to(torch.uint8)
    with private_random(batch.images.device, mix_int(batch.seed ^ mix_int(batch.step)) >> 1):
        mixed: Tensor = transforms.AugMix()(levels)
    return mixed.to(batch.images.dtype) / 255
