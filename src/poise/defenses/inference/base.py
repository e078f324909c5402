"""The contract of an inference-time defence: it goes around a model and says what it promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from poise.defenses.base import PostHoc, stack
from poise.errors import InputError


class InferenceDefense(ABC):
    """Hyper-parameters of a defence that needs no fit; `around(model)` gives the defended model.

    Promises (class data; an option that breaks one of them sets it on the instance):
        keeps_label: the defended model predicts what the bare one does.
        needs_fit: never, here; a fitted part is given to the constructor.
        stochastic: two calls on the same images differ. The numbers come from torch's generator of the images' device,
            which a target's session seeds, and restores.
        differentiable: autograd's gradient is the derivative of the output, almost everywhere.
        batch_dependent: row i of the answer depends on the other rows, so that it changes with the batch size.
        exportable: `poise.defenses.export` can write the defended model, and check what it wrote.

    >>> import torch
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Darker(InferenceDefense):
    ...     by: float = 0.9
    ...     def around(self, model):
    ...         class Around(torch.nn.Module):
    ...             def forward(inner, x):
    ...                 return model(self.by * x)
    ...         return Around()
    >>> Darker().around(torch.nn.Flatten())(torch.ones(1, 1, 1, 2))
    tensor([[0.9000, 0.9000]])
    """

    keeps_label: ClassVar[bool] = False
    needs_fit: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True
    batch_dependent: ClassVar[bool] = False
    exportable: ClassVar[bool] = True

    @abstractmethod
    def around(self, model: nn.Module) -> nn.Module:
        """The defended model, images to (n, K) logits; `model` is shared, not copied."""


class InputDefense(InferenceDefense, nn.Module):
    """A defence that changes the images alone: itself a module from images to images of the same shape and type.

    A subclass writes `_map`. An attacker who knows it replaces it by its own stand-in, see `defended`.

    Args:
        bounds: lowest and highest legal pixel value, those of the target.

    Example:
        >>> import torch
        >>> class Darker(InputDefense):
        ...     def _map(self, x):
        ...         return x / 2
        >>> Darker().around(nn.Flatten())(torch.ones(1, 1, 1, 2))
        tensor([[0.5000, 0.5000]])
    """

    def __init__(self, bounds: tuple[float, float] = (0.0, 1.0)) -> None:
        if not len(bounds) == 2 or not bounds[0] < bounds[1] or abs(bounds[0]) + abs(bounds[1]) == float("inf"):
            raise InputError(f"{type(self).__name__}: bounds must be finite (low, high) with low < high, got {bounds}")
        super().__init__()
        self.bounds = (float(bounds[0]), float(bounds[1]))

    def forward(self, x: Tensor) -> Tensor:
        """Images as the model will see them.

        Args:
            x: (n, C, H, W) of any floating type, n >= 0; values outside `bounds` are clipped.

        Raises:
            InputError: another shape, or a type that is not floating.
        """
        check_images(type(self).__name__, x)
        return self._map(x)

    def around(self, model: nn.Module) -> nn.Module:
        return nn.Sequential(OrderedDict([("defense", self), ("model", model)]))

    @abstractmethod
    def _map(self, x: Tensor) -> Tensor:
        """(n, C, H, W) to the same shape and type, inside `bounds`."""


def check_images(name: str, x: Tensor) -> None:
    """Raises InputError unless `x` is (n, C, H, W) of a floating type."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        given = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"{name}: images must be a tensor of floating-point numbers, got {given}")
    if x.ndim != 4:
        raise InputError(f"{name}: images must have shape (n, C, H, W), got {tuple(x.shape)}")


def defended(
    model: nn.Module, *, inference: Sequence[InferenceDefense | nn.Module] = (), posthoc: Sequence[PostHoc] = ()
) -> nn.Module:
    """A model with any number of defences in front of it, around it and behind it.

    Args:
        model: images to (n, K) logits, the normalisation inside; shared, not copied.
        inference: in the order in which an image meets them. A plain module is taken as one from images to images,
            e.g. an attacker's stand-in `BPDA(Quantize(), nn.Identity())`. What comes after `Dent` runs again in each
            of its steps, what comes before it once: `[RandomNoise(), Dent()]` adapts to one noisy image.
        posthoc: in the order in which logits meet them.

    Returns:
        One module from images to logits, ready for `poise.ModuleTarget`; `model` itself where nothing is given.

    Raises:
        InputError: a part is of the wrong kind.

    Example:
        >>> import torch
        >>> from poise.defenses import CompressionScaling, Quantize
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> defended(model, inference=[Quantize()], posthoc=[CompressionScaling()])(torch.rand(2, 1, 2, 2)).shape
        torch.Size([2, 3])
    """
    for part in reversed(inference):
        if isinstance(part, InferenceDefense):
            model = part.around(model)
        elif isinstance(part, nn.Module) and not isinstance(part, PostHoc):
            model = nn.Sequential(OrderedDict([("defense", part), ("model", model)]))
        else:
            raise InputError(
                "defended: inference must hold inference-time defences or modules from images to images, "
                f"got {type(part).__name__}"
            )
    for defense in posthoc:
        if not isinstance(defense, PostHoc):
            raise InputError(f"defended: posthoc must hold post-hoc defences, got {type(defense).__name__}")
        model = stack(model, defense)
    return model
