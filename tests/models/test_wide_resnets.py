"""Wide residual networks against a forward pass written down from the parameter names alone."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from poise.errors import InputError
from poise.models import BUILTIN, load_weights
from poise.models.dm_wide_resnet import DMWideResNet, PSSiLU
from poise.models.model_a import ModelA
from poise.models.vision import cifar_resnet, small_vit
from poise.models.wide_resnet import WideResNet

X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """With norms that do something, in double precision."""
    generator = torch.Generator().manual_seed(1)
    for name, value in module.state_dict().items():
        if value.is_floating_point() and name not in ("mean", "std"):
            value.copy_(torch.rand(value.shape, generator=generator) * 0.2 + (0.9 if "running_var" in name else 0))
    return module.eval().double()


def norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    parts = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, *parts)


def test_wide_resnet_by_its_names() -> None:
    module = shaken(WideResNet(16, 2, 5))
    state = module.state_dict()
    out = F.conv2d(X.double(), state["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for i in range(2):
            key, stride = f"block{stage}.layer.{i}", 2 if stage > 1 and i == 0 else 1
            active = norm(state, f"{key}.bn1", out).relu()
            inner = norm(state, f"{key}.bn2", F.conv2d(active, state[f"{key}.conv1.weight"], stride=stride, padding=1))
            inner = F.conv2d(inner.relu(), state[f"{key}.conv2.weight"], padding=1)
            short = out if i else F.conv2d(active, state[f"{key}.convShortcut.weight"], stride=stride)
            out = short + inner
    pooled = norm(state, "bn1", out).relu().mean((2, 3))
    torch.testing.assert_close(module(X.double()), pooled @ state["fc.weight"].T + state["fc.bias"])


@pytest.mark.parametrize("padding", [(0, 1, 0, 1), (1, 1, 1, 1)])
def test_dm_wide_resnet_by_its_names(padding: tuple[int, ...]) -> None:
    module = shaken(DMWideResNet(16, 2, 5, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)))
    state = module.state_dict()
    out = F.conv2d((X.double() - state["mean"]) / state["std"], state["init_conv.weight"], padding=1)
    for stage in (0, 1, 2):
        for i in range(2):
            key, stride = f"layer.{stage}.block.{i}", 2 if stage and i == 0 else 1
            active = F.silu(norm(state, f"{key}.batchnorm_0", out))
            inner = F.pad(active, padding if stride == 2 else (1, 1, 1, 1))
            inner = F.conv2d(inner, state[f"{key}.conv_0.weight"], stride=stride)
            inner = F.conv2d(F.silu(norm(state, f"{key}.batchnorm_1", inner)), state[f"{key}.conv_1.weight"], padding=1)
            short = out if i else F.conv2d(active, state[f"{key}.shortcut.weight"], stride=stride)
            out = short + inner
    pooled = F.silu(norm(state, "batchnorm", out)).mean((2, 3))
    wanted = pooled @ state["logits.weight"].T + state["logits.bias"]
    same = torch.allclose(module(X.double()), wanted, rtol=1e-10)
    assert same == (padding == (0, 1, 0, 1))  # the broken twin: padded on all sides


def test_initial_weights_of_wide_resnets() -> None:
    module = WideResNet(10, 4, 10)
    weight = module.block3.layer[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)
    assert torch.count_nonzero(module.fc.bias) == 0


def test_what_trades_saves_and_never_runs_is_passed_over(tmp_path) -> None:
    module = WideResNet(10, 1, 3)
    extra = {f"sub_{name}": value for name, value in module.state_dict().items() if name.startswith("block1.")}
    torch.save(module.state_dict() | extra, tmp_path / "w.pt")
    other = copy.deepcopy(WideResNet(10, 1, 3))  # the copy passes over them too
    load_weights(other, tmp_path / "w.pt", name="wrn")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in module.state_dict().items())
    torch.save(module.state_dict() | {"sub_block2.x": torch.ones(1)}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"unexpected 'sub_block2\.x'"):
        load_weights(other, tmp_path / "w.pt", name="wrn")


def test_pssilu() -> None:
    x = torch.linspace(-4, 4, 9)
    torch.testing.assert_close(PSSiLU()(x), F.silu(x))
    act = PSSiLU()
    with torch.no_grad():
        act.alpha.fill_(-2.0)  # only the absolute values count
        act.beta.fill_(-0.25)
    assert act(torch.tensor([1.0])).item() == pytest.approx((1 / (1 + 2.718281828459045**-2) - 0.25) / 0.75)
    module = WideResNet(10, 1, 3, PSSiLU())
    names = [name for name in module.state_dict() if name.endswith("beta")]
    assert names == [*(f"block{stage}.layer.0.activation.beta" for stage in (1, 2, 3)), "activation.beta"]
    assert len([name for name, _ in module.named_parameters() if name.endswith("beta")]) == 1  # one for all places


def test_model_a_by_hand() -> None:
    module = shaken(ModelA(1, 4))
    state, x = module.state_dict(), X[:, :1, :28, :28].double()

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=stride, padding=1)

    out = F.avg_pool2d(conv("conv1", x).relu(), 2)
    out = out + conv("residual2", conv("residual1", out).relu())
    out = conv("conv3", conv("conv2", out, 2).relu(), 2).relu()
    torch.testing.assert_close(module(x), out.flatten(1) @ state["linear.weight"].T + state["linear.bias"])
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in module.modules())


def test_cifar_resnet_keeps_the_resolution() -> None:
    module = cifar_resnet("resnet18", 10).eval()
    with torch.no_grad():
        stem = module.maxpool(module.relu(module.bn1(module.conv1(X))))
        assert stem.shape == (2, 64, 32, 32)
        assert module.layer4(module.layer3(module.layer2(module.layer1(stem)))).shape == (2, 512, 4, 4)
    assert module.conv1.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.1)


def test_small_vit_has_second_derivatives() -> None:
    module, x = small_vit(10).eval(), X[:1].clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(module(x).logsumexp(1).sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert torch.isfinite(module.head.weight.grad).all()
    for block in module.blocks:
        block.attn.fused_attn = True
    with torch.no_grad():
        fused = module(X)
        for block in module.blocks:
            block.attn.fused_attn = False
        torch.testing.assert_close(module(X), fused, rtol=1e-4, atol=1e-5)


def test_a_hundred_classes() -> None:
    for name in ("wrn28-10-cifar10", "resnet18-cifar10", "vit-small-cifar10", "model-a-cifar10"):
        with torch.device("meta"):
            assert BUILTIN[name].build(100)(torch.rand(1, 3, 32, 32)).shape == (1, 100)
