"""Dent: entropy falls, rows stay apart, and the model comes out of every call as it went in."""

from __future__ import annotations

import copy
import warnings
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import poise
from poise import ModuleTarget
from poise.defenses import CompressionScaling, Dent, PoiseWarning, defended
from poise.defenses.inference import Dented
from poise.errors import InputError
from toys import Fixed, SmallCNN, generator, untouched_generators

X = torch.rand(12, 1, 8, 8, generator=generator(2))
STILL = {"dropout": False}


def net(seed: int = 0, dtype: torch.dtype = torch.float64) -> SmallCNN:
    """Batch norm with scales, shifts and running statistics that are not 0 and 1."""
    model = SmallCNN(seed=seed).to(dtype)
    source = generator(seed + 50)
    norm = model.body[1]
    norm.running_mean.copy_(0.2 * torch.randn(6, generator=source))
    norm.running_var.copy_(0.5 + torch.rand(6, generator=source))
    return model.eval()


def entropies(logits: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=logits.detach()).entropy()


def state(module: nn.Module) -> dict[str, object]:
    """All that a call could leave behind in a module."""
    return {
        "values": {name: value.clone() for name, value in module.state_dict().items()},
        "gradients": [value.grad for value in module.parameters()],
        "trainable": [value.requires_grad for value in module.parameters()],
        "modes": [part.training for part in module.modules()],
        "attributes": [sorted(vars(part)) for part in module.modules()],
        "identities": [id(part) for part in module.modules()] + [id(value) for value in module.parameters()],
    }


def unchanged(module: nn.Module, before: dict[str, object]) -> bool:
    after = state(module)
    values = all(torch.equal(value, before["values"][name]) for name, value in after["values"].items())
    return values and all(after[name] == before[name] for name in before if name != "values")


# --- against a second implementation: one image after the other, plain functions, Adam by hand ---


def by_hand(model: SmallCNN, image: Tensor, steps: int, lr: float) -> Tensor:
    """DENT of SmallCNN on one image (1, 8, 8) in float64, from Adam's equations."""
    conv, norm, _, second, *_ = model.body

    def logits(scale: Tensor, shift: Tensor) -> Tensor:
        z = F.conv2d(image[None], conv.weight, conv.bias, padding=1)
        z = (z - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
        z = F.relu(z * scale[:, None, None] + shift[:, None, None])
        z = F.relu(F.conv2d(z, second.weight, second.bias, stride=2, padding=1))
        return z.flatten(1) @ model.head.weight.T + model.head.bias

    values = [norm.weight.detach().clone(), norm.bias.detach().clone()]
    first = [torch.zeros_like(value) for value in values]
    squares = [torch.zeros_like(value) for value in values]
    for t in range(1, steps + 1):
        leaves = [value.requires_grad_(True) for value in values]
        p = logits(*leaves).softmax(dim=1)
        gradients = torch.autograd.grad(-(p * p.log()).sum(), leaves)
        for i, g in enumerate(gradients):
            first[i] = 0.9 * first[i] + 0.1 * g
            squares[i] = 0.999 * squares[i] + 0.001 * g * g
            rate = (squares[i] / (1 - 0.999**t)).sqrt() + 1e-8
            values[i] = (values[i].detach() - lr * first[i] / (1 - 0.9**t) / rate).detach()
    return logits(*values).detach()[0]


@pytest.mark.parametrize(("steps", "lr"), [(1, 0.01), (6, 1e-3), (6, 0.05)])
def test_against_one_image_after_the_other(steps: int, lr: float) -> None:
    model, x = net(), X.double()
    adapted = Dent(steps=steps, lr=lr, **STILL).around(model)(x).detach()
    expected = torch.stack([by_hand(model, image, steps, lr) for image in x])
    torch.testing.assert_close(adapted, expected, rtol=0, atol=1e-8)
    other = Dent(steps=steps + 1, lr=lr, **STILL).around(model)(x).detach()
    assert float((other - expected).abs().amax()) > 1e-4, "one step more is not noticed"


def test_entropy_falls_for_every_image_and_more_with_every_step() -> None:
    model, x = net(), X.double()
    levels = [entropies(Dent(steps=steps, lr=1e-3, **STILL).around(model)(x)) for steps in (0, 1, 3, 6)]
    for before, after in pairwise(levels):
        assert bool((after < before + 1e-12).all())
        assert float(after.mean()) < float(before.mean())


def test_no_steps_no_rows_and_almost_no_rate() -> None:
    model, x = net(), X.double()
    assert torch.equal(Dent(steps=0).around(model)(x), model(x))
    assert Dent().around(model)(x[:0]).shape == (0, 4)
    torch.testing.assert_close(Dent(lr=1e-12, **STILL).around(model)(x), model(x), rtol=0, atol=1e-8)


# --- rows ---


def company_matters(dent: Dent) -> float:
    """How far the answers of the first three images move when others come along."""
    module, x = dent.around(net()), X.double()
    return float((module(x)[:3] - module(x[:3])).detach().abs().amax())


def test_an_image_answers_alike_in_any_company_unless_the_loss_says_otherwise() -> None:
    assert company_matters(Dent(lr=0.05, **STILL)) < 1e-8
    assert not Dent().batch_dependent
    shot = Dent(lr=0.05, loss="shot", **STILL)
    assert shot.batch_dependent
    assert company_matters(shot) > 1e-3


def test_shot_uses_more_classes() -> None:
    """All images start near one class; the diversity term leaves more entropy in the mean answer."""
    model = net()
    with torch.no_grad():
        model.head.bias[0] += 3
    means = {}
    for loss in ("tent", "shot"):
        mean = Dent(lr=0.02, loss=loss, **STILL).around(model)(X.double()).softmax(dim=1).mean(dim=0).detach()
        means[loss] = float(torch.special.entr(mean).sum())
    assert means["shot"] > means["tent"]


# --- the model is left as it was ---


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dropout", [False, True])
def test_the_model_is_bit_identical_after_a_call(training: bool, dropout: bool) -> None:
    model = net().train(training)
    model.head.requires_grad_(False)
    before = state(model)
    with torch.random.fork_rng(devices=[]):
        Dent(dropout=dropout).around(model)(X.double())
    assert unchanged(model, before)


class Failing(nn.Module):
    """Works `calls` times, then raises."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = [calls]

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] -= 1
        if self.calls[0] < 0:
            raise KeyboardInterrupt
        return x


@pytest.mark.parametrize("calls", [0, 1, 4, 6])
def test_the_model_is_restored_after_an_exception_in_any_step(calls: int) -> None:
    model = net().train()
    whole = nn.Sequential(model, Failing(calls)).double()
    before = state(whole)
    answer = copy.deepcopy(model).eval()(X.double())
    with pytest.raises(KeyboardInterrupt):
        Dent(**STILL).around(whole)(X.double())
    assert unchanged(whole, before)
    assert torch.equal(model.eval()(X.double()), answer)


def test_what_a_careless_call_leaves_is_noticed() -> None:
    """The usual implementation: one set of parameters, adapted in place, in train mode."""

    def careless(model: nn.Module, what: str) -> None:
        if what == "mode":
            model.train()
        elif what == "statistics":
            model.body[1].train()(torch.rand(4, 6, 3, 3, dtype=torch.float64))
            model.body[1].eval()
        elif what == "gradient":
            entropies_ = model(X.double()).log_softmax(1).sum()
            entropies_.backward()
        elif what == "scale":
            model.body[1].weight.data.add_(1e-12)
        else:
            model.body[1].forward = lambda x: x

    for what in ("mode", "statistics", "gradient", "scale", "forward"):
        model = net()
        before = state(model)
        careless(model, what)
        assert not unchanged(model, before), what


def test_hooks_on_a_batch_norm_still_run() -> None:
    model, seen = net(), []
    handle = model.body[1].register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    Dent(steps=2, **STILL).around(model)(X.double())
    handle.remove()
    assert seen == [(12, 6, 8, 8)] * 3


def test_callers_without_gradients() -> None:
    module, x = Dent(lr=0.05, **STILL).around(net()), X.double()
    expected = module(x).detach()
    with torch.no_grad():
        assert torch.equal(module(x), expected)
    with torch.inference_mode():
        assert torch.equal(module(x * 1), expected)


# --- randomness, gradients, attacks ---


def test_dropout_makes_it_random_and_says_so() -> None:
    model, x = net(), X.double()
    loose, still = Dent(lr=0.05).around(model), Dent(lr=0.05, **STILL).around(model)
    assert (loose.stochastic, still.stochastic) == (True, False)
    assert not Dent(steps=0).around(model).stochastic
    with untouched_generators():
        still(x)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = loose(x), loose(x)
        torch.manual_seed(0)
        assert torch.equal(loose(x), first)
    assert not torch.equal(first, second)


def test_the_gradient_is_nearly_that_of_the_whole_answer() -> None:
    """The adaptation is held fixed: what is left out is small beside what is there, and it is not nothing."""
    module, x = Dent(lr=1e-2, **STILL).around(net()), X[:4].double()
    weight = torch.randn(4, 4, generator=generator(9), dtype=torch.float64)
    points = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad((weight * module(points)).sum(), points)
    numeric = torch.zeros_like(x).flatten()
    with torch.no_grad():
        for i in range(x.numel()):
            step = torch.zeros_like(numeric)
            step[i] = 1e-6
            high, low = module(x + step.view_as(x)), module(x - step.view_as(x))
            numeric[i] = (weight * (high - low)).sum() / 2e-6
    cosine = float(F.cosine_similarity(gradient.flatten(), numeric, dim=0))
    assert cosine > 0.9
    assert not torch.allclose(gradient.flatten(), numeric, rtol=1e-6, atol=1e-9)
    assert not Dent.differentiable


def test_a_target_attacks_through_it_and_stacks_hold() -> None:
    model = net(dtype=torch.float32)
    module = defended(model, inference=[Dent(steps=2, **STILL)], posthoc=[CompressionScaling()])
    target = ModuleTarget(module, num_classes=4)
    labels = target.query(X, torch.arange(12)).labels
    before = state(model)
    result = poise.run_recipe("pgd", target, X, labels, eps=0.1, seed=1)
    flipped = (result.table["prediction_after"] != result.table["label"]).sum()
    assert flipped >= 10
    assert unchanged(model, before)


# --- which batch norms ---


class Loud(nn.BatchNorm2d):
    """A subclass that computes more than its base, as some libraries' do."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


@pytest.mark.parametrize(
    "norm",
    [
        nn.Identity(),
        nn.GroupNorm(2, 4),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, track_running_stats=False),
        Loud(4),
    ],
    ids=repr,
)
def test_a_model_with_nothing_to_adapt_answers_as_it_is_and_warns(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Flatten(), nn.Linear(144, 3)).eval()
    with pytest.warns(PoiseWarning, match=r"^Dent: the model has no BatchNorm2d"):
        module = Dent().around(model)
    assert torch.equal(module(X), model(X))
    assert not module.stochastic


def test_other_norms_beside_it_do_not_move() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), Loud(4), nn.Flatten(), nn.BatchNorm1d(144), nn.Linear(144, 3)
    ).eval()
    before = state(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = Dent(lr=0.05).around(model)
    assert not torch.equal(module(X), model(X))
    assert unchanged(model, before)


def test_a_batch_norm_that_sees_other_rows_than_images() -> None:
    patches = Fixed(lambda x: x.reshape(-1, 1, 4, 4))
    model = nn.Sequential(patches, nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 3)).eval()
    with pytest.raises(InputError, match=r"^Dent: a BatchNorm2d must see .* 12 in all, got \(48, 1, 4, 4\)$"):
        Dent().around(model)(X)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": -1}, r"steps must be an integer >= 0, got -1"),
        ({"steps": 1.5}, r"steps must be an integer >= 0, got 1.5"),
        ({"lr": 0}, r"lr must be positive and finite, got 0"),
        ({"lr": float("nan")}, r"lr must be positive and finite, got nan"),
        ({"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\), got \(0.9, 1.0\)"),
        ({"loss": "tents"}, r"loss: must be one of .*did you mean tent"),
    ],
)
def test_bad_input(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=rf"^Dent: {message}"):
        Dent(**given)


def test_twice_is_refused_and_it_shows_its_settings() -> None:
    module = Dent(steps=2).around(net())
    with pytest.raises(InputError, match=r"^Dent: must be the only one around a model"):
        Dent().around(nn.Sequential(module))
    assert isinstance(module, Dented)
    assert repr(Dent(steps=2)) in repr(module)
    twin = copy.deepcopy(module)
    assert torch.equal(
        Dent(steps=2, **STILL).around(twin.model)(X.double()), Dent(steps=2, **STILL).around(module.model)(X.double())
    )
