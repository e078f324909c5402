"""A model as experiments serve it: asked so that a misfit becomes one line, and with a defence behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from poise import defenses
from poise.data import Dataset
from poise.defenses import InferenceDefense, PostHoc, stack
from poise.errors import InputError, PoiseError
from poise.targets import ModuleTarget, Target
from poise.targets.in_front import InFront
from poise.types import Access, OutputKind, Outputs


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


class Defended(InFront):
    """A target whose answers pass through a post-hoc defence before anybody sees them; scores alone, no gradients.

    Args:
        target: answers with scores.
        defence: maps their logits to logits; shared, not copied, and moved to the target's device.

    Raises:
        InputError: the target answers labels alone.
    """

    def __init__(self, target: Target, defence: PostHoc) -> None:
        if target.kind is OutputKind.LABELS or target.access < Access.SCORES:
            raise InputError(
                f"defences: a model that answers labels alone cannot carry a defence, got {type(defence).__name__} "
                "(give --defenses none)"
            )
        super().__init__(target)
        self.kind, self.access = OutputKind.LOGITS, Access.SCORES
        self._defence = defence.to(target.device)

    def query(self, x: Tensor, ids: Tensor) -> Outputs:
        """Defended logits for points x (m, C, H, W)."""
        return Outputs(defended_logits(self._defence, self.target.query(x, ids)))


@torch.no_grad()
def defended_logits(defence: PostHoc, answer: Outputs) -> Tensor:
    """What a defence makes of an answer (m, K): of its logits as they are, or of the logarithms of probabilities."""
    logits = answer.scores if answer.kind is OutputKind.LOGITS else answer.logits
    found: Tensor = defence(logits.to(defence.fitted.device))
    return found


def served(target: Target, defence: Defence) -> Target:
    """The target with a defence behind it, differentiable where the target is a module.

    Raises:
        InputError: the target answers labels alone.
    """
    if isinstance(target, ModuleTarget):
        return behind(target, defence)
    if not isinstance(defence, PostHoc):
        raise InputError(f"defences: {type(defence).__name__} goes around a PyTorch module, got another kind of model")
    return Defended(target, defence)


def saved(file: Path, classes: int) -> PostHoc:
    """A defence as `poise defend fit` wrote it, for a model of so many classes.

    Raises:
        InputError: no such file, or fitted for another number of classes, as its buffers or its provenance tell.
    """
    defence = defenses.load(file)
    with torch.no_grad():
        defence(torch.zeros(1, classes))
    fitted = defenses.provenance(file).get("num_classes", classes)
    if fitted != classes:
        raise InputError(f"defense: '{file}' was fitted for {fitted} classes, the model has {classes}")
    return defence
