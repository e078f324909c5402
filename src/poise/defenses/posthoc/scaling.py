"""Vector and matrix scaling: an affine map of the logits."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch import Tensor

from poise.defenses.base import PoiseWarning, PostHoc, wide
from poise.defenses.posthoc.temperature import optimal_temperature
from poise.errors import InputError

_LARGEST = 1e3  # bound of every weight and bias, in units of the logits divided by the best temperature
_GRADIENT = 1e-5  # largest slope of the objective that passes for 0
_STEPS = 5000


class _AffineScaling(PostHoc):
    """Fits weight and bias by maximum likelihood around temperature scaling; a subclass says which weights are free."""

    weight: Tensor
    bias: Tensor

    def __init__(self, *, ridge: float) -> None:
        if not 0 <= ridge < math.inf:
            raise InputError(f"{type(self).__name__}: ridge must be at least 0 and finite, got {ridge}")
        super().__init__()
        self.ridge = ridge
        self.register_buffer("weight", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("bias", torch.zeros(0, dtype=torch.float64))

    @abstractmethod
    def _span(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        """What of the logits (n, K) the free weights act on, (n, r)."""

    @abstractmethod
    def _shape(self, span: NDArray[np.float64], classes: int) -> tuple[int, ...]:
        """Shape of the free weights."""

    @abstractmethod
    def _add(self, span: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the free weights add to the logits, (n, K)."""

    @abstractmethod
    def _pull_back(self, span: NDArray[np.float64], error: NDArray[np.float64]) -> NDArray[np.float64]:
        """Derivative of a sum by the free weights, from its derivative by the outputs (n, K)."""

    @abstractmethod
    def _whole(self, z: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
        """The weights of the map, from the free ones."""

    def _fit(self, logits: Tensor, labels: Tensor) -> None:
        temperature, remark = optimal_temperature(logits, labels)
        z = wide(logits).cpu().numpy().astype(np.float64) / temperature
        weight, bias, trouble = self._minimum(z, labels.cpu().numpy())
        for text in filter(None, (remark, trouble)):
            warnings.warn(f"{type(self).__name__}: {text}", PoiseWarning, stacklevel=4)
        kind = wide(logits).dtype
        self.weight = torch.from_numpy(weight / temperature).to(logits.device, kind)
        self.bias = torch.from_numpy(bias).to(logits.device, kind)

    def _minimum(
        self, z: NDArray[np.float64], labels: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], str | None]:
        """Weights and biases with the least mean NLL + penalty, and a remark where that is not what they are."""
        (n, classes), span = z.shape, self._span(z)
        rows, shape = np.arange(n), self._shape(span, classes)

        def objective(moved: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            out = z + self._add(span, moved[:-classes].reshape(shape)) + moved[-classes:]
            out -= logsumexp(out, axis=1, keepdims=True)
            error = np.exp(out)
            error[rows, labels] -= 1
            slope = np.concatenate([self._pull_back(span, error / n).ravel(), error.mean(axis=0)])
            loss = -out[rows, labels].mean() + self.ridge / 2 * moved @ moved
            return float(loss), slope + self.ridge * moved

        start = np.zeros(math.prod(shape) + classes)
        bounds = np.broadcast_to([-_LARGEST, _LARGEST], (start.size, 2))
        options = {"maxiter": _STEPS, "maxfun": 2 * _STEPS, "ftol": 1e-14, "gtol": 1e-8}
        found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        remark = None
        if np.abs(found.x).max() >= _LARGEST:
            remark = f"the NLL falls for ever as the weights grow, clamped to {_LARGEST:g} (a ridge above 0 helps)"
        elif (steepest := np.abs(found.jac).max()) > _GRADIENT:
            remark = f"the fit stopped at a slope of {steepest:.2g} (a larger ridge helps)"
        return self._whole(z, found.x[:-classes].reshape(shape)), found.x[-classes:], remark

    def _fitted_classes(self) -> int | None:
        return len(self.bias) or None

    def _finite(self, logits: Tensor) -> Tensor:
        """Logits in float64, small enough that sums of products stay finite."""
        z = wide(logits)
        most = math.sqrt(torch.finfo(z.dtype).max)
        return z.clamp(-most, most)

    def _narrow(self, out: Tensor, dtype: torch.dtype) -> Tensor:
        limits = torch.finfo(dtype)
        return out.clamp(limits.min, limits.max).to(dtype)


class VectorScaling(_AffineScaling):
    """One weight and one bias for each class: z'_k = w_k z_k + b_k. The label may change.

    Guo et al. 2017, section 4.2. Least mean NLL + ridge/2 (|w T - 1|^2 + |b|^2), where T is the best temperature: a
    large ridge gives temperature scaling, and logits of another scale give the same probabilities.

    Args:
        ridge: weight of the penalty, 0 for none.

    Buffers:
        weight: (K,) float64; bias: (K,) float64.

    Raises:
        InputError: a negative ridge.

    Warns:
        PoiseWarning: at `fit`, where the temperature is at a bound (every sample right, or no better than chance),
            where weights hit theirs (no ridge, separable data), or where the fit did not converge.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 2.0]]).repeat(5, 1)
        >>> labels = torch.tensor([0, 0, 1, 0]).repeat(5)  # class 0 is right always, class 1 in half of the cases
        >>> VectorScaling().fit(logits, labels)(logits[2:3]).softmax(1)
        tensor([[0.50..., 0.49...]])
    """

    def __init__(self, *, ridge: float = 1e-3) -> None:
        super().__init__(ridge=ridge)

    def _span(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        return z

    def _shape(self, span: NDArray[np.float64], classes: int) -> tuple[int, ...]:
        return (classes,)

    def _add(self, span: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
        return span * weight

    def _pull_back(self, span: NDArray[np.float64], error: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((span * error).sum(axis=0))

    def _whole(self, z: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1 + weight

    def _map(self, logits: Tensor) -> Tensor:
        return self._narrow(self._finite(logits) * self.weight + self.bias, logits.dtype)


class MatrixScaling(_AffineScaling):
    """A full matrix and a bias: z' = W z + b. The label may change.

    Guo et al. 2017, section 4.2. Least mean NLL + ridge/2 (|W T - I|^2 + |b|^2), where T is the best temperature: a
    large ridge gives temperature scaling, and logits of another scale give the same probabilities. It has K^2 + K
    numbers to learn: with many classes, hold out much data or raise the ridge.

    Args:
        ridge: weight of the penalty, 0 for none.

    Buffers:
        weight: (K, K) float64, row k makes class k; bias: (K,) float64.

    Raises:
        InputError: a negative ridge.

    Warns:
        PoiseWarning: as for `VectorScaling`.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 2.0]]).repeat(5, 1)
        >>> labels = torch.tensor([0, 0, 1, 0]).repeat(5)
        >>> MatrixScaling().fit(logits, labels)(logits[2:3]).softmax(1)
        tensor([[0.50..., 0.49...]])
    """

    def __init__(self, *, ridge: float = 1e-2) -> None:
        super().__init__(ridge=ridge)

    def _span(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        return z @ _basis(z)

    def _shape(self, span: NDArray[np.float64], classes: int) -> tuple[int, ...]:
        return (classes, span.shape[1])

    def _add(self, span: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
        return span @ weight.T

    def _pull_back(self, span: NDArray[np.float64], error: NDArray[np.float64]) -> NDArray[np.float64]:
        return error.T @ span

    def _whole(self, z: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.eye(z.shape[1]) + weight @ _basis(z).T

    def _map(self, logits: Tensor) -> Tensor:
        return self._narrow(self._finite(logits) @ self.weight.T + self.bias, logits.dtype)


def _basis(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Orthonormal columns (K, r) that span the rows of z (n, K): beyond them the data say nothing of the weights."""
    n, classes = z.shape
    return np.eye(classes) if n >= classes else np.linalg.qr(z.T)[0]


__all__ = ["MatrixScaling", "VectorScaling"]
