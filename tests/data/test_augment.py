"""Training views, held against plain loops over the samples and against torchvision's arithmetic."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from poise.data import AUGMENTATIONS, Compose, HorizontalFlip, RandomCrop, RandomResizedCrop, augmentation
from poise.errors import InputError
from poise.rng import Rng

IDS = torch.tensor([7, 3, 11, 0, 5, 102, 64, 9, 1, 13, 8, 2])
ALL = [*AUGMENTATIONS.values(), augmentation(["crop", "flip"]), augmentation(list(AUGMENTATIONS)), RandomCrop(1)]


def pictures(n: int = len(IDS), shape: tuple[int, ...] = (3, 9, 12)) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


def rows(n: int = len(IDS)) -> Tensor:
    return torch.arange(n)


def test_crops_are_those_of_a_loop() -> None:
    images, rng = pictures(), Rng(3, IDS)
    corners = rng.integers("augment-crop", 2, rows(), 7, (2,)).tolist()
    wanted = []
    for image, (top, left) in zip(images, corners, strict=True):
        padded = torch.zeros(3, 9 + 6, 12 + 6)
        padded[:, 3:-3, 3:-3] = image
        wanted.append(padded[:, top : top + 9, left : left + 12])
    assert torch.equal(RandomCrop(3)(images, rng, 2), torch.stack(wanted))


def test_every_shift_is_as_likely_as_another() -> None:
    images = torch.zeros(9000, 1, 3, 3)
    images[:, :, 1, 1] = 1
    found = RandomCrop(1)(images, Rng(0, rows(9000)), 0).mean(dim=0).flatten()
    assert (found - 1 / 9).abs().max() < 5 * (1 / 9 * 8 / 9 / 9000) ** 0.5


def test_flips_are_those_of_a_loop() -> None:
    images, rng = pictures(), Rng(3, IDS)
    drawn = rng.uniform("augment-flip", 2, rows()).tolist()
    wanted = [image.flip(-1) if u < 0.3 else image for image, u in zip(images, drawn, strict=True)]
    assert torch.equal(HorizontalFlip(0.3)(images, rng, 2), torch.stack(wanted))
    flipped = HorizontalFlip()(pictures(1).expand(4000, -1, -1, -1), Rng(0, rows(4000)), 0) != pictures(1)
    assert abs(flipped.flatten(1).any(dim=1).float().mean() - 0.5) < 0.04


@pytest.mark.parametrize("shape", [(3, 9, 12), (1, 32, 32), (3, 5, 40)])
def test_resized_crops_are_those_of_a_loop(shape: tuple[int, int, int]) -> None:
    images, rng, view = pictures(shape=shape), Rng(3, IDS), RandomResizedCrop()
    boxes = view.boxes(rng, 2, rows(), *shape[1:])
    wanted = []
    for image, (top, left, high, wide) in zip(images, boxes.tolist(), strict=True):
        box = image[None, :, top : top + high, left : left + wide]
        assert box.shape[2:] == (high, wide)
        wanted.append(functional.interpolate(box, shape[1:], mode="bilinear", align_corners=False))
    torch.testing.assert_close(view(images, rng, 2), torch.cat(wanted), rtol=0, atol=2e-5)


def test_boxes_have_the_declared_area_and_shape() -> None:
    boxes = RandomResizedCrop(0.2, 0.9).boxes(*_drawn(32))
    top, left, high, wide = boxes.unbind(1)
    assert bool(((top >= 0) & (left >= 0) & (top + high <= 32) & (left + wide <= 32)).all())
    share, shape = high * wide / 32**2, wide / high
    assert 0.17 < share.min() < 0.25
    assert 0.85 < share.max() < 0.95
    assert 0.70 < shape.min() < 0.8
    assert 1.25 < shape.max() < 1.43
    assert len(set(top.tolist())) > 10
    assert torch.equal(RandomResizedCrop(1, 1, 1).boxes(*_drawn(32))[0], torch.tensor([0, 0, 32, 32]))


def test_a_strip_gives_its_largest_allowed_centre() -> None:
    boxes = RandomResizedCrop(1, 1).boxes(Rng(0, rows(3)), 0, rows(3), 4, 40)
    assert boxes.tolist() == [[0, 17, 4, 5]] * 3  # torchvision's fallback: round(4 * 4 / 3) wide


def _drawn(size: int) -> tuple[Rng, int, Tensor, int, int]:
    return Rng(0, rows(3000)), 0, rows(3000), size, size


@pytest.mark.parametrize("view", ALL, ids=repr)
def test_a_view_depends_on_the_sample_alone(view) -> None:
    images = pictures()
    whole = view(images, Rng(3, IDS), 4)
    order = torch.tensor([4, 0, 9, 2, 11, 1, 3, 10, 5, 8, 6, 7])
    assert torch.equal(view(images[order], Rng(3, IDS[order]), 4), whole[order])
    for part in (slice(0, 1), slice(3, 8)):
        assert torch.equal(view(images[part], Rng(3, IDS[part]), 4), whole[part])
    twins = view(images[:1].expand(5, -1, -1, -1), Rng(3, IDS[:1].expand(5)), 4)
    assert bool((twins == whole[0]).all())


@pytest.mark.parametrize("view", ALL, ids=repr)
def test_another_step_seed_or_id_is_another_view(view) -> None:
    images = pictures()
    before = images.clone()
    whole = view(images, Rng(3, IDS), 4)
    for other in (view(images, Rng(3, IDS), 5), view(images, Rng(4, IDS), 4), view(images, Rng(3, IDS + 1000), 4)):
        assert not torch.equal(other, whole)
    assert torch.equal(images, before)


@pytest.mark.parametrize("view", ALL, ids=repr)
def test_range_shape_and_type_are_kept(view) -> None:
    for images in (pictures(), torch.ones(12, 1, 8, 8), pictures().double()):
        found = view(images, Rng(0, IDS), 0)
        assert found.shape == images.shape
        assert found.dtype is images.dtype
        assert found.min() >= 0
        assert found.max() <= 1


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    augmentation(list(AUGMENTATIONS))(pictures(), Rng(0, IDS), 0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_names_compose_in_their_order() -> None:
    images, rng = pictures(), Rng(3, IDS)
    both = augmentation(["crop", "flip"])
    assert torch.equal(both(images, rng, 1), HorizontalFlip()(RandomCrop()(images, rng, 1), rng, 1))
    assert augmentation([])(images, rng, 1) is images


def test_refused_in_one_line() -> None:
    for call, message in [
        (lambda: augmentation(["crop", "flop"]), r"augment: .* got 'flop' \(did you mean flip"),
        (lambda: augmentation(["flip", "flip"]), "at most one augmentation of each kind, got HorizontalFlip, Horiz"),
        (lambda: Compose((RandomCrop(1), RandomCrop(2))), "at most one augmentation of each kind"),
        (lambda: RandomCrop(0), "RandomCrop: padding must be at least 1, got 0"),
        (lambda: HorizontalFlip(0), r"probability must be in \(0, 1\], got 0"),
        (lambda: RandomResizedCrop(0.5, 0.2), "must have 0 < low <= high <= 1, got low=0.5, high=0.2"),
        (lambda: RandomResizedCrop(ratio=0.5), "ratio must be at least 1, got 0.5"),
        (lambda: RandomCrop()(pictures(3), Rng(0, IDS), 0), r"with one id each, got \(3, 3, 9, 12\) and 12 ids"),
        (lambda: RandomCrop()(pictures()[0], Rng(0, IDS[:3]), 0), r"must be \(b, C, H, W\)"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
