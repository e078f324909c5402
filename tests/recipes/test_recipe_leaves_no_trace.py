"""What is the caller's stays as it was: modes, hooks, gradients, random state, images; also when interrupted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import poise
import toys
from recipe_cases import Setup, every_recipe, run


def half_trained() -> nn.Module:
    """A CNN in train mode but for its batch norm, one parameter frozen, weights in a known state."""
    module = toys.SmallCNN().train()
    module.body[1].eval()
    module.head.bias.requires_grad_(False)
    return module


def state_of(module: nn.Module) -> tuple:
    """All of a module that an attack could leave changed."""
    modes = [part.training for part in module.modules()]
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()]
    wants = [(value.requires_grad, value.grad is None) for value in module.parameters()]
    return modes, hooks, wants, [value.tolist() for value in module.state_dict().values()]


def leaves_no_trace(attack_: Callable[[poise.ModuleTarget, Tensor, Tensor, Tensor], object]) -> None:
    module = half_trained()
    target = poise.ModuleTarget(module, num_classes=4)
    images = torch.rand(4, 1, 8, 8, generator=toys.generator(5))
    labels, ids = torch.tensor([0, 1, 2, 3]), torch.tensor([4, 3, 2, 1])
    copies, versions = [x.detach().clone() for x in (images, labels, ids)], [x._version for x in (images, labels, ids)]
    before, gradients_on = state_of(module), torch.is_grad_enabled()
    try:
        with toys.untouched_generators():
            attack_(target, images, labels, ids)
    finally:
        assert state_of(module) == before
        assert torch.is_grad_enabled() == gradients_on
        assert all(torch.equal(x.detach(), copy) for x, copy in zip((images, labels, ids), copies, strict=True))
        assert [x._version for x in (images, labels, ids)] == versions
        assert not images.requires_grad


@every_recipe
@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad])
def test_leaves_no_trace(name: str, grad_mode: Callable[[], torch.set_grad_enabled]) -> None:
    with grad_mode():
        leaves_no_trace(
            lambda target, x, y, ids: poise.run_recipe(name, target, x, y, eps=0.1, budget=6, ids=ids, seed=3)
        )


def test_images_that_require_gradients_are_welcome() -> None:
    target = poise.ModuleTarget(half_trained(), num_classes=4)
    images = torch.rand(2, 1, 8, 8, generator=toys.generator(5)).requires_grad_()
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        result = poise.run_recipe("adaptive", target, images, torch.tensor([0, 1]), eps=0.1, budget=4)
    finally:
        torch.set_warn_always(always)
    assert images.requires_grad
    assert images.grad is None
    assert not result.images.requires_grad


class Interrupted(Exception):
    """Stands for a user's Ctrl-C or a model that breaks down in the middle."""


@every_recipe
def test_leaves_no_trace_when_interrupted(name: str) -> None:
    def stop(progress: poise.searches.driver.Progress) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        leaves_no_trace(
            lambda target, x, y, ids: poise.run_recipe(
                name, target, x, y, eps=0.1, budget=6, ids=ids, watch=poise.Watch(on_progress=stop)
            )
        )


def _draws(target, x, y, ids) -> None:
    torch.rand(1)


def _trains(target, x, y, ids) -> None:
    target.module.eval()


def _counts_batches(target, x, y, ids) -> None:
    target.module.train()(x.detach())
    target.module.body[1].eval()


def _pulls_parameters(target, x, y, ids) -> None:
    target.module(x.detach()).sum().backward()


def _writes(target, x, y, ids) -> None:
    x.detach().mul_(0.5)


@pytest.mark.parametrize("twin", [_draws, _trains, _counts_batches, _pulls_parameters, _writes])
def test_traces_are_noticed(twin: Callable) -> None:
    with torch.random.fork_rng(), pytest.raises(AssertionError):
        leaves_no_trace(twin)


@every_recipe
def test_results_and_images_share_no_memory(name: str) -> None:
    attacked = run(name, Setup(eps=0.0))
    attacked.result.images.fill_(0.5)
    assert torch.equal(attacked.case.images, Setup(eps=0.0).case().images)
