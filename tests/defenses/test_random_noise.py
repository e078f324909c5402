"""RandomNoise: the noise it promises, from a generator that a target seeds; and the contract of inference defences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import poise
from poise import ModuleTarget
from poise.constraints import Linf
from poise.defenses import CompressionScaling, Quantize, RandomNoise, TemperatureScaling, defended
from poise.defenses.inference import Dent, InferenceDefense, InputDefense
from poise.errors import InputError
from poise.objectives import Margin
from poise.searches import EOT, PGD
from toys import Fixed, SmallCNN, generator, untouched_generators

X = torch.rand(6, 1, 8, 8, generator=generator(1))


def is_gaussian(noise: nn.Module, sigma: float) -> bool:
    """Mean, spread, kurtosis and independence of what is added to grey images, far from the bounds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        added = noise(torch.full((200, 1, 16, 16), 0.5, dtype=torch.float64)) - 0.5
    n = added.numel()
    z = added.flatten() / sigma
    neighbours = float((z[1:] * z[:-1]).mean())
    between = float((added[1:] * added[:-1]).mean()) / sigma**2
    return (
        abs(float(z.mean())) < 5 / n**0.5
        and abs(float(z.square().mean()) - 1) < 5 * (2 / n) ** 0.5
        and abs(float(z.pow(4).mean()) - 3) < 5 * (96 / n) ** 0.5
        and max(abs(neighbours), abs(between)) < 5 / n**0.5
    )


def test_noise_is_normal_with_the_standard_deviation_and_independent() -> None:
    assert is_gaussian(RandomNoise(0.02), 0.02)
    assert is_gaussian(RandomNoise(0.05), 0.05)
    assert not is_gaussian(RandomNoise(0.02**0.5), 0.02), "sigma taken for a variance is not noticed"
    assert not is_gaussian(Fixed(lambda x: x + 0.02 * torch.randn_like(x[:1])), 0.02), "one draw for all is not noticed"
    uniform = Fixed(lambda x: x + 0.02 * 12**0.5 * (torch.rand_like(x) - 0.5))
    assert not is_gaussian(uniform, 0.02)


def test_the_noisy_image_stays_in_the_bounds_and_keeps_its_type() -> None:
    edges = torch.tensor([0.0, 1.0]).repeat(500).view(10, 1, 10, 10)
    noisy = RandomNoise(0.3)(edges)
    assert float(noisy.min()) == 0
    assert float(noisy.max()) == 1
    wide = RandomNoise(0.3, bounds=(-1, 1))(edges - 0.5)
    assert float(wide.min()) < -0.5
    assert float(wide.max()) > 0.5
    assert wide.abs().max() <= 1
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert RandomNoise()(X.to(dtype)).dtype is dtype


def test_without_noise_it_is_the_model_itself_and_draws_nothing() -> None:
    model = SmallCNN().eval()
    still = RandomNoise(0.0)
    with untouched_generators():
        assert torch.equal(still.around(model)(X), model(X))
    assert (still.stochastic, still.exportable) == (False, True)
    assert (RandomNoise().stochastic, RandomNoise().exportable) == (True, False)
    assert not torch.equal(RandomNoise().around(model)(X), model(X))


def test_a_session_repeats_its_noise_gives_each_query_another_and_leaves_the_generators_alone() -> None:
    target = ModuleTarget(RandomNoise(0.05).around(SmallCNN()), num_classes=4)
    ids = torch.arange(len(X))
    answers = []
    with untouched_generators():
        for seed in (3, 3, 4):
            with target.session(seed):
                answers.append([target.query(X, ids).scores for _ in range(2)])
    (first, second), again, other = answers
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    assert not torch.equal(first, second)
    assert not torch.equal(first, other[0])


def test_the_gradient_passes_through_and_is_that_of_the_noisy_point() -> None:
    noise, x = RandomNoise(0.1), X.double().requires_grad_(True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        noisy = noise(x)
    (gradient,) = torch.autograd.grad(noisy.square().sum(), x)
    inside = (noisy > 0) & (noisy < 1)
    torch.testing.assert_close(gradient, torch.where(inside, 2 * noisy, 0.0).detach(), rtol=0, atol=1e-12)
    assert bool((~inside).any()), "no pixel was clipped: the case shows nothing"


def test_averaged_gradients_move_the_confidence_further_than_single_ones() -> None:
    """Both take as many steps on one noisy model and are judged without noise; a single gradient is mostly noise."""
    images = torch.rand(60, 1, 8, 8, generator=generator(5))
    model = SmallCNN(seed=3).eval()
    target = ModuleTarget(RandomNoise(0.4).around(model), num_classes=4)
    labels = model(images).argmax(dim=1)

    def margin(x: Tensor) -> float:
        z = model(x).detach()
        others = z.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
        return float((z.gather(1, labels[:, None])[:, 0] - others).mean())

    left = {}
    for name, source in (("plain", EOT(1)), ("averaged", EOT(8))):
        search = PGD(steps=8, step=0.02, undo=False, source=source)
        moved = poise.attack(target, Margin(stop=False), search, Linf(0.08), images, labels, budget=10_000, seed=0)
        left[name] = margin(moved.images)
    assert left["averaged"] < left["plain"] < margin(images)
    assert margin(images) - left["averaged"] > 1.15 * (margin(images) - left["plain"])


# --- the contract of all inference-time defences ---

ALL = {
    "noise": RandomNoise(),
    "no noise": RandomNoise(0),
    "round": Quantize(),
    "floor": Quantize(4, mode="floor"),
    "dent": Dent(steps=2, dropout=False),
    "dent, dropout": Dent(steps=2),
    "shot": Dent(steps=2, lr=0.05, loss="shot", dropout=False),
}


def broken_promise(defense: InferenceDefense, model: nn.Module) -> str:
    """The promise of `stochastic` and `batch_dependent` that does not hold around a model in float64, or nothing."""
    module = defense.around(model.double()).eval()
    x = X.double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole, again = module(x).detach(), module(x).detach()
        alone = torch.cat([module(row[None]).detach() for row in x])
    if torch.equal(whole, again) == bool(getattr(module, "stochastic", defense.stochastic)):
        return "stochastic"
    if torch.equal(whole, again) and (float((whole - alone).abs().amax()) > 1e-7) != defense.batch_dependent:
        return "batch_dependent"
    return ""


@pytest.mark.parametrize("name", ALL)
def test_what_is_declared_is_so(name: str) -> None:
    assert broken_promise(ALL[name], SmallCNN()) == ""


def test_a_false_declaration_is_noticed() -> None:
    class Loud(RandomNoise):
        def __init__(self) -> None:
            super().__init__()
            self.stochastic = False

    class Centred(InputDefense):
        def _map(self, x: Tensor) -> Tensor:
            return x - x.mean(dim=0, keepdim=True)

    assert broken_promise(Loud(), SmallCNN()) == "stochastic"
    assert broken_promise(Centred(), SmallCNN()) == "batch_dependent"


@pytest.mark.parametrize("name", ALL)
def test_an_empty_batch_and_a_single_image(name: str) -> None:
    module = ALL[name].around(SmallCNN()).eval()
    assert module(X[:0]).shape == (0, 4)
    assert module(X[:1]).shape == (1, 4)


@pytest.mark.parametrize("name", ALL)
def test_images_that_are_none(name: str) -> None:
    module = ALL[name].around(SmallCNN())
    with pytest.raises(InputError, match=r"^(RandomNoise|Quantize|Dent): images must be .* got torch.uint8$"):
        module((255 * X).to(torch.uint8))
    with pytest.raises(InputError, match=r"^(RandomNoise|Quantize|Dent): images must have shape .* got \(1, 8, 8\)$"):
        module(X[0])


@pytest.mark.parametrize("sigma", [-0.1, 1.5, float("nan"), float("inf")])
def test_bad_sigma(sigma: float) -> None:
    with pytest.raises(InputError, match=rf"^RandomNoise: sigma must be in \[0, 1\], got {sigma}"):
        RandomNoise(sigma)


def test_bad_bounds_and_a_sigma_in_grey_levels() -> None:
    with pytest.raises(InputError, match=r"got 8 \(did you mean 8/255\?\)$"):
        RandomNoise(8)
    for bounds in ((1, 0), (0, 0), (0, float("inf")), (0, float("nan"))):
        with pytest.raises(InputError, match=r"^RandomNoise: bounds must be finite \(low, high\) with low < high"):
            RandomNoise(bounds=bounds)


# --- stacks ---


def test_a_stack_meets_its_parts_in_the_order_given() -> None:
    model = SmallCNN().eval()
    logits = model(X).detach()
    labels = torch.where(torch.arange(6) == 0, (logits.argmax(dim=1) + 1) % 4, logits.argmax(dim=1))
    ts = TemperatureScaling().fit(logits, labels)
    module = defended(model, inference=[Quantize(1), Quantize(8)], posthoc=[ts, CompressionScaling()])
    two_levels = (X + 0.5).floor()
    torch.testing.assert_close(module(X), CompressionScaling()(ts(model(two_levels))), rtol=0, atol=0)
    swapped = defended(model, inference=[Quantize(1)], posthoc=[CompressionScaling(), ts])
    assert not torch.equal(module(X), swapped(X))
    assert defended(model) is model


def test_what_follows_dent_runs_in_every_step_and_what_comes_before_it_once() -> None:
    class Counting(InputDefense):
        def _map(self, x: Tensor) -> Tensor:
            counts.append(len(x))
            return x

    counts: list[int] = []
    defended(SmallCNN(), inference=[Counting(), Dent(steps=3)])(X)
    assert counts == [6]
    counts.clear()
    defended(SmallCNN(), inference=[Dent(steps=3), Counting()])(X)
    assert counts == [6] * 4


def test_noise_inside_dent_is_declared() -> None:
    assert Dent(dropout=False).around(RandomNoise().around(SmallCNN())).stochastic
    assert not Dent(dropout=False).around(RandomNoise(0).around(SmallCNN())).stochastic


def test_parts_of_the_wrong_kind() -> None:
    with pytest.raises(InputError, match=r"^defended: inference must hold .* got CompressionScaling$"):
        defended(SmallCNN(), inference=[CompressionScaling()])
    with pytest.raises(InputError, match=r"^defended: posthoc must hold post-hoc defences, got Quantize$"):
        defended(SmallCNN(), posthoc=[Quantize()])  # type: ignore[list-item]
