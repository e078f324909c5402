"""BPDA: forwards the one module to the last bit, backwards the other, and an attack that stood still moves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import poise
from poise import ModuleTarget
from poise.errors import InputError, TargetError
from poise.targets.bpda import BPDA
from toys import Fixed, SmallCNN, generator

X = torch.rand(5, 1, 8, 8, generator=generator(3))


class Quantize(nn.Module):
    """16 grey levels; its autograd gradient is zero everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 15).round() / 15


class Straight(nn.Module):
    """The usual shortcut s + (f - s).detach(), whose value differs from f in the last bits."""

    def __init__(self, forward: nn.Module, backward: nn.Module) -> None:
        super().__init__()
        self.f, self.g = forward, backward

    def forward(self, x: Tensor) -> Tensor:
        soft = self.g(x)
        return soft + (self.f(x) - soft).detach()


def gradient(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """d (weight . layer(x)) / dx; zeros where nothing flows."""
    points = x.clone().requires_grad_(True)
    (found,) = torch.autograd.grad((layer(points) * weight).sum(), points, allow_unused=True)
    return torch.zeros_like(x) if found is None else found


def bit_equal(layer: nn.Module) -> bool:
    with_gradient = layer(X.clone().requires_grad_(True)).detach()
    return torch.equal(with_gradient, Quantize()(X)) and torch.equal(layer(X), Quantize()(X))


def test_the_value_is_forwards_to_the_last_bit_with_and_without_a_gradient() -> None:
    scaled = Fixed(lambda x: 0.3 * x + 0.1)
    assert bit_equal(BPDA(Quantize(), nn.Identity()))
    assert bit_equal(BPDA(Quantize(), scaled))
    assert not bit_equal(Straight(Quantize(), scaled)), "the shortcut passes too: the check shows nothing"
    with torch.inference_mode():
        assert torch.equal(BPDA(Quantize(), scaled)(X), Quantize()(X))


@pytest.mark.parametrize("backward", [nn.Identity(), nn.Conv2d(1, 1, 3, padding=1), Fixed(torch.sin)])
def test_the_gradient_is_backwards_and_not_forwards(backward: nn.Module) -> None:
    weight = torch.randn(X.shape, generator=generator(4))
    layer = BPDA(Quantize(), backward)
    torch.testing.assert_close(gradient(layer, X, weight), gradient(backward, X, weight), rtol=0, atol=0)
    assert not gradient(Quantize(), X, weight).any()
    assert gradient(layer, X, weight).any()


def test_gradcheck_where_both_are_the_same_smooth_function_and_refused_where_they_are_not() -> None:
    x = X[:1, :, :3, :3].double().requires_grad_(True)
    assert torch.autograd.gradcheck(BPDA(Fixed(torch.sin), Fixed(torch.sin)), (x,))
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(BPDA(Fixed(torch.sin), Fixed(torch.cos)), (x,))


def test_a_backward_module_that_changes_the_dtype_or_is_constant() -> None:
    weight = torch.randn(X.shape, generator=generator(4))
    double = BPDA(Quantize(), Fixed(lambda x: x.double() * 2))
    torch.testing.assert_close(gradient(double, X, weight), 2 * weight)
    assert not gradient(BPDA(Quantize(), Fixed(torch.zeros_like)), X, weight).any()


def test_parameters_receive_nothing_and_inputs_are_not_written() -> None:
    backward = nn.Conv2d(1, 1, 3, padding=1)
    points = X.clone().requires_grad_(True)
    BPDA(Fixed(lambda x: x.mul_(0.5)), backward)(points).sum().backward()
    assert torch.equal(points.detach(), X)
    assert points.grad is not None
    assert all(value.grad is None for value in backward.parameters())


def test_several_backward_passes_over_one_graph_agree_and_a_second_derivative_is_refused() -> None:
    points = X.clone().requires_grad_(True)
    answer = BPDA(Quantize(), Fixed(torch.sin))(points).square().sum()
    first, second = (torch.autograd.grad(answer, points, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    (third,) = torch.autograd.grad(answer, points, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        third.sum().backward()


def test_modes_devices_and_copies_reach_both_parts() -> None:
    layer = BPDA(nn.Dropout(0.5), nn.Conv2d(1, 1, 1)).eval()
    assert not any(part.training for part in layer.modules())
    twin = copy.deepcopy(layer).double()
    assert {value.dtype for value in twin.parameters()} == {torch.float64}
    assert set(layer.state_dict()) == {"surrogate.weight", "surrogate.bias"}


def test_shapes_must_match_and_arguments_must_be_modules() -> None:
    layer = BPDA(Quantize(), nn.Flatten())
    with pytest.raises(TargetError, match=r"^BPDA: backward must answer .* \(5, 1, 8, 8\), got \(5, 64\)$"):
        layer(X.clone().requires_grad_(True))
    with pytest.raises(InputError, match=r"^BPDA: backward must be an nn.Module, got function$"):
        BPDA(Quantize(), lambda x: x)  # type: ignore[arg-type]


def test_pgd_stands_still_on_a_rounding_layer_and_moves_with_bpda() -> None:
    model = SmallCNN().eval()
    defended = nn.Sequential(Quantize(), model)
    opened = nn.Sequential(BPDA(Quantize(), nn.Identity()), model)
    labels = defended(X).argmax(dim=1)
    flipped = {}
    for name, module in (("defended", defended), ("opened", opened)):
        target = ModuleTarget(module, num_classes=4)
        # random_start draws one point of the ball: `adaptive` starts at the image itself and shows the gradient alone
        still = poise.run_recipe("adaptive", target, X, labels, eps=0.1)
        assert bool((still.table["linf"] > 0).all()) == (name == "opened")
        result = poise.run_recipe("pgd", target, X, labels, eps=0.1, seed=1)
        flipped[name] = int((result.table["prediction_after"] != result.table["label"]).sum())
        assert torch.equal(target.query(result.images, torch.arange(5)).labels, defended(result.images).argmax(dim=1))
    assert flipped["opened"] == 5
    assert flipped["defended"] < 5
