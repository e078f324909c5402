"""Training views: random crops and flips, drawn per sample, computed for a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from poise.errors import InputError, one_of
from poise.rng import Rng

_TRIES = 10


class Augmentation(Protocol):
    """A random view of every image of a batch; labels do not change.

    >>> import torch
    >>> from poise.data import HorizontalFlip
    >>> from poise.rng import Rng
    >>> view: Augmentation = HorizontalFlip()
    >>> view(torch.rand(2, 3, 4, 4), Rng(0, torch.arange(2)), step=0).shape
    torch.Size([2, 3, 4, 4])
    """

    def __call__(self, images: Tensor, rng: Rng, step: int) -> Tensor:
        """(b, C, H, W) from (b, C, H, W): sample i's draw depends on (rng.seed, its id, step) and on nothing else."""
        ...


def _rows(what: str, images: Tensor, rng: Rng) -> Tensor:
    """(b,) int64, the rows of the samples; refuses another number of ids than of images."""
    if images.ndim != 4 or len(images) != len(rng.sample_ids):
        raise InputError(
            f"{what}: images must be (b, C, H, W) with one id each, got {tuple(images.shape)} "
            f"and {len(rng.sample_ids)} ids"
        )
    return torch.arange(len(images), device=rng.sample_ids.device)


@dataclass(frozen=True, slots=True)
class RandomCrop:
    """A crop of the image's own size from the image with a black margin (`RandomCrop(size, padding)` of torchvision).

    Args:
        padding: width of the margin in pixels, at least 1; each shift in -padding..padding is equally likely.

    >>> images = torch.ones(2, 3, 8, 8)
    >>> RandomCrop(padding=2)(images, Rng(0, torch.tensor([5, 9])), step=0).shape
    torch.Size([2, 3, 8, 8])
    """

    padding: int = 4

    def __post_init__(self) -> None:
        if self.padding < 1:
            raise InputError(f"RandomCrop: padding must be at least 1, got {self.padding}")

    def __call__(self, images: Tensor, rng: Rng, step: int) -> Tensor:
        """(b, C, H, W) from (b, C, H, W): see `Augmentation`."""
        rows = _rows("RandomCrop", images, rng)
        height, width = images.shape[2:]
        corner = rng.integers("augment-crop", step, rows, 2 * self.padding + 1, (2,)).to(images.device)
        padded = functional.pad(images, (self.padding,) * 4)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (b, C, 2p + 1, 2p + 1, H, W)
        return windows[rows.to(images.device), :, corner[:, 0], corner[:, 1]]


@dataclass(frozen=True, slots=True)
class HorizontalFlip:
    """The mirror image, with a given probability.

    Args:
        probability: in (0, 1].

    >>> images = torch.arange(4.0).view(1, 1, 1, 4)
    >>> HorizontalFlip(probability=1.0)(images, Rng(0, torch.tensor([5])), step=0).flatten().tolist()
    [3.0, 2.0, 1.0, 0.0]
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise InputError(f"HorizontalFlip: probability must be in (0, 1], got {self.probability}")

    def __call__(self, images: Tensor, rng: Rng, step: int) -> Tensor:
        """(b, C, H, W) from (b, C, H, W): see `Augmentation`."""
        drawn = rng.uniform("augment-flip", step, _rows("HorizontalFlip", images, rng)).to(images.device)
        return torch.where((drawn < self.probability)[:, None, None, None], images.flip(3), images)


@dataclass(frozen=True, slots=True)
class RandomResizedCrop:
    """A crop of random area and shape, enlarged to the image's own size (Szegedy et al. 2015; as torchvision's).

    The first of ten drawn boxes that fits in the image is taken, else the largest centred box of an allowed shape.
    The enlargement is bilinear and sees no pixel outside the box.

    Args:
        low, high: share of the image's area, 0 < low <= high <= 1.
        ratio: the largest width / height, at least 1; the smallest is 1 / ratio; drawn uniformly in its logarithm.

    >>> images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> RandomResizedCrop()(images, Rng(0, torch.tensor([5, 9])), step=0).shape
    torch.Size([2, 3, 8, 8])
    """

    low: float = 0.08
    high: float = 1.0
    ratio: float = 4 / 3

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise InputError(f"RandomResizedCrop: must have 0 < low <= high <= 1, got low={self.low}, high={self.high}")
        if self.ratio < 1:
            raise InputError(f"RandomResizedCrop: ratio must be at least 1, got {self.ratio}")

    def __call__(self, images: Tensor, rng: Rng, step: int) -> Tensor:
        """(b, C, H, W) from (b, C, H, W): see `Augmentation`."""
        height, width = images.shape[-2:]
        boxes = self.boxes(rng, step, _rows("RandomResizedCrop", images, rng), height, width).to(images.device)
        top, left, high, wide = boxes.float().unbind(1)
        across, down = _places(left, wide, width), _places(top, high, height)
        grid = torch.stack(
            [across[:, None, :].expand(-1, height, -1), down[:, :, None].expand(-1, -1, width)], dim=3
        ).to(images.dtype)
        views = functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
        low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
        return views.clamp(low, high)  # a mean of pixels may leave their range by a rounding error

    def boxes(self, rng: Rng, step: int, rows: Tensor, height: int, width: int) -> Tensor:
        """(b, 4) int64: top, left, height and width of each sample's box."""
        area, shape, across, down = rng.uniform("augment-resized-crop", step, rows, (4, _TRIES)).unbind(1)
        area = (self.low + (self.high - self.low) * area) * height * width
        shape = ((2 * shape - 1) * log(self.ratio)).exp()
        wide, high = (area * shape).sqrt().round().long(), (area / shape).sqrt().round().long()
        fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
        first = fits.int().argmax(dim=1, keepdim=True)
        wide, high = wide.gather(1, first)[:, 0], high.gather(1, first)[:, 0]
        top = (down.gather(1, first)[:, 0] * (height - high + 1)).long().minimum(height - high)
        left = (across.gather(1, first)[:, 0] * (width - wide + 1)).long().minimum(width - wide)
        largest_wide = min(width, round(height * self.ratio))
        largest_high = min(height, round(width * self.ratio))
        centred = torch.tensor(
            [(height - largest_high) // 2, (width - largest_wide) // 2, largest_high, largest_wide], device=rows.device
        )
        return torch.where(fits.any(dim=1)[:, None], torch.stack([top, left, high, wide], dim=1), centred)


def _places(start: Tensor, length: Tensor, size: int) -> Tensor:
    """(b, size): where an axis is read, in grid_sample's coordinates, to stretch [start, start + length) over it."""
    centres = torch.arange(size, device=start.device, dtype=start.dtype) + 0.5
    places = centres * (length / size)[:, None] - 0.5
    places = places.clamp_min(0).minimum(length[:, None] - 1) + start[:, None]
    return (2 * places + 1) / size - 1


@dataclass(frozen=True, slots=True)
class Compose:
    """Augmentations one after the other.

    Args:
        parts: at most one of each kind, because two of a kind would draw the same.

    >>> images = torch.ones(2, 3, 8, 8)
    >>> Compose((RandomCrop(), HorizontalFlip()))(images, Rng(0, torch.tensor([5, 9])), step=0).shape
    torch.Size([2, 3, 8, 8])
    """

    parts: tuple[Augmentation, ...] = ()

    def __post_init__(self) -> None:
        kinds = [type(part).__name__ for part in self.parts]
        if len(set(kinds)) < len(kinds):
            raise InputError(f"Compose: there must be at most one augmentation of each kind, got {', '.join(kinds)}")

    def __call__(self, images: Tensor, rng: Rng, step: int) -> Tensor:
        """(b, C, H, W) from (b, C, H, W): see `Augmentation`."""
        for part in self.parts:
            images = part(images, rng, step)
        return images


AUGMENTATIONS: dict[str, Augmentation] = {
    "crop": RandomCrop(),
    "flip": HorizontalFlip(),
    "resized-crop": RandomResizedCrop(),
}
"""Name in a recipe → augmentation."""


def augmentation(names: Sequence[str]) -> Compose:
    """The augmentations of these names, one after the other; none leaves the images as they are.

    Raises:
        InputError: for an unknown name, or the same name twice.

    >>> augmentation(["crop", "flip"]).parts
    (RandomCrop(padding=4), HorizontalFlip(probability=0.5))
    """
    for name in names:
        if name not in AUGMENTATIONS:
            raise one_of("augment", name, list(AUGMENTATIONS))
    return Compose(tuple(AUGMENTATIONS[name] for name in names))
