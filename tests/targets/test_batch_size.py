"""`fitting_batch_size`: the memory and the rate decide, and the target is left as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from poise.errors import InputError
from poise.targets import FunctionTarget, ModuleTarget, batch_size, fitting_batch_size

SHAPE = (3, 8, 8)


class Sized(nn.Module):
    """Notes how many images each call holds; refuses more than `most`, as a GPU without memory does."""

    def __init__(self, most: int = 10**6) -> None:
        super().__init__()
        self.linear, self.most, self.seen = nn.Linear(3 * 8 * 8, 10), most, []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("no memory")
        return self.linear(x.flatten(1))


def clock(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float]) -> None:
    monkeypatch.setattr(batch_size, "_seconds", lambda target, images, gradients: _timed(target, images, seconds))


def _timed(target: ModuleTarget, images: Tensor, seconds: Callable[[int], float]) -> float:
    target.query(images, torch.zeros(len(images), dtype=torch.long))
    return seconds(len(images))


def test_the_smallest_that_is_nearly_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Sized()
    clock(monkeypatch, lambda size: 1.0 + 0.01 * size)  # per image: 1 / size + 0.01
    found = fitting_batch_size(ModuleTarget(model, num_classes=10), SHAPE, most=8192)
    assert found == 2048  # 0.01049 s per image against 0.01012 s at 8,192; 1,024 takes 0.01098 s
    assert max(model.seen) == 8192


def test_what_cannot_fit_is_never_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    model, each = Sized(), 4 * (10 + 3 * 8 * 8)
    monkeypatch.setattr(batch_size, "_free", lambda device: 2 * 100 * each)
    clock(monkeypatch, lambda size: 1.0)
    assert fitting_batch_size(ModuleTarget(model, num_classes=10), SHAPE) == 64
    assert max(model.seen) == 64


@pytest.mark.parametrize("gradients", [False, True])
def test_running_out_of_memory_ends_the_search(gradients: bool) -> None:
    model = Sized(most=32)
    target = ModuleTarget(model, num_classes=10, batch_size=7)
    assert fitting_batch_size(target, SHAPE, gradients=gradients) <= 32
    assert max(model.seen) == 64
    assert target.batch_size == 7
    assert not model._forward_hooks
    assert not model.linear._forward_hooks


def test_one_image_that_does_not_fit_is_told() -> None:
    with pytest.raises(InputError, match="not even one image of shape"):
        fitting_batch_size(ModuleTarget(Sized(most=0), num_classes=10), SHAPE)


def test_other_targets_are_tried_to_256() -> None:
    sizes: list[int] = []

    def answer(images):
        sizes.append(len(images))
        return images.reshape(len(images), -1)[:, :10]

    target = FunctionTarget(answer, num_classes=10, outputs="logits")
    assert fitting_batch_size(target, SHAPE) <= 256
    assert max(sizes) == 256
    with pytest.raises(InputError, match="gradients must be False for a FunctionTarget"):
        fitting_batch_size(target, SHAPE, gradients=True)


@pytest.mark.parametrize(("shape", "most"), [((3, 8), 4), ((3, 0, 8), 4), (SHAPE, 0)])
def test_refusals(shape: tuple, most: int) -> None:
    with pytest.raises(InputError, match="must be at least 1"):
        fitting_batch_size(ModuleTarget(Sized(), num_classes=10), shape, most=most)
