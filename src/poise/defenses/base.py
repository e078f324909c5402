"""The contract of a post-hoc defence: a module from logits to logits that says what it promises."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from poise.errors import InputError, NotFittedError


class PoiseWarning(UserWarning):
    """A result that stands but that its user should know more about, for example a fit that hit a bound.

    >>> import torch, warnings
    >>> from poise.defenses import TemperatureScaling
    >>> sure = 9 * torch.eye(3)  # right without exception: no temperature is low enough
    >>> with warnings.catch_warnings(record=True) as told:
    ...     warnings.simplefilter("always")
    ...     _ = TemperatureScaling().fit(sure, torch.arange(3))
    >>> [warning.category.__name__ for warning in told]
    ['PoiseWarning']
    """


class PostHoc(nn.Module, ABC):
    """A defence behind the model: `fit(logits, labels)` learns, `forward(logits)` maps (n, K) logits to (n, K) logits.

    A subclass writes `_map` and, if it learns, `_fit`; all that it learns lies in buffers, so that it moves, saves and
    exports with the model. Every constructor argument is kept in an attribute of the same name and can be written as
    JSON. Row i of the output depends on row i of the input alone. A row with NaN or inf gives a row without meaning and
    leaves the others as they are: `forward` looks only at shapes and types, so that a GPU never waits for it.
    `poise.checks.defenses.check_defense` verifies all of this and every promise below, on ours and on yours.

    Promises (class data; an option that breaks one of them sets it False on the instance):
        keeps_label: the predicted class stays, to the last bit, ties included (the lowest index among equals wins).
        keeps_order: classes keep their order inside a row: z_i >= z_j gives z'_i >= z'_j.
        monotone: rows keep their order by confidence, where the top class is unique: c_i > c_j gives c'_i >= c'_j.
        stochastic: two calls on the same logits differ.
        differentiable: autograd's gradient is the derivative of the output, almost everywhere.
        needs_fit: `forward` before `fit` raises NotFittedError.

    Buffers:
        fitted: () bool; fit_samples: () int64, the number of samples of the last fit (0 where none are needed).

    Example:
        >>> class Halve(PostHoc):
        ...     keeps_label = keeps_order = True
        ...     needs_fit = False
        ...     def _map(self, logits):
        ...         return logits / 2
        >>> Halve()(torch.tensor([[2.0, 4.0]]))
        tensor([[1., 2.]])
    """

    keeps_label: ClassVar[bool] = False
    keeps_order: ClassVar[bool] = False
    monotone: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True
    needs_fit: ClassVar[bool] = True

    fitted: Tensor
    fit_samples: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fitted", torch.tensor(not self.needs_fit))
        self.register_buffer("fit_samples", torch.tensor(0))

    @torch.no_grad()
    def fit(self, logits: Tensor, labels: Tensor) -> Self:
        """Learns from held-out data and forgets every earlier fit; a defence that needs no data ignores it.

        Args:
            logits: (n, K) finite, n >= 1, K >= 2.
            labels: (n,) integers in [0, K), at least two different ones.

        Raises:
            InputError: the data are not as above; the state is then as before.
        """
        if not self.needs_fit:
            return self
        self._check_logits(logits, for_fit=True)
        labels = self._check_labels(labels, logits)
        self.fitted.fill_(False)
        self._fit(logits, labels)
        self.fitted.fill_(True)
        self.fit_samples.fill_(len(labels))
        return self

    def forward(self, logits: Tensor) -> Tensor:
        """Defended logits.

        Args:
            logits: (n, K) of any floating type, n >= 0, K >= 2.

        Returns:
            (n, K), same type and device.

        Raises:
            InputError: another shape or type, or another K than was fitted where that matters.
            NotFittedError: the defence learns and has not (not seen while torch.export or torch.compile traces).
        """
        self._check_logits(logits, for_fit=False)
        if self.needs_fit and not torch.compiler.is_compiling():
            self.require_fitted()
        return self._map(logits)

    @abstractmethod
    def _map(self, logits: Tensor) -> Tensor:
        """(n, K) logits to (n, K) logits; shape and type have been checked, the fit has happened."""

    def _fit(self, logits: Tensor, labels: Tensor) -> None:
        """Writes the buffers anew from (n, K) finite logits and (n,) int64 labels on the same device."""
        raise TypeError(f"{type(self).__name__} declares needs_fit and must define _fit")

    def _fitted_classes(self) -> int | None:
        """K of the last fit, read from the shape of a buffer, or None for a defence that takes any K."""
        return None

    def require_fitted(self) -> None:
        """Raises NotFittedError where `fit` is needed and has not happened."""
        if not bool(self.fitted):
            raise NotFittedError(f"{type(self).__name__}: must be fitted before use, call fit(logits, labels) first")

    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments by name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def unfitted(self) -> Self:
        """A new, unfitted defence with the same hyper-parameters."""
        return type(self)(**self.hyperparameters())

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.hyperparameters().items())

    def _check_logits(self, logits: Tensor, *, for_fit: bool) -> None:
        name = type(self).__name__
        if not isinstance(logits, Tensor) or not logits.is_floating_point():
            given = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(f"{name}: logits must be a tensor of floating-point numbers, got {given}")
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise InputError(f"{name}: logits must have shape (n, K) with K >= 2, got {tuple(logits.shape)}")
        if not for_fit:
            classes = self._fitted_classes()
            if classes is not None and logits.shape[1] != classes:
                raise InputError(f"{name}: fitted for {classes} classes, got logits of {logits.shape[1]}")
            return
        if len(logits) == 0:
            raise InputError(f"{name}: fit needs at least one sample, got 0")
        bad = ~logits.isfinite().all(dim=1)
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            raise InputError(
                f"{name}: logits must be finite, got NaN or inf in {int(bad.sum())} rows (first: row {first})"
            )

    def _check_labels(self, labels: Tensor, logits: Tensor) -> Tensor:
        name, (n, classes) = type(self).__name__, logits.shape
        integer = isinstance(labels, Tensor) and not (
            labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
        )
        if not integer or labels.shape != (n,):
            given = f"{tuple(labels.shape)} {labels.dtype}" if isinstance(labels, Tensor) else type(labels).__name__
            raise InputError(f"{name}: labels must be ({n},) integers, one per row of logits, got {given}")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise InputError(f"{name}: labels must be in [0, {classes}), got values from {low} to {high}")
        if low == high:
            hint = "are the data sorted by class?" if n > 1 else "one sample is not enough"
            raise InputError(f"{name}: labels must hold at least two classes, got only class {low} ({hint})")
        return labels.to(device=logits.device, dtype=torch.int64)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Buffers whose size is learned take the size of what is loaded."""
        for name, buffer in self._buffers.items():
            stored = state_dict.get(prefix + name)
            if buffer is not None and isinstance(stored, Tensor) and stored.shape != buffer.shape:
                self._buffers[name] = buffer.new_empty(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def stack(module: nn.Module, defense: PostHoc) -> nn.Sequential:
    """The model with the defence behind it, differentiable from image to defended logits.

    Args:
        module: images to (n, K) logits.
        defense: fitted or not; it is shared, not copied (`.defense` of the result).

    Returns:
        One module with the parts `model` and `defense`, ready for `poise.ModuleTarget`, torch.export or a state dict.

    Example:
        >>> from poise.defenses import Identity
        >>> stack(nn.Linear(4, 3), Identity())(torch.zeros(1, 4)).shape
        torch.Size([1, 3])
    """
    return nn.Sequential(OrderedDict([("model", module), ("defense", defense)]))


def wide(values: Tensor) -> Tensor:
    """`values` in float64; in float32 on Apple's GPUs, which have no float64."""
    return values.float() if values.device.type == "mps" else values.double()


def keep_top(before: Tensor, after: Tensor) -> Tensor:
    """`after` with every class that was below the top kept below it, where rounding would have closed the gap.

    A map that keeps the order of classes can still round two neighbouring numbers to one, and the label then moves to
    the lower index. Values change by at most two steps of their type.

    Args:
        before: (n, K) logits before a map that keeps the order of classes up to rounding.
        after: (n, K) logits after it.

    Example:
        >>> keep_top(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 3.0]])).argmax(1)
        tensor([1])
    """
    limits = torch.finfo(after.dtype)
    top = after.amax(dim=1, keepdim=True)
    below = top - top.abs() * limits.eps - limits.tiny
    return torch.where(before < before.amax(dim=1, keepdim=True), torch.minimum(after, below), after)
