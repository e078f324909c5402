"""A model as experiments serve it: asked so that a misfit becomes one line, and with a defence behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from poise.data import Dataset
from poise.defenses import InferenceDefense, PostHoc, stack
from poise.errors import InputError, PoiseError
from poise.targets import ModuleTarget, Target
from poise.types import OutputKind, Outputs


def ask(target: Target, images: Tensor, ids: Tensor, dataset: Dataset) -> Outputs:
    """One answer of the model; whatever the user's code raises becomes one line.

    Raises:
        InputError: the model does not take images like these.
    """
    with inside_model("accept", dataset):
        return target.query(images.to(target.device), ids.to(target.device))


@contextmanager
def inside_model(must: str, dataset: Dataset) -> Iterator[None]:
    """Turns whatever the user's model raises into one line that says what it must do, and the images' shape."""
    try:
        yield
    except PoiseError:
        raise
    except Exception as error:  # the user's code may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        shape = "×".join(str(side) for side in dataset.shape)
        raise InputError(f"model: must {must} images of shape {shape} as in '{dataset.name}', got: {reason}") from error


class _Logits(nn.Module):
    """A model that returns probabilities, as one that returns logits."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return Outputs(self.module(x), OutputKind.PROBABILITIES).logits


def as_logits(target: ModuleTarget) -> nn.Module:
    """The target's module, images in its bounds to (n, K) logits."""
    return target.module if target.kind is OutputKind.LOGITS else _Logits(target.module)


Defence = PostHoc | InferenceDefense
"""What an experiment sets against attacks: behind a model's answers, or around the model."""


def behind(target: ModuleTarget, defence: Defence) -> ModuleTarget:
    """The target with a defence behind or around it."""
    bare = as_logits(target)
    if isinstance(defence, PostHoc):
        return with_module(target, stack(bare, defence.to(target.device)))
    return with_module(target, defence.around(bare))


def with_module(like: ModuleTarget, module: nn.Module) -> ModuleTarget:
    """A target that answers with this module's logits and is otherwise like another."""
    return ModuleTarget(
        module,
        num_classes=like.num_classes,
        bounds=like.bounds,
        device=like.device,
        batch_size=like.batch_size,
        access=like.access,
    )
