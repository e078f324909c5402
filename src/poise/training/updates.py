"""How a step's gradients come from the loss: plainly, at a sharper point (SAM), common to several attacks (DDi)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from poise.errors import InputError
from poise.training.base import Backward, LossOf, Terms, Views, total, trained
from poise.training.inner import check_weight


@dataclass(frozen=True)
class Plain:
    """The gradient of the loss at the parameters.

    >>> from poise.training import training_recipe
    >>> training_recipe("standard").made_update() == Plain()
    True
    """

    def gradients(self, loss_of: LossOf, views: Views, backward: Backward, module: nn.Module) -> Terms:
        terms = loss_of(views)
        backward(total(terms))
        return terms


@dataclass(frozen=True)
class SAM:
    """Sharpness-aware minimisation (Foret et al., ICLR 2021): the gradient at w + rho g / ||g||_2, applied to w.

    Args:
        rho: .05. With 0 the gradient is the plain one, computed twice.

    The norm is over all trained parameters together. Running statistics of batch norm are those of the first pass,
    and w is put back bit by bit before the step.

    >>> from poise.training import training_recipe
    >>> training_recipe("sam", {"update.rho": 0.1}).made_update() == SAM(rho=0.1)
    True
    """

    rho: float = 0.05

    def __post_init__(self) -> None:
        check_weight("SAM", rho=self.rho)

    def gradients(self, loss_of: LossOf, views: Views, backward: Backward, module: nn.Module) -> Terms:
        terms = loss_of(views)
        backward(total(terms))
        moved = [parameter for parameter in trained(module) if parameter.grad is not None]
        before = [parameter.detach().clone() for parameter in moved]
        with torch.no_grad():
            length = torch.stack([_gradient(one).norm() for one in moved]).norm() + 1e-12
            for parameter in moved:
                parameter.add_(_gradient(parameter) * (self.rho / length))
                parameter.grad = None
        try:
            with _frozen_statistics(module):
                backward(total(loss_of(views)))
        finally:
            with torch.no_grad():
                for parameter, old in zip(moved, before, strict=True):
                    parameter.copy_(old)
        return terms


@dataclass(frozen=True)
class CommonDescent:
    """A direction that descends for every version of the batch at once (DDi, Latorre et al., 2023).

    The gradients g_1 .. g_M of the loss at each view are combined with the weights a of the shortest vector of their
    convex hull, argmin ||sum a_m g_m|| over the simplex, so that <g_m, d> >= ||d||^2 for every m.

    Args:
        normalise: scale the direction to length 1, as the paper's algorithm does. This is what makes such networks
            extremely overconfident (Raina et al., ACL 2024).
        iterations: of accelerated projected gradient on the M x M products; 100 in the released code.

    >>> from poise.training import training_recipe
    >>> training_recipe("ddi-at-unnormalised").made_update() == CommonDescent(normalise=False)
    True
    """

    normalise: bool = True
    iterations: int = 100

    def __post_init__(self) -> None:
        check_weight("CommonDescent", iterations=self.iterations)

    def gradients(self, loss_of: LossOf, views: Views, backward: Backward, module: nn.Module) -> Terms:
        if not views:
            raise InputError("CommonDescent: the method must make other versions of the images, as 'copies' does")
        found: list[list[Tensor]] = []
        logged: list[Terms] = []
        for view in views:
            for parameter in trained(module):
                parameter.grad = None
            logged.append(loss_of((view,)))
            backward(total(logged[-1]))
            found.append([torch.zeros_like(one) if one.grad is None else one.grad.clone() for one in trained(module)])
        flat = torch.stack([torch.cat([part.flatten() for part in gradient]) for gradient in found])
        weights = shortest(flat.double() @ flat.double().T, self.iterations).to(flat)
        direction = weights @ flat
        if self.normalise:
            direction = direction / direction.norm().clamp_min(1e-12)
        parts = torch.split(direction, [one.numel() for one in trained(module)])
        for parameter, part in zip(trained(module), parts, strict=True):
            parameter.grad = part.view_as(parameter).clone()
        return {name: torch.stack([terms[name].detach() for terms in logged]).mean() for name in logged[0]}


def shortest(products: Tensor, iterations: int) -> Tensor:
    """(M,) weights on the simplex of the shortest vector of the convex hull of M vectors, from their products (M, M).

    Accelerated projected gradient from uniform weights with step 1 / ||G|| and extrapolation k / (k + 3), restarted
    where it turns against itself. G are the products without their mean over rows and columns: on the simplex what all
    vectors share changes nothing, and it is most of the gradients of attacked copies, which are nearly parallel.

    >>> rows = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    >>> [round(weight, 6) for weight in shortest(rows @ rows.T, 100).tolist()]
    [0.2, 0.8]
    """
    count = len(products)
    if count == 1 or not bool(torch.isfinite(products).all()):  # what is not finite, the loss, stops the run elsewhere
        return products.new_full((count,), 1 / count)
    centred = products - products.mean(dim=0)
    scale = torch.linalg.matrix_norm(centred - centred.mean(dim=1, keepdim=True), 2)
    if not bool(scale > 0):
        return products.new_full((count,), 1 / count)
    weights = ahead = products.new_full((count,), 1 / count)
    since = 0
    for _ in range(iterations):
        step = project_to_simplex(ahead - centred @ ahead / scale)
        since = 0 if bool((ahead - step) @ (step - weights) > 0) else since + 1
        ahead = step + since / (since + 3) * (step - weights)
        weights = step
    return weights


def project_to_simplex(point: Tensor) -> Tensor:
    """(M,) the nearest point with non-negative entries that sum to 1 (Held, Wolfe & Crowder 1974)."""
    ordered = point.sort(descending=True).values
    excess = (ordered.cumsum(0) - 1) / torch.arange(1, len(point) + 1, dtype=point.dtype, device=point.device)
    last = (ordered > excess).sum() - 1
    return (point - excess[last]).clamp_min(0)


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


@contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norm uses the batch's statistics; its running ones are put back, also where those were not finite."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    kept = [(buffer, buffer.clone()) for part in norms for buffer in part.buffers(recurse=False)]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, old in kept:
                buffer.copy_(old)
