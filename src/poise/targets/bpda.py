"""BPDA: a layer whose gradient is another layer's (Athalye, Carlini & Wagner 2018, section 4.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from poise.errors import InputError, TargetError


class BPDA(nn.Module):
    """The value of one module with the gradient of another: f(x) forwards, the Jacobian of g at x backwards.

    Args:
        forward: f, e.g. a quantisation whose own gradient is zero or missing; its answer is passed on bit by bit.
        backward: g with g(x) close to f(x), differentiable; often `nn.Identity()`. It must answer f's shape.

    Raises:
        InputError: an argument is no module; TargetError: at a call, where the shapes of f(x) and g(x) differ.

    g is evaluated only where a gradient is wanted. Gradients flow to x alone, not to parameters of f or g, and cannot
    be differentiated again. In the paper a defence f in front of a classifier h, h(f(x)), is attacked with
    grad h(f(x)) times the Jacobian of g at x: here `nn.Sequential(BPDA(f, g), h)`.

    >>> class Round(nn.Module):
    ...     def forward(self, x):
    ...         return x.round()
    >>> x = torch.tensor([0.2, 0.7], requires_grad=True)
    >>> y = BPDA(Round(), nn.Identity())(x)
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist()
    ([0.0, 1.0], [1.0, 1.0])
    """

    def __init__(self, forward: nn.Module, backward: nn.Module) -> None:
        super().__init__()
        for name, part in (("forward", forward), ("backward", backward)):
            if not isinstance(part, nn.Module):
                raise InputError(f"BPDA: {name} must be an nn.Module, got {type(part).__name__}")
        self.value = forward
        self.surrogate = backward

    def forward(self, x: Tensor) -> Tensor:
        """f(x); its gradient with respect to x is g's."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            plain: Tensor = self.value(x)
            return plain
        answer: Tensor = _Substitute.apply(x, self.value, self.surrogate)  # type: ignore[no-untyped-call]
        return answer


class _Substitute(torch.autograd.Function):
    """f(x) with g's vector-Jacobian product; each module gets its own copy, so that one may write into its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: nn.Module, surrogate: nn.Module) -> Tensor:
        answer: Tensor = value(x.detach().clone())
        with torch.enable_grad():
            ctx.points = x.detach().clone().requires_grad_(True)
            ctx.stand_in = surrogate(ctx.points.clone())
        if ctx.stand_in.shape != answer.shape:
            raise TargetError(
                "BPDA: backward must answer the shape that forward answers, "
                f"{tuple(answer.shape)}, got {tuple(ctx.stand_in.shape)}"
            )
        return answer

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if not ctx.stand_in.requires_grad:  # g is constant in x
            return torch.zeros_like(ctx.points), None, None
        (found,) = torch.autograd.grad(
            ctx.stand_in, ctx.points, gradient.to(ctx.stand_in), retain_graph=True, allow_unused=True
        )
        return torch.zeros_like(ctx.points) if found is None else found, None, None
