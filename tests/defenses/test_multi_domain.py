"""Multi-domain temperature scaling: the regression, its limits, the tapped model and real attacks."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, Ridge
from torch import nn

import poise
from poise.checks.defenses import CHECKS, check_defense, draw
from poise.defenses import (
    FeatureDefended,
    Identity,
    MultiDomainTemperature,
    PoiseWarning,
    TemperatureScaling,
    features_and_logits,
    load,
    make_domains,
    save,
    stack,
)
from poise.errors import InputError, NotFittedError


def wide(rows):
    return torch.tensor(rows, dtype=torch.float64)


def at_temperature(temperature, per_class=10, hits=8):
    """Logits and labels of two classes whose best temperature is this."""
    height = temperature * math.log(hits / (per_class - hits))
    logits = wide([[height, 0.0]] * per_class + [[0.0, height]] * per_class)
    labels = torch.tensor(([0] * hits + [1] * (per_class - hits)) + ([1] * hits + [0] * (per_class - hits)))
    return logits, labels


def random_domains(n=60, width=4, classes=5):
    domains = []
    for k in range(3):
        logits, labels = draw(n, classes, seed=k, dtype=torch.float64)
        generator = torch.Generator().manual_seed(k)
        features = torch.randn(n, width, generator=generator, dtype=torch.float64) * (1 + k) + k
        domains.append((features, logits * (k + 1), labels))
    return domains


@pytest.mark.parametrize("check", CHECKS)
def test_promises(check):
    check_defense(MultiDomainTemperature(), only=[check])


def test_vector_of_the_regression():
    """Features 0, 1, 2 at temperatures 1, 1/2, 3/2: slope 1/4, intercept 3/4."""
    domains = [(torch.full((20, 1), float(k)).double(), *at_temperature(t)) for k, t in enumerate([1.0, 0.5, 1.5])]
    defense = MultiDomainTemperature().fit_domains(domains)
    assert defense.temperatures.tolist() == pytest.approx([1.0, 0.5, 1.5], abs=1e-9)
    assert defense.slope.tolist() == pytest.approx([0.25], abs=1e-9)
    assert float(defense.intercept) == pytest.approx(0.75, abs=1e-9)
    assert defense.temperature(wide([[0.0], [4.0]])).tolist() == pytest.approx([0.75, 1.75], abs=1e-9)
    logits = wide([[2.0, 1.0], [2.0, 1.0]])
    torch.testing.assert_close(defense(logits, wide([[0.0], [4.0]])), logits / wide([[0.75], [1.75]]))
    assert int(defense.fit_samples) == 60


def test_each_domain_has_its_own_temperature():
    """The released code keeps three references to one parameter, so that all equal the last."""
    domains = random_domains()
    found = MultiDomainTemperature().fit_domains(domains).temperatures
    alone = [float(TemperatureScaling().fit(*domain[1:]).temperature) for domain in domains]
    assert found.tolist() == pytest.approx(alone, rel=1e-12)
    assert len({round(t, 3) for t in alone}) == 3


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_the_regression_is_scikit_learns(ridge):
    domains = random_domains()
    defense = MultiDomainTemperature(ridge=ridge).fit_domains(domains)
    features = np.concatenate([domain[0] for domain in domains])
    wanted = np.repeat(defense.temperatures.numpy(), 60)
    spread = features.std(axis=0)
    model = Ridge(ridge * len(wanted)) if ridge else LinearRegression()
    model.fit((features - features.mean(axis=0)) / spread, wanted)
    np.testing.assert_allclose(defense.slope, model.coef_ / spread, atol=1e-12)
    expected = model.intercept_ - features.mean(axis=0) @ (model.coef_ / spread)
    assert float(defense.intercept) == pytest.approx(expected, abs=1e-12)


def test_more_features_than_samples_take_the_solution_of_least_norm():
    domains = random_domains(n=6, width=50)
    defense = MultiDomainTemperature(lowest=1e-3, highest=1e3).fit_domains(domains)
    features = np.concatenate([domain[0] for domain in domains])
    mean, spread = features.mean(axis=0), features.std(axis=0)
    wanted = np.repeat(defense.temperatures.numpy(), 6)
    least = np.linalg.pinv((features - mean) / spread) @ (wanted - wanted.mean())
    np.testing.assert_allclose(defense.slope, least / spread, atol=1e-9)
    np.testing.assert_allclose(defense.temperature(torch.from_numpy(features)), wanted, atol=1e-9)  # fits them all


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_constant_features_give_the_mean_temperature_weighted_by_size(value):
    domains = [(torch.full((len(y), 3), value).double(), z, y) for _, z, y in random_domains()]
    domains[1] = tuple(part[:20] for part in domains[1])
    defense = MultiDomainTemperature().fit_domains(domains)
    mean = (defense.temperatures * wide([60, 20, 60])).sum() / 140
    assert defense.slope.tolist() == [0.0] * 3
    assert float(defense.intercept) == pytest.approx(float(mean), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_one_domain_is_temperature_scaling_to_the_last_bit(dtype):
    features, logits, labels = random_domains()[2]
    logits = logits.to(dtype)
    single = TemperatureScaling(min_temperature=0.05, max_temperature=20).fit(logits, labels)
    assert torch.equal(MultiDomainTemperature().fit(logits, labels)(logits), single(logits))
    one = MultiDomainTemperature().fit_domains([(features, logits, labels)])
    assert one.slope.tolist() == [0.0] * 4
    torch.testing.assert_close(one(logits, features), single(logits))
    double = MultiDomainTemperature().fit_domains([(features, logits, labels), random_domains()[0]])
    assert not torch.allclose(double(logits, features), single(logits))


def test_temperatures_are_clamped():
    domains = [(torch.full((20, 1), float(k)).double(), *at_temperature(t)) for k, t in enumerate([1.0, 0.5])]
    defense = MultiDomainTemperature().fit_domains(domains)
    assert defense.temperature(wide([[-1e6], [1e6]])).tolist() == [20.0, 0.05]
    logits = torch.tensor([[6e4, 1.0], [3.0, 5.0]]).half()
    out = defense(logits, torch.tensor([[1e4], [1e4]]))
    assert bool(out.isfinite().all())
    assert out.argmax(1).tolist() == [0, 1]


def test_a_domain_without_errors_is_clamped_with_a_warning():
    """What over-confidence attacks make: every sample right, T falls to its bound."""
    domains = random_domains()
    domains[2] = (domains[2][0], domains[2][1], domains[2][1].argmax(1))
    with pytest.warns(PoiseWarning, match="of domain 2: every sample is right.* clamped to T = 0.05") as caught:
        defense = MultiDomainTemperature().fit_domains(domains)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert float(defense.temperatures[2]) == 0.05
    with pytest.warns(PoiseWarning, match="MultiDomainTemperature: every sample is right") as caught:
        MultiDomainTemperature().fit(*domains[2][1:])
    assert caught[0].filename == __file__


def test_fourier_features_are_magnitudes():
    domains = random_domains(width=8)
    defense = MultiDomainTemperature(fourier=True).fit_domains(domains)
    by_hand = [(torch.from_numpy(np.abs(np.fft.fft(f))[:, :5]), z, y) for f, z, y in domains]
    expected = MultiDomainTemperature().fit_domains(by_hand)
    features, logits, _ = domains[1]
    assert defense.slope.shape == (5,)
    torch.testing.assert_close(defense(logits, features), expected(logits, by_hand[1][0]))
    rolled = defense(logits, features.roll(3, dims=1))  # magnitudes do not see a circular shift
    torch.testing.assert_close(rolled, defense(logits, features))
    plain = MultiDomainTemperature().fit_domains(domains)
    assert not torch.allclose(plain(logits, features.roll(3, dims=1)), plain(logits, features))


def test_refits_forget():
    domains = random_domains()
    defense = MultiDomainTemperature().fit_domains(domains)
    defense.fit(*domains[0][1:])
    fresh = MultiDomainTemperature().fit(*domains[0][1:])
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in defense.state_dict().items())
    again, once = defense.fit_domains(domains[:2]), MultiDomainTemperature().fit_domains(domains[:2])
    assert all(torch.equal(value, once.state_dict()[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, z, y: (f[:5], z, y), r"features must be \(60, F\) with F >= 1, got \(5, 4\) \(domain 1\)"),
        (lambda f, z, y: (f[:, :0], z, y), "with F >= 1"),
        (lambda f, z, y: (f.long(), z, y), "floating-point numbers, got torch.int64"),
        (lambda f, z, y: (f.index_fill(0, torch.tensor([2]), math.nan), z, y), "features must be finite"),
        (lambda f, z, y: (f, z.index_fill(0, torch.tensor([2]), math.nan), y), "logits must be finite"),
        (lambda f, z, y: (f, z, y * 0), "at least two classes"),
        (lambda f, z, y: (f[:, :3], z, y), r"features of one width, got \[3, 4\]"),
        (lambda f, z, y: (f[:0], z[:0], y[:0]), "at least one sample"),
    ],
)
def test_bad_domains_are_refused_and_the_state_stays(change, message):
    domains = random_domains()
    defense = MultiDomainTemperature().fit_domains(domains)
    before = defense.slope.clone()
    with pytest.raises(InputError, match=message) as caught:
        defense.fit_domains([domains[0], change(*domains[1])])
    assert "\n" not in str(caught.value)
    assert torch.equal(defense.slope, before)
    assert bool(defense.fitted)


def test_bad_use():
    features, logits, labels = random_domains()[0]
    with pytest.raises(InputError, match="needs at least one domain, got 0"):
        MultiDomainTemperature().fit_domains([])
    with pytest.raises(NotFittedError):
        MultiDomainTemperature()(logits, features)
    defense = MultiDomainTemperature().fit_domains([(features, logits, labels)])
    with pytest.raises(InputError, match="was fitted with features, so forward needs them"):
        defense(logits)
    with pytest.raises(InputError, match="fitted on 4 feature numbers, got 3"):
        defense(logits, features[:, :3])
    with pytest.raises(InputError, match="features must be"):
        defense(logits, features[:3])
    assert defense(logits[:0], features[:0]).shape == (0, 5)
    for wrong in ({"ridge": -1.0}, {"lowest": 0.0}, {"lowest": 2.0, "highest": 1.0}, {"highest": math.inf}):
        with pytest.raises(InputError, match="MultiDomainTemperature: "):
            MultiDomainTemperature(**wrong)


def test_it_saves_and_loads_with_its_features(tmp_path):
    domains = random_domains()
    defense = MultiDomainTemperature(ridge=0.1).fit_domains(domains)
    save(defense, tmp_path / "md.safetensors")
    loaded = load(tmp_path / "md.safetensors")
    assert torch.equal(loaded(domains[0][1], domains[0][0]), defense(domains[0][1], domains[0][0]))


# The tapped model


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Tanh())
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(6, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, images):
        return self.head(self.body(images))


IMAGES = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(1))
LABELS = (Net()(IMAGES).argmax(1) + (torch.arange(30) % 4 == 0)) % 3  # three in four are right
ATTACKS = {"dark": lambda x, y: x * 0.2, "bright": lambda x, y: (x + 0.5).clamp(0, 1)}


def defended(model=None, layer="body"):
    model = Net() if model is None else model
    domains = make_domains(model, layer, IMAGES, LABELS, ATTACKS, batch_size=7)
    return FeatureDefended(model, layer, MultiDomainTemperature(ridge=0.5).fit_domains(list(domains.values())))


def test_make_domains_sees_each_version_of_the_images():
    model, seen = Net().train(), []
    model.body.eval()

    def attack(images, labels):
        seen.append((torch.is_grad_enabled(), len(images), torch.equal(labels, LABELS)))
        return images * 0.2

    domains = make_domains(model, "body", IMAGES, LABELS, {"dark": attack}, batch_size=7)
    assert list(domains) == ["clean", "dark"]
    assert seen == [(True, 30, True)]
    for name, images in {"clean": IMAGES, "dark": IMAGES * 0.2}.items():
        torch.testing.assert_close(domains[name].features, model.body(images).detach())
        torch.testing.assert_close(domains[name].logits, model(images).detach())
        assert torch.equal(domains[name].labels, LABELS)
        assert not domains[name].features.requires_grad
    assert (model.training, model.body.training, model.head.training) == (True, False, True)
    assert not any(module._forward_hooks for module in model.modules())


def test_make_domains_reads_the_model_in_evaluation_mode():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5)).train()
    domains = make_domains(model, "1", IMAGES, LABELS, {})
    assert torch.equal(domains["clean"].features, IMAGES.flatten(1))
    assert not torch.equal(features_and_logits(model, "1", IMAGES)[0], IMAGES.flatten(1))  # training mode would differ


def test_the_tapped_model_divides_by_the_temperature_of_its_features():
    wrapped = defended()
    model, defense = wrapped.model, wrapped.defense
    t = defense.temperature(model.body(IMAGES)).detach()[:, None]
    assert float(t.std()) > 0
    torch.testing.assert_close(wrapped(IMAGES), (model(IMAGES) / t).float())
    assert torch.equal(wrapped(IMAGES).argmax(1), model(IMAGES).argmax(1))
    again = stack(wrapped, Identity())
    assert torch.equal(again(IMAGES), wrapped(IMAGES))
    assert {"model.head.weight", "defense.slope", "defense.intercept"} <= set(wrapped.state_dict())


def test_the_hook_is_gone_after_a_pass_even_one_that_fails():
    wrapped = defended()
    wrapped(IMAGES)
    with pytest.raises(RuntimeError):
        wrapped(torch.rand(2, 1, 9, 9))
    assert not any(module._forward_hooks for module in wrapped.modules())
    for other in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
        assert torch.equal(other(IMAGES), wrapped(IMAGES))


def test_gradients_pass_through_features_and_logits():
    wrapped = defended().double()
    images = IMAGES[:3].double().requires_grad_()
    assert torch.autograd.gradcheck(wrapped, (images,))
    out = wrapped(images)[:, 0].sum()
    (whole,) = torch.autograd.grad(out, images)
    with torch.no_grad():
        t = wrapped.defense.temperature(wrapped.model.body(images))[:, None]
    (held,) = torch.autograd.grad((wrapped.model(images) / t)[:, 0].sum(), images)
    assert not torch.allclose(whole, held, atol=1e-4)  # a gradient that forgets the temperature is seen


def test_the_tapped_model_exports_for_any_batch_size():
    wrapped = defended().eval()
    program = torch.export.export(wrapped, (IMAGES[:5],), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.testing.assert_close(program.module()(IMAGES), wrapped(IMAGES))


class Twice(Net):
    def forward(self, images):
        self.body(images)
        return super().forward(images)


class Pair(nn.Module):
    def forward(self, images):
        return images, images


@pytest.mark.parametrize(
    ("model", "layer", "message"),
    [
        (Net(), "bodi", r"must be a part of the model, got 'bodi' \(did you mean: body"),
        (Net(), "", "must be a part of the model, got ''"),
        (Net(), "unused", "layer 'unused' must run once in a pass of the model, ran 0 times"),
        (Twice(), "body", "ran 2 times"),
        (nn.Sequential(Pair(), nn.Identity()), "0", "must give a tensor of 30 rows, got tuple"),
    ],
)
def test_bad_layers(model, layer, message):
    with pytest.raises(InputError, match=message):
        features_and_logits(model, layer, IMAGES)
    assert not any(module._forward_hooks for module in model.modules())


def test_bad_domain_making():
    model = Net()
    with pytest.raises(InputError, match=r"attack 'crop' must keep the images' shape, got \(30, 1, 2, 2\) for"):
        make_domains(model, "body", IMAGES, LABELS, {"crop": lambda x, y: x[..., :2, :2]})
    with pytest.raises(InputError, match="got an attack of that name"):
        make_domains(model, "body", IMAGES, LABELS, {"clean": lambda x, y: x})
    with pytest.raises(InputError, match="a label for each of 1 or more images, got 3, 30"):
        make_domains(model, "body", IMAGES, LABELS[:3], {})
    with pytest.raises(InputError, match="got 0, 0"):
        make_domains(model, "body", IMAGES[:0], LABELS[:0], {})
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        make_domains(model, "body", IMAGES, LABELS, {}, batch_size=0)
    with pytest.raises(InputError, match="did you mean: body"):
        FeatureDefended(model, "bod", MultiDomainTemperature())


def test_with_the_papers_attacks_each_domain_gets_another_temperature():
    """Confidence attacks on a small trained model: attacked data want other temperatures than clean data."""
    target, images, labels = trained()
    attacks = {
        name: lambda x, y, recipe=recipe: poise.run_recipe(recipe, target, x, y, eps=0.15, steps=8, budget=60).images
        for name, recipe in {"underconfidence": "pgd-uca", "overconfidence": "pgd-oca"}.items()
    }
    domains = make_domains(target.module, "1", images, labels, attacks)
    defense = MultiDomainTemperature(ridge=0.01).fit_domains(list(domains.values()))
    clean, under, over = defense.temperatures.tolist()
    assert under < clean < over
    confidences = [float(domain.logits.softmax(1).amax(1).mean()) for domain in domains.values()]
    assert confidences[1] < confidences[0] < confidences[2]
    # the features tell the domains apart, so that T(x) follows them; constant features could not
    means = [float(defense.temperature(domain.features).mean()) for domain in domains.values()]
    assert means[1] < means[0] < means[2]


def trained():
    """A linear model of scores on blobs of three classes, with a layer that shows the pixels."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(150) % 3
    images = torch.rand(150, 1, 4, 4, generator=generator) * 0.5 + 0.25
    for k in range(3):
        images[labels == k, :, k] += 0.12
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
    return poise.ModuleTarget(model.eval(), num_classes=3), images, labels
