"""Variants: what they compute, that they survive saving, that bad ones are refused."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from poise.errors import InputError
from poise.models import VARIANTS, DenoisingBlock, Ensemble, add_denoising, bare, blank, inject_noise, load
from poise.models.resnet import CifarResNet
from poise.models.variants.pni import NoisyConv2d, NoisyLinear
from poise.models.vision import cifar_resnet
from poise.models.wide_resnet import WideResNet

X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(2)


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5))


@pytest.mark.parametrize("granularity", ["layer", "channel", "element"])
def test_noise_has_the_strength_it_should(granularity: str) -> None:
    torch.manual_seed(0)
    layer = inject_noise(nn.Sequential(nn.Linear(40, 30)), granularity)[0]
    shapes = {"layer": (1,), "channel": (30, 1), "element": (30, 40)}
    assert layer.alpha.shape == shapes[granularity]
    assert torch.equal(layer.alpha, torch.full_like(layer.alpha, 0.25))
    noise = torch.stack([layer.noisy_weight() for _ in range(400)]).detach() - layer.weight.detach()
    assert noise.std().item() == pytest.approx(0.25 * layer.weight.std().item(), rel=0.01)
    assert abs(noise.mean().item()) < 1e-3
    assert noise.std(dim=0).std().item() < 0.2 * noise.std().item()  # the same for every element


@pytest.mark.parametrize("training", [True, False])
def test_noise_is_fresh_in_both_modes_and_none_at_alpha_zero(training: bool) -> None:
    base = small().train(training)
    noisy = inject_noise(copy.deepcopy(base))
    assert [type(part) for part in noisy] == [NoisyConv2d, nn.BatchNorm2d, nn.ReLU, nn.Flatten, NoisyLinear]
    with torch.no_grad():
        assert not torch.equal(noisy(X), noisy(X))
        for part in noisy.modules():
            if isinstance(part, NoisyConv2d | NoisyLinear):
                part.alpha.zero_()
        assert torch.equal(noisy(X), base(X))
        assert torch.equal(noisy(X), noisy(X))


def test_gradient_of_alpha() -> None:
    """(dL/dW~ eta), summed over the channel; none of it through std(W)."""
    layer = inject_noise(nn.Sequential(nn.Linear(6, 4)))[0]
    x = torch.rand(5, 6)
    torch.manual_seed(3)
    eta = torch.randn(4, 6) * layer.weight.detach().std()
    weight = (layer.weight + 0.25 * eta).detach().requires_grad_(True)
    F.linear(x, weight, layer.bias).square().sum().backward()
    torch.manual_seed(3)
    layer(x).square().sum().backward()
    torch.testing.assert_close(layer.alpha.grad, (weight.grad * eta).sum(1, keepdim=True))
    torch.testing.assert_close(layer.weight.grad, weight.grad)


def test_noise_comes_from_the_session() -> None:
    target = blank("builtin:resnet20-cifar10?variant=pni", seed=1)
    before = torch.random.get_rng_state()
    answers = []
    for seed in (4, 4, 5):
        with target.session(seed):
            answers.append(target.query(X, IDS).scores)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])


def test_layers_that_noise_would_not_reach() -> None:
    class Own(nn.Conv2d):
        pass

    for module, message in [
        (nn.Sequential(nn.Conv2d(1, 1, 1), Own(1, 1, 1)), "must be plain Conv2d and Linear, got Own at '1'"),
        (nn.Sequential(nn.MultiheadAttention(4, 1)), "got MultiheadAttention at '0'"),
        (nn.Flatten(), "must have convolutions or linear layers, got none"),
    ]:
        before = [type(part) for part in module.modules()]
        with pytest.raises(InputError, match=message):
            inject_noise(module)
        assert [type(part) for part in module.modules()] == before
    with pytest.raises(InputError, match="granularity must be one of layer, channel, element, got 'row'"):
        inject_noise(small(), "row")


@pytest.mark.parametrize("affinity", ["softmax", "dot"])
@pytest.mark.parametrize("side", [2, 6])  # fewer and more positions than channels
def test_denoising_block(affinity: str, side: int) -> None:
    torch.manual_seed(0)
    block, x = DenoisingBlock(8, affinity), torch.randn(3, 8, side, side)
    assert torch.equal(block(x), x)  # new: the identity, in training
    block.eval()
    assert torch.equal(block(x), x)
    nn.init.ones_(block.norm.weight)
    if affinity == "softmax":
        nn.init.normal_(block.theta.weight)
        nn.init.normal_(block.phi.weight)
    assert not torch.allclose(block(x), x)
    order = torch.randperm(side * side)
    turned = x.flatten(2)[:, :, order].view_as(x)
    torch.testing.assert_close(block(turned).flatten(2), block(x).flatten(2)[:, :, order])
    constant = block(x[:, :, :1, :1].expand_as(x))
    torch.testing.assert_close(constant, constant[:, :, :1, :1].expand_as(constant))
    torch.testing.assert_close(block.weighted(x), by_hand(block, x))


def by_hand(block: DenoisingBlock, x: torch.Tensor) -> torch.Tensor:
    """Position by position."""
    out = torch.zeros_like(x).flatten(2)
    flat = x.flatten(2)
    for n in range(len(x)):
        for i in range(flat.shape[2]):
            if block.affinity == "dot":
                weights = torch.stack([flat[n, :, i] @ flat[n, :, j] for j in range(flat.shape[2])]) / flat.shape[2]
            else:
                theta, phi = block.theta.weight[:, :, 0, 0], block.phi.weight[:, :, 0, 0]
                scores = [(theta @ flat[n, :, i]) @ (phi @ flat[n, :, j]) / math.sqrt(4) for j in range(flat.shape[2])]
                weights = torch.stack(scores).softmax(0)
            out[n, :, i] = (weights * flat[n]).sum(1)
    return out.view_as(x)


@pytest.mark.parametrize(
    ("make", "channels"),
    [
        (lambda: CifarResNet(1, 5), [16, 32, 64]),
        (lambda: WideResNet(10, 1, 5), [16, 32, 64]),
        (lambda: cifar_resnet("resnet18", 5), [64, 128, 256, 512]),
        (lambda: cifar_resnet("resnet50", 5), [256, 512, 1024, 2048]),
    ],
)
def test_denoising_behind_every_stage(make, channels: list[int]) -> None:
    with torch.device("meta"):
        module = add_denoising(make())
    blocks = [part for part in module.modules() if isinstance(part, DenoisingBlock)]
    assert [block.conv.in_channels for block in blocks] == channels


def test_a_network_with_new_blocks_is_the_network_itself() -> None:
    base = CifarResNet(1, 5).eval()
    module = add_denoising(copy.deepcopy(base))
    with torch.no_grad():
        assert torch.equal(module(X), base(X))
    assert set(base.state_dict()) < set(module.state_dict())
    with pytest.raises(
        InputError, match=r"denoise: the network must have residual stages \(layer1.*\), got Sequential"
    ):
        add_denoising(small())
    with pytest.raises(InputError, match="affinity must be one of softmax, dot, got 'cosine'"):
        DenoisingBlock(4, "cosine")


def test_ensemble() -> None:
    torch.manual_seed(0)
    members = [small().eval() for _ in range(3)]
    ensemble = Ensemble(members).eval()
    with torch.no_grad():
        wanted = torch.stack([member(X).double().softmax(1) for member in members]).mean(0)
        torch.testing.assert_close(ensemble(X).double().exp(), wanted)
        alike = Ensemble([members[0]] * 2)(X)
        torch.testing.assert_close(alike, members[0](X).log_softmax(1))
    logits = torch.tensor([[0.0, -80.0, -90.0, -200.0]])
    answer = Ensemble([nn.Flatten(), nn.Flatten()])(logits)
    torch.testing.assert_close(answer[0, :3], logits[0, :3])  # 1e-39 is no float32; its logarithm is
    assert answer[0, 3].item() == pytest.approx(math.log(1e-40))
    ensemble.apart = True
    with torch.no_grad():
        assert torch.equal(ensemble(X), torch.stack([member(X) for member in members], dim=1))
    with pytest.raises(InputError, match="must have at least 2 members, got 1"):
        Ensemble([nn.Flatten()])


@pytest.mark.parametrize(
    ("query", "members"),
    [
        ("variant=pni", 1),
        ("variant=pni&granularity=element", 1),
        ("variant=denoise", 1),
        ("variant=denoise&affinity=dot", 1),
        ("variant=trs", 3),
        ("variant=trs&members=2", 2),
    ],
)
def test_saved_and_loaded(tmp_path, query: str, members: int) -> None:
    uri, path = f"builtin:resnet20-cifar10?{query}&num_classes=4", tmp_path / "w.pt"
    before = torch.random.get_rng_state()
    target = blank(uri, seed=7)
    with torch.no_grad():
        for parameter in target.module.parameters():
            parameter.add_(0.001)
    torch.save(bare(target).state_dict(), path)
    loaded = load(f"{uri}&weights={path}")
    assert torch.equal(before, torch.random.get_rng_state())
    scores = []
    for each in (target, loaded):
        with each.session(seed=1):
            scores.append(each.query(X, IDS).scores)
    assert torch.equal(*scores)
    again, other = blank(uri, seed=7), blank(uri, seed=8)
    assert not torch.equal(next(iter(again.module.parameters())), next(iter(other.module.parameters())))
    if members > 1:
        assert len(bare(loaded).members) == members
        first, second = (member.conv1.weight for member in bare(again).members[:2])
        assert not torch.equal(first, second)
        assert torch.equal(first, bare(blank("builtin:resnet20-cifar10", seed=7)).conv1.weight)


def test_a_variant_starts_from_the_plain_weights(tmp_path) -> None:
    plain = blank("builtin:resnet20-cifar10", seed=1)
    torch.save(bare(plain).state_dict(), tmp_path / "w.pt")
    key = f"weights={tmp_path / 'w.pt'}"
    denoised = blank(f"builtin:resnet20-cifar10?variant=denoise&{key}", seed=2)
    assert torch.equal(denoised.query(X, IDS).scores, plain.query(X, IDS).scores)
    noisy = blank(f"builtin:resnet20-cifar10?variant=pni&{key}", seed=2)
    assert torch.equal(bare(noisy).linear.weight, bare(plain).linear.weight)
    assert bare(noisy).linear.alpha.flatten().tolist() == [0.25] * 10
    for make, query in [(blank, "variant=trs"), (load, "variant=pni"), (load, "variant=denoise")]:
        with pytest.raises(InputError, match="do not fit builtin:resnet20-cifar10: missing"):
            make(f"builtin:resnet20-cifar10?{query}&{key}")
    torch.save(bare(noisy).state_dict(), tmp_path / "noisy.pt")
    with pytest.raises(InputError, match=r"unexpected 'conv1\.alpha'"):
        load(f"builtin:resnet20-cifar10?weights={tmp_path / 'noisy.pt'}")


def test_refused_in_one_line() -> None:
    for uri, message in [
        (
            "builtin:resnet20-cifar10?variant=pnu",
            r"variant: .* got 'pnu' \(did you mean pni\? known: denoise, pni, trs\)",
        ),
        ("builtin:resnet20-cifar10?variant=pni&granularity=row", "granularity must be one of layer, channel, element"),
        ("builtin:resnet20-cifar10?variant=pni&members=2", "query key"),
        ("builtin:resnet20-cifar10?members=2", "query key"),
        ("builtin:resnet20-cifar10?variant=trs&members=1", "members must be a whole number, at least 2, got '1'"),
        ("builtin:digits?variant=denoise", "builtin:digits: denoise: the network must have residual stages"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            blank(uri)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="variant=pni needs weights=FILE, the weights of this form"):
        load("builtin:digits?variant=pni")
    assert all(form.summary and "\n" not in form.summary for form in VARIANTS.values())
